// Signatures, shape functions and documentation of the ops. What a kernel would reject for its
// numbers or sizes, the shape function rejects first, in the same words: both ask core.
#include <string>

#include "../core/dequantize.h"
#include "../core/matmul.h"
#include "../core/pack.h"
#include "../kernels/names.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace tfquant {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status Words(const std::string& error) {
  return error.empty() ? absl::OkStatus() : absl::InvalidArgumentError(error);
}

template <class T>
T Attr(InferenceContext* c, const char* name) {
  T value{};
  TF_CHECK_OK(c->GetAttr(name, &value));
  return value;
}

absl::Status LowbitMatmulShape(InferenceContext* c) {
  ShapeHandle x, weights, bias;
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(0), 1, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &weights));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &bias));
  const int64_t units = Attr<int64_t>(c, "units");
  MatmulArgs args;
  args.layout.num_bits = static_cast<int>(Attr<int64_t>(c, "num_bits"));
  args.layout.group_size = Attr<int64_t>(c, "group_size");
  args.layout.n = units;
  args.activations = ActivationsOf(Attr<std::string>(c, "activations"));
  args.fused = FusedOf(Attr<std::string>(c, "fused"));
  args.x_scale = Attr<float>(c, "x_scale");
  args.zero_point = static_cast<int>(Attr<int64_t>(c, "zero_point"));
  const DimensionHandle depth = c->Dim(x, -1);
  const bool known = c->ValueKnown(depth);
  args.layout.k = known ? c->Value(depth) : 1;
  TF_RETURN_IF_ERROR(Words(CheckSettings(args)));
  if (known && c->ValueKnown(c->Dim(weights, 0))) {
    TF_RETURN_IF_ERROR(Words(CheckPackedBytes(c->Value(c->Dim(weights, 0)), args.layout)));
  }
  if (c->ValueKnown(c->Dim(bias, 0))) {
    TF_RETURN_IF_ERROR(Words(CheckBias(c->Value(c->Dim(bias, 0)), units)));
  }
  ShapeHandle y;
  TF_RETURN_IF_ERROR(c->ReplaceDim(x, -1, c->MakeDim(units), &y));
  c->set_output(0, y);
  return absl::OkStatus();
}

absl::Status LowbitPackShape(InferenceContext* c) {
  ShapeHandle q, scale;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &q));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &scale));
  const DimensionHandle k = c->Dim(q, 0), n = c->Dim(q, 1);
  const bool known = c->ValueKnown(k) && c->ValueKnown(n);
  PackedLayout layout;
  TF_RETURN_IF_ERROR(Words(MakeLayout(static_cast<int>(Attr<int64_t>(c, "num_bits")),
                                      Attr<int64_t>(c, "group_size"), known ? c->Value(k) : 1,
                                      known ? c->Value(n) : 1, &layout)));
  if (known && c->FullyDefined(scale)) {
    TF_RETURN_IF_ERROR(
        Words(CheckScaleShape(c->Value(c->Dim(scale, 0)), c->Value(c->Dim(scale, 1)), layout)));
  }
  c->set_output(0, known ? c->Vector(layout.bytes()) : c->Vector(InferenceContext::kUnknownDim));
  return absl::OkStatus();
}

absl::Status LowbitUnpackShape(InferenceContext* c) {
  ShapeHandle weights;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &weights));
  PackedLayout layout;
  TF_RETURN_IF_ERROR(Words(MakeLayout(static_cast<int>(Attr<int64_t>(c, "num_bits")),
                                      Attr<int64_t>(c, "group_size"), Attr<int64_t>(c, "depth"),
                                      Attr<int64_t>(c, "units"), &layout)));
  if (c->ValueKnown(c->Dim(weights, 0))) {
    TF_RETURN_IF_ERROR(Words(CheckPackedBytes(c->Value(c->Dim(weights, 0)), layout)));
  }
  c->set_output(0, c->Matrix(layout.k, layout.n));
  return absl::OkStatus();
}

absl::Status PlainNumBits(InferenceContext* c, int* num_bits) {
  *num_bits = static_cast<int>(Attr<int64_t>(c, "num_bits"));
  PlainArgs args;  // nothing but the numbers
  args.num_bits = *num_bits;
  args.row_group = Attr<int64_t>(c, "row_group");
  args.column_group = Attr<int64_t>(c, "column_group");
  return Words(CheckPlain(args));
}

absl::Status DequantizeShape(InferenceContext* c) {
  ShapeHandle packed, ignored;
  int num_bits;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &packed));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &ignored));
  TF_RETURN_IF_ERROR(PlainNumBits(c, &num_bits));
  const int64_t columns = Attr<int64_t>(c, "columns");
  DimensionHandle width;
  TF_RETURN_IF_ERROR(c->WithValue(c->Dim(packed, 1), PlainRowBytes(columns, num_bits), &width));
  c->set_output(0, c->Matrix(c->Dim(packed, 0), columns));
  return absl::OkStatus();
}

absl::Status QuantizePackShape(InferenceContext* c) {
  ShapeHandle x, ignored;
  int num_bits;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &x));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &ignored));
  TF_RETURN_IF_ERROR(PlainNumBits(c, &num_bits));
  const DimensionHandle columns = c->Dim(x, 1);
  c->set_output(0,
                c->Matrix(c->Dim(x, 0), c->ValueKnown(columns)
                                            ? c->MakeDim(PlainRowBytes(c->Value(columns), num_bits))
                                            : c->UnknownDim()));
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
