// The CPU kernels of the ops: core on TensorFlow's own threads.
#include <optional>
#include <string>

#include "../core/path.h"
#include "op_kernels.h"

namespace tfquant {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

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

// See op_kernels.h.
class Cpu {
 public:
  absl::Status Start(OpKernelConstruction*) {
    Path path;
    const std::string error = ChosenPath(&path);
    if (!error.empty()) return absl::FailedPreconditionError(error);
    kernels_ = &KernelsOf(path);
    return absl::OkStatus();
  }

  absl::Status Matmul(OpKernelContext* ctx, const MatmulArgs& args) const {
    TF_RETURN_IF_ERROR(Words(CheckMatmul(args)));
    tfquant::Matmul(args, *kernels_, ThreadsOf(ctx));
    return absl::OkStatus();
  }

  absl::Status Unpack(OpKernelContext*, const PackedLayout& layout, const uint8_t* weights,
                      float* weight) const {
    TF_RETURN_IF_ERROR(Words(CheckPacked(weights, layout.bytes(), layout)));
    DequantizeMatmul(weights, layout, weight);
    return absl::OkStatus();
  }

  absl::Status Dequantize(OpKernelContext* ctx, const PlainArgs& args) const {
    TF_RETURN_IF_ERROR(Words(CheckPlain(args)));
    DequantizePlain(args, *kernels_, ThreadsOf(ctx));
    return absl::OkStatus();
  }

  absl::Status Quantize(OpKernelContext* ctx, const PlainArgs& args, const float* x,
                        uint8_t* packed) const {
    TF_RETURN_IF_ERROR(Words(CheckPlain(args)));
    QuantizePlain(args, x, packed, ThreadsOf(ctx));
    return absl::OkStatus();
  }

 private:
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
    OP_REQUIRES_OK(ctx, Words(CheckScaleShape(scale.dim_size(0), scale.dim_size(1), layout.groups(),
                                              layout.n)));
    Tensor* weights = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({layout.bytes()}), &weights));
    OP_REQUIRES_OK(ctx, Words(PackMatmul(q.flat<int8_t>().data(), scale.flat<float>().data(),
                                         layout, weights->flat<uint8_t>().data())));
  }

 private:
  int num_bits_;
  int64_t group_size_;
};

TFQUANT_REGISTER_KERNELS(DEVICE_CPU, Cpu);
REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitPack").Device(DEVICE_CPU), LowbitPackOp);

}  // namespace
}  // namespace tfquant
