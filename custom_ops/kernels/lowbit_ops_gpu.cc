// The GPU kernels of the ops: check, allocate, call core/cuda with TensorFlow's stream. Plain C++:
// no CUDA header is needed to compile it and no CUDA library to load it; without a GPU nobody asks
// for these kernels. Tfquant>LowbitPack, which runs when a model is made, stays on the CPU.
//
// TFQUANT_GPU_KERNELS_ON=DEVICE_CPU registers them for the CPU instead, for the tests on the
// emulated GPU, whose device memory is the host's.
#include <string>

#include "../core/cuda/cuda_api.h"
#include "checks.h"
#include "xla/stream_executor/stream.h"

#ifndef TFQUANT_GPU_KERNELS_ON
#define TFQUANT_GPU_KERNELS_ON DEVICE_GPU
#endif

namespace tfquant {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::DEVICE_GPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

void* StreamOf(OpKernelContext* ctx) {
  tensorflow::DeviceContext* const device = ctx->op_device_context();
  return device ? device->stream()->platform_specific_handle().stream : nullptr;
}

// The words of the C ABI: about the arguments, which have been checked before, or about the GPU.
absl::Status Launched(int code) {
  return code == 0 ? absl::OkStatus() : absl::FailedPreconditionError(tfquant_cuda_error());
}

template <class T>
class LowbitMatmulGpuOp : public OpKernel {
 public:
  explicit LowbitMatmulGpuOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadMatmul(c, TypeOf<T>(), &args_));
  }

  void Compute(OpKernelContext* ctx) override {
    MatmulArgs args = args_;
    OP_REQUIRES_OK(ctx, BindMatmul(ctx, &args));
    OP_REQUIRES_OK(ctx, Words(CheckSettings(args)));
    OP_REQUIRES_OK(ctx, Words(CheckPackedBytes(args.weights_bytes, args.layout)));
    const PackedLayout& layout = args.layout;
    const int type = static_cast<int>(args.type), mode = static_cast<int>(args.activations);
    const int64_t size = tfquant_cuda_scratch_bytes(type, args.m, layout.num_bits,
                                                    layout.group_size, layout.k, layout.n, mode);
    OP_REQUIRES(ctx, size >= 0, absl::InvalidArgumentError(tfquant_cuda_error()));
    Tensor scratch;
    OP_REQUIRES_OK(ctx, ctx->allocate_temp(tensorflow::DT_UINT8, TensorShape({size}), &scratch));
    OP_REQUIRES_OK(
        ctx, Launched(tfquant_cuda_matmul(
                 type, args.m, args.x, layout.num_bits, layout.group_size, layout.k, layout.n,
                 args.weights, args.weights_bytes, mode, args.x_scale, args.zero_point, args.bias,
                 static_cast<int>(args.fused), args.y, scratch.data(), size, StreamOf(ctx))));
  }

 private:
  MatmulArgs args_;
};

class LowbitUnpackGpuOp : public OpKernel {
 public:
  explicit LowbitUnpackGpuOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadUnpack(c, &layout_));
  }

  void Compute(OpKernelContext* ctx) override {
    const Tensor& weights = ctx->input(0);
    OP_REQUIRES_OK(ctx, Rank(weights, 1, "weights"));
    OP_REQUIRES_OK(ctx, Words(CheckPackedBytes(weights.NumElements(), layout_)));
    Tensor* weight = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({layout_.k, layout_.n}), &weight));
    OP_REQUIRES_OK(ctx,
                   Launched(tfquant_cuda_unpack(layout_.num_bits, layout_.group_size, layout_.k,
                                                layout_.n, weights.data(), weights.NumElements(),
                                                weight->flat<float>().data(), StreamOf(ctx))));
  }

 private:
  PackedLayout layout_;
};

template <class T>
class DequantizeGpuOp : public OpKernel {
 public:
  explicit DequantizeGpuOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadPlain(c, &args_));
    OP_REQUIRES_OK(c, c->GetAttr("columns", &args_.columns));
    args_.type = TypeOf<T>();
  }

  void Compute(OpKernelContext* ctx) override {
    PlainArgs args = args_;
    OP_REQUIRES_OK(ctx, BindDequantize(ctx, &args));
    Tensor* real = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({args.rows, args.columns}), &real));
    OP_REQUIRES_OK(ctx,
                   Launched(tfquant_cuda_dequantize(
                       args.num_bits, args.rows, args.columns, args.row_group, args.column_group,
                       args.packed, args.packed_bytes, args.scale, args.scales, args.zero_point,
                       args.codebook, static_cast<int>(args.type), real->data(), StreamOf(ctx))));
  }

 private:
  PlainArgs args_;
};

class QuantizePackGpuOp : public OpKernel {
 public:
  explicit QuantizePackGpuOp(OpKernelConstruction* c) : OpKernel(c) {
    OP_REQUIRES_OK(c, ReadPlain(c, &args_));
  }

  void Compute(OpKernelContext* ctx) override {
    PlainArgs args = args_;
    OP_REQUIRES_OK(ctx, BindQuantize(ctx, &args));
    const int64_t width = PlainRowBytes(args.columns, args.num_bits);
    Tensor* packed = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, TensorShape({args.rows, width}), &packed));
    OP_REQUIRES_OK(
        ctx, Launched(tfquant_cuda_quantize(args.num_bits, args.rows, args.columns, args.row_group,
                                            args.column_group, ctx->input(0).flat<float>().data(),
                                            args.scale, args.scales, args.zero_point,
                                            packed->data(), args.packed_bytes, StreamOf(ctx))));
  }

 private:
  PlainArgs args_;
};

#define TFQUANT_REGISTER(T)                                                               \
  REGISTER_KERNEL_BUILDER(                                                                \
      Name("Tfquant>LowbitMatmul").Device(TFQUANT_GPU_KERNELS_ON).TypeConstraint<T>("T"), \
      LowbitMatmulGpuOp<T>);                                                              \
  REGISTER_KERNEL_BUILDER(                                                                \
      Name("Tfquant>Dequantize").Device(TFQUANT_GPU_KERNELS_ON).TypeConstraint<T>("T"),   \
      DequantizeGpuOp<T>);
TFQUANT_FOR_REAL_TYPES(TFQUANT_REGISTER)
#undef TFQUANT_REGISTER
REGISTER_KERNEL_BUILDER(Name("Tfquant>LowbitUnpack").Device(TFQUANT_GPU_KERNELS_ON),
                        LowbitUnpackGpuOp);
REGISTER_KERNEL_BUILDER(Name("Tfquant>QuantizePack").Device(TFQUANT_GPU_KERNELS_ON),
                        QuantizePackGpuOp);

}  // namespace
}  // namespace tfquant
