// Signatures, shape functions and documentation of the ops. What a kernel would reject for its
// numbers or sizes, the shape function rejects first, in the same words: both ask core.
#include <string>

#include "../kernels/names.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfquant {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

template <class T>
T Attr(InferenceContext* c, const char* name) {
  T value{};
  TF_CHECK_OK(c->GetAttr(name, &value));
  return value;
}

absl::Status Rank(InferenceContext* c, int input, int rank, const char* name) {
  const ShapeHandle shape = c->input(input);
  if (!c->RankKnown(shape)) return absl::OkStatus();
  return Words(CheckRank(c->Rank(shape), rank, name, c->DebugString(shape)));
}

// A dimension of an input; -1 if it is not known.
int64_t Size(InferenceContext* c, int input, int64_t axis) {
  return c->Value(c->Dim(c->input(input), axis));
}

// How many values an input holds; -1 if that is not known.
int64_t Values(InferenceContext* c, int input) {
  return c->FullyDefined(c->input(input)) ? c->Value(c->NumElements(c->input(input))) : -1;
}

absl::Status LowbitMatmulShape(InferenceContext* c) {
  const ShapeHandle x = c->input(0);
  if (c->RankKnown(x) && c->Rank(x) == 0) return absl::InvalidArgumentError(kScalarX);
  TF_RETURN_IF_ERROR(Rank(c, 1, 1, "weights"));
  TF_RETURN_IF_ERROR(Rank(c, 2, 1, "bias"));
  const int64_t units = Attr<int64_t>(c, "units");
  MatmulArgs args;
  args.layout.num_bits = IntOf(Attr<int64_t>(c, "num_bits"));
  args.layout.group_size = Attr<int64_t>(c, "group_size");
  args.layout.n = units;
  args.activations = ActivationsOf(Attr<std::string>(c, "activations"));
  args.fused = FusedOf(Attr<std::string>(c, "fused"));
  args.x_scale = Attr<float>(c, "x_scale");
  args.zero_point = IntOf(Attr<int64_t>(c, "zero_point"));
  const int64_t depth = Size(c, 0, -1), bytes = Size(c, 1, 0);
  args.layout.k = depth < 0 ? 1 : depth;
  TF_RETURN_IF_ERROR(Words(CheckSettings(args)));
  if (depth >= 0 && bytes >= 0) TF_RETURN_IF_ERROR(Words(CheckPackedBytes(bytes, args.layout)));
  TF_RETURN_IF_ERROR(Words(CheckBias(Size(c, 2, 0), units)));
  ShapeHandle y;
  TF_RETURN_IF_ERROR(c->ReplaceDim(x, -1, c->MakeDim(units), &y));
  c->set_output(0, y);
  return absl::OkStatus();
}

absl::Status LowbitPackShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(Rank(c, 0, 2, "q"));
  TF_RETURN_IF_ERROR(Rank(c, 1, 2, "scale"));
  const int64_t k = Size(c, 0, 0), n = Size(c, 0, 1);
  PackedLayout layout;
  TF_RETURN_IF_ERROR(
      Words(MakeLayout(IntOf(Attr<int64_t>(c, "num_bits")), Attr<int64_t>(c, "group_size"),
                       k < 0 ? 1 : k, n < 0 ? 1 : n, &layout)));
  TF_RETURN_IF_ERROR(Words(CheckScaleShape(Size(c, 1, 0), Size(c, 1, 1),
                                           k < 0 ? -1 : layout.groups(), n < 0 ? -1 : layout.n)));
  c->set_output(0, c->Vector(k < 0 || n < 0 ? InferenceContext::kUnknownDim : layout.bytes()));
  return absl::OkStatus();
}

absl::Status LowbitUnpackShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(Rank(c, 0, 1, "weights"));
  PackedLayout layout;
  TF_RETURN_IF_ERROR(
      Words(MakeLayout(IntOf(Attr<int64_t>(c, "num_bits")), Attr<int64_t>(c, "group_size"),
                       Attr<int64_t>(c, "depth"), Attr<int64_t>(c, "units"), &layout)));
  const int64_t bytes = Size(c, 0, 0);
  if (bytes >= 0) TF_RETURN_IF_ERROR(Words(CheckPackedBytes(bytes, layout)));
  c->set_output(0, c->Matrix(layout.k, layout.n));
  return absl::OkStatus();
}

// Plain rows: the numbers, and the shapes of input 1, the scales, and 2, the zero points.
absl::Status CheckPlainInputs(InferenceContext* c, int64_t columns, PlainArgs* args) {
  args->num_bits = IntOf(Attr<int64_t>(c, "num_bits"));
  args->row_group = Attr<int64_t>(c, "row_group");
  args->column_group = Attr<int64_t>(c, "column_group");
  args->rows = Size(c, 0, 0);
  args->columns = columns;
  TF_RETURN_IF_ERROR(Words(CheckPlainNumbers(*args)));
  TF_RETURN_IF_ERROR(Rank(c, 1, 2, "scale"));
  TF_RETURN_IF_ERROR(Words(CheckPlainScaleShape(Size(c, 1, 0), Size(c, 1, 1), *args)));
  const ShapeHandle scale = c->input(1), zero_point = c->input(2);
  if (!c->FullyDefined(scale) || !c->FullyDefined(zero_point)) return absl::OkStatus();
  const std::string shape = c->DebugString(zero_point), wanted = c->DebugString(scale);
  return Words(CheckZeroPointShape(Values(c, 2), shape == wanted, shape, wanted));
}

absl::Status DequantizeShape(InferenceContext* c) {
  PlainArgs args;
  TF_RETURN_IF_ERROR(Rank(c, 0, 2, "packed"));
  TF_RETURN_IF_ERROR(CheckPlainInputs(c, Attr<int64_t>(c, "columns"), &args));
  TF_RETURN_IF_ERROR(Words(CheckRowBytes(Size(c, 0, 1), args.columns, args.num_bits)));
  TF_RETURN_IF_ERROR(Words(CheckCodebook(Values(c, 3), args.num_bits)));
  c->set_output(0, c->Matrix(c->Dim(c->input(0), 0), args.columns));
  return absl::OkStatus();
}

absl::Status QuantizePackShape(InferenceContext* c) {
  PlainArgs args;
  TF_RETURN_IF_ERROR(Rank(c, 0, 2, "real"));
  TF_RETURN_IF_ERROR(CheckPlainInputs(c, Size(c, 0, 1), &args));
  const DimensionHandle width =
      args.columns < 0 ? c->UnknownDim() : c->MakeDim(PlainRowBytes(args.columns, args.num_bits));
  c->set_output(0, c->Matrix(c->Dim(c->input(0), 0), width));
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("Tfquant>LowbitMatmul")
    .Input("x: T")
    .Input("weights: uint8")
    .Input("bias: float")
    .Output("y: T")
    .Attr("T: {" TFQUANT_REAL_TYPES "}")
    .Attr("units: int >= 1")
    .Attr("num_bits: int")
    .Attr("group_size: int = 0")
    .Attr("activations: {" TFQUANT_ACTIVATIONS "} = 'per_row'")
    .Attr("x_scale: float = 1.0")
    .Attr("zero_point: int = 0")
    .Attr("fused: {" TFQUANT_FUSED "} = 'linear'")
    .SetShapeFn(LowbitMatmulShape)
    .Doc(R"doc(
Multiplies the last axis of `x` with packed low-bit weights.

    y = fused(x . weights + bias)

The meaning is that of `tfquant.numerics.reference.lowbit_matmul`.

x: Real values `[..., K]`.
weights: What `Tfquant>LowbitPack` made of `[K, units]`.
bias: `[units]`, or empty.
y: `[..., units]`.
activations: What becomes of x before it meets the weights.
)doc");

REGISTER_OP("Tfquant>LowbitPack")
    .Input("q: int8")
    .Input("scale: float")
    .Output("weights: uint8")
    .Attr("num_bits: int")
    .Attr("group_size: int = 0")
    .SetShapeFn(LowbitPackShape)
    .Doc(R"doc(
Packs integer weights for `Tfquant>LowbitMatmul`.

q: `[K, N]`.
scale: `[groups, N]`; one group without `group_size`.
)doc");

REGISTER_OP("Tfquant>LowbitUnpack")
    .Input("weights: uint8")
    .Output("weight: float")
    .Attr("num_bits: int")
    .Attr("group_size: int = 0")
    .Attr("depth: int")
    .Attr("units: int")
    .SetShapeFn(LowbitUnpackShape)
    .Doc(R"doc(
The real weights `[depth, units]` that packed ones stand for: `q * scale`.
)doc");

REGISTER_OP("Tfquant>Dequantize")
    .Input("packed: uint8")
    .Input("scale: float")
    .Input("zero_point: float")
    .Input("codebook: float")
    .Output("real: T")
    .Attr("T: {" TFQUANT_REAL_TYPES "} = DT_FLOAT")
    .Attr("num_bits: int")
    .Attr("columns: int >= 0")
    .Attr("row_group: int = 1")
    .Attr("column_group: int = 1")
    .SetShapeFn(DequantizeShape)
    .Doc(R"doc(
`scale * (v - zero_point)`, or `scale * codebook[v]`, of plain packed rows.

packed: `[rows, bytes]`.
scale: `[ceil(rows / row_group), ceil(columns / column_group)]`.
zero_point: Like `scale`, or empty: `2^(num_bits-1)`.
codebook: `[2^num_bits]`, or empty.
)doc");

REGISTER_OP("Tfquant>QuantizePack")
    .Input("real: float")
    .Input("scale: float")
    .Input("zero_point: float")
    .Output("packed: uint8")
    .Attr("num_bits: int")
    .Attr("row_group: int = 1")
    .Attr("column_group: int = 1")
    .SetShapeFn(QuantizePackShape)
    .Doc(R"doc(
Quantizes rows and packs them, `clip(round(x / scale) + zero_point, 0, 2^num_bits - 1)`.
)doc");

}  // namespace tfquant
