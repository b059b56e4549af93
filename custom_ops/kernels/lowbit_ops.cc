// The CPU kernels of the ops: core on TensorFlow's own threads.
#include <memory>
#include <string>

#include "../core/dequantize.h"
#include "../core/matmul.h"
#include "../core/path.h"
#include "../core/thread_pool.h"
#include "op_kernels.h"

namespace tfquant {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// TensorFlow's own threads. Its ParallelFor would hand even the first item to a thread that has to
// wake up; here the calling thread is one of them and begins at once.
ParallelFor ThreadsOf(OpKernelContext* ctx) {
  const auto* const threads = ctx->device()->tensorflow_cpu_worker_threads();
  const int count = threads->num_threads;
  if (count == 1) return SerialFor;
  tensorflow::thread::ThreadPool* const pool = threads->workers;
  return [pool, count](int64_t items, int64_t cost,
                       const std::function<void(int64_t, int64_t)>& body) {
    if (!WorthSharing(items, cost)) return SerialFor(items, cost, body);
    const auto work = std::make_shared<SharedWork>(items, count, body);
    for (int i = 1; i < count && i < items; ++i) pool->Schedule([work] { work->Help(); });
    work->Finish();
  };
}

// See op_kernels.h.
class Cpu {
 public:
  absl::Status Start(OpKernelConstruction*) {
    const Path* path = nullptr;
    const std::string error = ChosenPath(&path);
    if (!error.empty()) return absl::FailedPreconditionError(error);
    kernels_ = &path->kernels();
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
