// The GPU kernels of the ops: core/cuda with TensorFlow's stream. Plain C++: no CUDA header is
// needed to compile it and no CUDA library to load it; without a GPU nobody asks for these kernels.
// Tfquant>LowbitPack, which runs when a model is made, stays on the CPU.
//
// TFQUANT_GPU_KERNELS_ON=DEVICE_CPU registers them for the CPU instead, for the tests on the
// emulated GPU, whose device memory is the host's.
#include <string>

#include "../core/cuda/cuda_api.h"
#include "op_kernels.h"
#include "xla/stream_executor/stream.h"

#ifndef TFQUANT_GPU_KERNELS_ON
#define TFQUANT_GPU_KERNELS_ON DEVICE_GPU
#endif

namespace tfquant {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::DEVICE_GPU;
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

// See op_kernels.h.
struct Gpu {
  absl::Status Start(OpKernelConstruction*) const { return absl::OkStatus(); }

  absl::Status Matmul(OpKernelContext* ctx, const MatmulArgs& args) const {
    const PackedLayout& layout = args.layout;
    const int type = static_cast<int>(args.type), mode = static_cast<int>(args.activations);
    const int64_t size = tfquant_cuda_scratch_bytes(type, args.m, layout.num_bits,
                                                    layout.group_size, layout.k, layout.n, mode);
    if (size < 0) return absl::InvalidArgumentError(tfquant_cuda_error());
    Tensor scratch;
    TF_RETURN_IF_ERROR(ctx->allocate_temp(tensorflow::DT_UINT8, TensorShape({size}), &scratch));
    return Launched(tfquant_cuda_matmul(
        type, args.m, args.x, layout.num_bits, layout.group_size, layout.k, layout.n, args.weights,
        args.weights_bytes, mode, args.x_scale, args.zero_point, args.bias,
        static_cast<int>(args.fused), args.y, scratch.data(), size, StreamOf(ctx)));
  }

  absl::Status Unpack(OpKernelContext* ctx, const PackedLayout& layout, const uint8_t* weights,
                      float* weight) const {
    return Launched(tfquant_cuda_unpack(layout.num_bits, layout.group_size, layout.k, layout.n,
                                        weights, layout.bytes(), weight, StreamOf(ctx)));
  }

  absl::Status Dequantize(OpKernelContext* ctx, const PlainArgs& args) const {
    return Launched(tfquant_cuda_dequantize(args.num_bits, args.rows, args.columns, args.row_group,
                                            args.column_group, args.packed, args.packed_bytes,
                                            args.scale, args.scales, args.zero_point, args.codebook,
                                            static_cast<int>(args.type), args.real, StreamOf(ctx)));
  }

  absl::Status Quantize(OpKernelContext* ctx, const PlainArgs& args, const float* x,
                        uint8_t* packed) const {
    return Launched(tfquant_cuda_quantize(
        args.num_bits, args.rows, args.columns, args.row_group, args.column_group, x, args.scale,
        args.scales, args.zero_point, packed, args.packed_bytes, StreamOf(ctx)));
  }
};

TFQUANT_REGISTER_KERNELS(TFQUANT_GPU_KERNELS_ON, Gpu);

}  // namespace
}  // namespace tfquant
