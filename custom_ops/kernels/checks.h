// What the CPU and GPU kernels of an op share: its attributes, and the checks of its tensors.
#ifndef TFQUANT_CUSTOM_OPS_KERNELS_CHECKS_H_
#define TFQUANT_CUSTOM_OPS_KERNELS_CHECKS_H_

#include <string>
#include <type_traits>

#include "names.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"

namespace tfquant {

template <class T>
constexpr DataType TypeOf() {
  return std::is_same<T, float>::value ? DataType::kFloat32 : DataType::kBFloat16;
}

inline absl::Status Rank(const tensorflow::Tensor& tensor, int rank, const char* name) {
  return Words(CheckRank(tensor.dims(), rank, name, tensor.shape().DebugString()));
}

// Tfquant>LowbitMatmul: its attributes, ...
inline absl::Status ReadMatmul(tensorflow::OpKernelConstruction* c, DataType type,
                               MatmulArgs* args) {
  std::string activations, fused;
  int64_t zero_point;
  TF_RETURN_IF_ERROR(c->GetAttr("units", &args->layout.n));
  TF_RETURN_IF_ERROR(c->GetAttr("num_bits", &args->layout.num_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("group_size", &args->layout.group_size));
  TF_RETURN_IF_ERROR(c->GetAttr("activations", &activations));
  TF_RETURN_IF_ERROR(c->GetAttr("x_scale", &args->x_scale));
  TF_RETURN_IF_ERROR(c->GetAttr("zero_point", &zero_point));
  TF_RETURN_IF_ERROR(c->GetAttr("fused", &fused));
  args->type = type;
  args->activations = ActivationsOf(activations);
  args->zero_point = IntOf(zero_point);
  args->fused = FusedOf(fused);
  return absl::OkStatus();
}

// ... and its tensors; allocates y, once the numbers and sizes are right. Looks at no values.
inline absl::Status BindMatmul(tensorflow::OpKernelContext* ctx, MatmulArgs* args) {
  const tensorflow::Tensor &x = ctx->input(0), &weights = ctx->input(1), &bias = ctx->input(2);
  if (x.dims() < 1) return absl::InvalidArgumentError(kScalarX);
  TF_RETURN_IF_ERROR(Rank(weights, 1, "weights"));
  TF_RETURN_IF_ERROR(Rank(bias, 1, "bias"));
  TF_RETURN_IF_ERROR(Words(CheckBias(bias.NumElements(), args->layout.n)));
  args->layout.k = x.dim_size(x.dims() - 1);
  args->weights_bytes = weights.NumElements();
  TF_RETURN_IF_ERROR(Words(CheckSettings(*args)));
  TF_RETURN_IF_ERROR(Words(CheckPackedBytes(args->weights_bytes, args->layout)));
  args->m = x.NumElements() / args->layout.k;
  tensorflow::TensorShape shape = x.shape();
  TF_RETURN_IF_ERROR(shape.SetDimWithStatus(x.dims() - 1, args->layout.n));
  tensorflow::Tensor* y = nullptr;
  TF_RETURN_IF_ERROR(ctx->allocate_output(0, shape, &y));
  args->x = x.data();
  args->weights = static_cast<const uint8_t*>(weights.data());
  args->bias = bias.NumElements() > 0 ? bias.flat<float>().data() : nullptr;
  args->y = y->data();
  return absl::OkStatus();
}

// Tfquant>Dequantize and Tfquant>QuantizePack: what they share, ...
inline absl::Status ReadPlain(tensorflow::OpKernelConstruction* c, PlainArgs* args) {
  TF_RETURN_IF_ERROR(c->GetAttr("num_bits", &args->num_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("row_group", &args->row_group));
  return c->GetAttr("column_group", &args->column_group);
}

inline absl::Status BindScales(const tensorflow::Tensor& scale,
                               const tensorflow::Tensor& zero_point, PlainArgs* args) {
  TF_RETURN_IF_ERROR(Words(CheckPlainNumbers(*args)));
  TF_RETURN_IF_ERROR(Rank(scale, 2, "scale"));
  TF_RETURN_IF_ERROR(Words(CheckPlainScaleShape(scale.dim_size(0), scale.dim_size(1), *args)));
  const bool like_scale = zero_point.shape() == scale.shape();
  TF_RETURN_IF_ERROR(
      Words(CheckZeroPointShape(zero_point.NumElements(), like_scale,
                                zero_point.shape().DebugString(), scale.shape().DebugString())));
  args->scale = scale.flat<float>().data();
  args->scales = scale.NumElements();
  if (zero_point.NumElements() > 0) args->zero_point = zero_point.flat<float>().data();
  return absl::OkStatus();
}

// ... the tensors of the one, ...
inline absl::Status BindDequantize(tensorflow::OpKernelContext* ctx, PlainArgs* args) {
  const tensorflow::Tensor &packed = ctx->input(0), &codebook = ctx->input(3);
  TF_RETURN_IF_ERROR(Rank(packed, 2, "packed"));
  args->rows = packed.dim_size(0);
  args->packed = packed.flat<uint8_t>().data();
  args->packed_bytes = packed.NumElements();
  TF_RETURN_IF_ERROR(BindScales(ctx->input(1), ctx->input(2), args));
  TF_RETURN_IF_ERROR(Words(CheckRowBytes(packed.dim_size(1), args->columns, args->num_bits)));
  TF_RETURN_IF_ERROR(Words(CheckCodebook(codebook.NumElements(), args->num_bits)));
  if (codebook.NumElements() > 0) args->codebook = codebook.flat<float>().data();
  return Words(CheckPlainSizes(*args));
}

// ... and of the other.
inline absl::Status BindQuantize(tensorflow::OpKernelContext* ctx, PlainArgs* args) {
  const tensorflow::Tensor& real = ctx->input(0);
  TF_RETURN_IF_ERROR(Rank(real, 2, "real"));
  args->rows = real.dim_size(0);
  args->columns = real.dim_size(1);
  TF_RETURN_IF_ERROR(BindScales(ctx->input(1), ctx->input(2), args));
  args->packed_bytes = args->rows * PlainRowBytes(args->columns, args->num_bits);
  return Words(CheckPlainSizes(*args));
}

// Tfquant>LowbitUnpack: the layout.
inline absl::Status ReadUnpack(tensorflow::OpKernelConstruction* c, PackedLayout* layout) {
  int num_bits;
  int64_t group_size, depth, units;
  TF_RETURN_IF_ERROR(c->GetAttr("num_bits", &num_bits));
  TF_RETURN_IF_ERROR(c->GetAttr("group_size", &group_size));
  TF_RETURN_IF_ERROR(c->GetAttr("depth", &depth));
  TF_RETURN_IF_ERROR(c->GetAttr("units", &units));
  return Words(MakeLayout(num_bits, group_size, depth, units, layout));
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_KERNELS_CHECKS_H_
