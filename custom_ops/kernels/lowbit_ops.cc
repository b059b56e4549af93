// The CPU kernels of the ops: check, allocate, call core on TensorFlow's own threads.
#include <optional>
#include <string>
#include <type_traits>

#include "../core/dequantize.h"
#include "../core/matmul.h"
#include "../core/pack.h"
#include "../core/path.h"
#include "names.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/register_types.h"

namespace tfquant {
namespace {

using tensorflow::bfloat16;
using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

absl::Status Words(const std::string& error) {
  return error.empty() ? absl::OkStatus() : absl::InvalidArgumentError(error);
}

template <class T>
constexpr DataType TypeOf() {
  return std::is_same<T, float>::value ? DataType::kFloat32 : DataType::kBFloat16;
}

absl::Status GetKernels(const Kernels** kernels) {
  Path path;
  const std::string error = ChosenPath(&path);
  if (!error.empty()) return absl::FailedPreconditionError(error);
  *kernels = &KernelsOf(path);
  return absl::OkStatus();
}

ParallelFor ThreadsOf(OpKernelContext* ctx) {
  const auto* const threads = ctx->device()->tensorflow_cpu_worker_threads();
  if (threads->num_threads == 1) return SerialFor;
  tensorflow::thread::ThreadPool* const pool = threads->workers;
  return [pool](int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body) {
    if (count == 0) return;
    using Pool = tensorflow::thread::ThreadPool;
    constexpr int64_t kCyclesPerNanosecond = 3;
    const Pool::SchedulingParams params(Pool::SchedulingStrategy::kAdaptive,
                                        cost * kCyclesPerNanosecond, std::nullopt);
    pool->ParallelFor(count, params, body);
  };
}

absl::Status Rank(const Tensor& tensor, int rank, const char* name) {
  if (tensor.dims() == rank) return absl::OkStatus();
  return absl::InvalidArgumentError("`" + std::string(name) + "` must have " +
                                    std::to_string(rank) + " dimensions. Received: shape " +
                                    tensor.shape().DebugString() + ".");
}

template <class T>
class LowbitMatmulOp : public OpKernel {
 public:
  explicit LowbitMatmulOp(OpKernelConstruction* c) : OpKernel(c) {
    std::string activations, fused;
    int64_t zero_point;
    OP_REQUIRES_OK(c, c->GetAttr("units", &args_.layout.n));
    OP_REQUIRES_OK(c, c->GetAttr("num_bits", &args_.layout.num_bits));
    OP_REQUIRES_OK(c, c->GetAttr("group_size", &args_.layout.group_size));
    OP_REQUIRES_OK(c, c->GetAttr("activations", &activations));
    OP_REQUIRES_OK(c, c->GetAttr("x_scale", &args_.x_scale));
    OP_REQUIRES_OK(c, c->GetAttr("zero_point", &zero_point));
    OP_REQUIRES_OK(c, c->GetAttr("fused", &fused));
    OP_REQUIRES_OK(c, GetKernels(&kernels_));
    args_.type = TypeOf<T>();
    args_.activations = ActivationsOf(activations);
    args_.zero_point = static_cast<int>(zero_point);
    args_.fused = FusedOf(fused);
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &x = ctx->input(0), &weights = ctx->input(1), &bias = ctx->input(2);
    OP_REQUIRES(ctx, x.dims() >= 1, absl::InvalidArgumentError("`x` must not be a scalar."));
    OP_REQUIRES_OK(ctx, Rank(weights, 1, "weights"));
    OP_REQUIRES_OK(ctx, Rank(bias, 1, "bias"));
    OP_REQUIRES_OK(ctx, Words(CheckBias(bias.NumElements(), args_.layout.n)));
    MatmulArgs args = args_;
    args.layout.k = x.dim_size(x.dims() - 1);
    args.m = args.layout.k > 0 ? x.NumElements() / args.layout.k : 0;
    TensorShape shape = x.shape();
    OP_REQUIRES_OK(ctx, shape.SetDimWithStatus(x.dims() - 1, args.layout.n));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &y));
    args.x = x.data();
    args.weights = static_cast<const uint8_t*>(weights.data());
    args.weights_bytes = weights.NumElements();
    args.bias = bias.NumElements() > 0 ? bias.flat<float>().data() : nullptr;
    args.y = y->data();
    OP_REQUIRES_OK(ctx, Words(CheckMatmul(args)));
    Matmul(args, *kernels_, ThreadsOf(ctx));
  }

 private:
  MatmulArgs args_;
  const Kernels* kernels_ = nullptr;
};

class LowbitPackOp : public OpKernel {
 public:
  explicit LowbitPackOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("num_bits", &num_bits_));
    OP_REQUIRES_OK(c, c->GetAttr("group_size", &group_size_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &q = ctx->input(0), &scale = ctx->input(1);
    OP_REQUIRES_OK(ctx, Rank(q, 2, "q"));
    OP_REQUIRES_OK(ctx, Rank(scale, 2, "scale"));
    PackedLayout layout;
    OP_REQUIRES_OK(
        ctx, Words(MakeLayout(num_bits_, group_size_, q.dim_size(0), q.dim_size(1), &layout)));
    OP_REQUIRES_OK(ctx, Words(CheckScaleShape(scale.dim_size(0), scale.dim_size(1), layout)));
    Tensor* weights = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({layout.bytes()}), &weights));
    OP_REQUIRES_OK(ctx, Words(PackMatmul(q.flat<int8_t>().data(), scale.flat<float>().data(),
                                         layout, weights->flat<uint8_t>().data())));
  }

 private:
  int num_bits_;
  int64_t group_size_;
};

class LowbitUnpackOp : public OpKernel {
 public:
  explicit LowbitUnpackOp(OpKernelConstruction* c) : OpKernel(c) {
    int num_bits;
    int64_t group_size, depth, units;
    OP_REQUIRES_OK(c, c->GetAttr("num_bits", &num_bits));
    OP_REQUIRES_OK(c, c->GetAttr("group_size", &group_size));
    OP_REQUIRES_OK(c, c->GetAttr("depth", &depth));
    OP_REQUIRES_OK(c, c->GetAttr("units", &units));
    OP_REQUIRES_OK(c, Words(MakeLayout(num_bits, group_size, depth, units, &layout_)));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& weights = ctx->input(0);
    OP_REQUIRES_OK(ctx, Rank(weights, 1, "weights"));
    const uint8_t* const data = static_cast<const uint8_t*>(weights.data());
    OP_REQUIRES_OK(ctx, Words(CheckPacked(data, weights.NumElements(), layout_)));
    Tensor* weight = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({layout_.k, layout_.n}), &weight));
    DequantizeMatmul(data, layout_, weight->flat<float>().data());
  }

 private:
  PackedLayout layout_;
};

// What Dequantize and QuantizePack share.
class PlainOp : public OpKernel {
 public:
  explicit PlainOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, c->GetAttr("num_bits", &args_.num_bits));
    OP_REQUIRES_OK(c, c->GetAttr("row_group", &args_.row_group));
    OP_REQUIRES_OK(c, c->GetAttr("column_group", &args_.column_group));
  }

 protected:
  absl::Status SetScales(const Tensor& scale, const Tensor& zero_point, PlainArgs* args) const {
    TF_RETURN_IF_ERROR(Rank(scale, 2, "scale"));
    args->scale = scale.flat<float>().data();
    args->scales = scale.NumElements();
    if (zero_point.NumElements() == 0) return absl::OkStatus();
    if (zero_point.shape() != scale.shape()) {
      return absl::InvalidArgumentError(
          "`zero_point` must be empty or have the shape of `scale`, " +
          scale.shape().DebugString() + ". Received: shape " + zero_point.shape().DebugString() +
          ".");
    }
    args->zero_point = zero_point.flat<float>().data();
    return absl::OkStatus();
  }

  PlainArgs args_;
};

template <class T>
class DequantizeOp : public PlainOp {
 public:
  explicit DequantizeOp(OpKernelConstruction* c) : PlainOp(c) {
    OP_REQUIRES_OK(c, c->GetAttr("columns", &args_.columns));
    OP_REQUIRES_OK(c, GetKernels(&kernels_));
    args_.type = TypeOf<T>();
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor &packed = ctx->input(0), &codebook = ctx->input(3);
    OP_REQUIRES_OK(ctx, Rank(packed, 2, "packed"));
    PlainArgs args = args_;
    args.rows = packed.dim_size(0);
    args.packed = packed.flat<uint8_t>().data();
    args.packed_bytes = packed.NumElements();
    OP_REQUIRES_OK(ctx, SetScales(ctx->input(1), ctx->input(2), &args));
    OP_REQUIRES_OK(ctx, Words(CheckPlain(args)));
    const int64_t entries = codebook.NumElements();
    OP_REQUIRES(
        ctx, entries == 0 || entries == int64_t{1} << args.num_bits,
        absl::InvalidArgumentError("`codebook` must be empty or hold 2^num_bits=" +
                                   std::to_string(int64_t{1} << args.num_bits) +
                                   " values. Received: " + std::to_string(entries) + " values."));
    args.codebook = entries ? codebook.flat<float>().data() : nullptr;
    Tensor* real = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({args.rows, args.columns}), &real));
    args.real = real->data();
    DequantizePlain(args, *kernels_, ThreadsOf(ctx));
  }

 private:
  const Kernels* kernels_ = nullptr;
};

class QuantizePackOp : public PlainOp {
 public:
  using PlainOp::PlainOp;

  void Compute(OpKernelContext* ctx) override {
    const Tensor& real = ctx->input(0);
    OP_REQUIRES_OK(ctx, Rank(real, 2, "real"));
    PlainArgs args = args_;
    args.rows = real.dim_size(0);
    args.columns = real.dim_size(1);
    OP_REQUIRES_OK(ctx, SetScales(ctx->input(1), ctx->input(2), &args));
    const int bits = args.num_bits;
    OP_REQUIRES(ctx, bits == 8 || bits == 4 || bits == 2 || bits == 1, Words(CheckPlain(args)));
    const int64_t width = PlainRowBytes(args.columns, bits);
    args.packed_bytes = args.rows * width;
    OP_REQUIRES_OK(ctx, Words(CheckPlain(args)));
    Tensor* packed = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({args.rows, width}), &packed));
    QuantizePlain(args, real.flat<float>().data(), packed->flat<uint8_t>().data(), ThreadsOf(ctx));
  }
};

#define TFQUANT_REGISTER(T)                                                                       \
  REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitMatmul").Device(DEVICE_CPU).TypeConstraint<T>("T"), \
                          LowbitMatmulOp<T>);                                                     \
  REGISTER_KERNEL_BUILDER(Name("Tfquant>Dequantize").Device(DEVICE_CPU).TypeConstraint<T>("T"),   \
                          DequantizeOp<T>);
TFQUANT_FOR_REAL_TYPES(TFQUANT_REGISTER)
#undef TFQUANT_REGISTER
REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitPack").Device(DEVICE_CPU), LowbitPackOp);
REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitUnpack").Device(DEVICE_CPU), LowbitUnpackOp);
REGISTER_KERNEL_BUILDER(Name("Tfquant>QuantizePack").Device(DEVICE_CPU), QuantizePackOp);

}  // namespace
}  // namespace tfquant
