// The CPU kernels of the ops: check, allocate, call core on TensorFlow's own threads.
#include <optional>
#include <string>

#include "../core/path.h"
#include "checks.h"

namespace tfquant {
namespace {

using tensorflow::bfloat16;
using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

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

template <class T>
class LowbitMatmulOp : public OpKernel {
 public:
  explicit LowbitMatmulOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadMatmul(c, TypeOf<T>(), &args_));
    OP_REQUIRES_OK(c, GetKernels(&kernels_));
  }

  void Compute(OpKernelContext* ctx) override {
    MatmulArgs args = args_;
    OP_REQUIRES_OK(ctx, BindMatmul(ctx, &args));
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
    OP_REQUIRES_OK(c, ReadUnpack(c, &layout_));
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

template <class T>
class DequantizeOp : public OpKernel {
 public:
  explicit DequantizeOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadPlain(c, &args_));
    OP_REQUIRES_OK(c, c->GetAttr("columns", &args_.columns));
    OP_REQUIRES_OK(c, GetKernels(&kernels_));
    args_.type = TypeOf<T>();
  }

  void Compute(OpKernelContext* ctx) override {
    PlainArgs args = args_;
    OP_REQUIRES_OK(ctx, BindDequantize(ctx, &args));
    OP_REQUIRES_OK(ctx, Words(CheckPlain(args)));
    Tensor* real = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({args.rows, args.columns}), &real));
    args.real = real->data();
    DequantizePlain(args, *kernels_, ThreadsOf(ctx));
  }

 private:
  PlainArgs args_;
  const Kernels* kernels_ = nullptr;
};

class QuantizePackOp : public OpKernel {
 public:
  explicit QuantizePackOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadPlain(c, &args_));
  }

  void Compute(OpKernelContext* ctx) override {
    PlainArgs args = args_;
    OP_REQUIRES_OK(ctx, BindQuantize(ctx, &args));
    OP_REQUIRES_OK(ctx, Words(CheckPlain(args)));
    const int64_t width = PlainRowBytes(args.columns, args.num_bits);
    Tensor* packed = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({args.rows, width}), &packed));
    QuantizePlain(args, ctx->input(0).flat<float>().data(), packed->flat<uint8_t>().data(),
                  ThreadsOf(ctx));
  }

 private:
  PlainArgs args_;
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
