// What launches.cc needs of a way to run kernels. A library links one of them: nvcc_launch.cu (the
// CUDA runtime), nvrtc_launch.cc (the driver, and NVRTC when a kernel is first wanted), or the
// emulator of ../../tests.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_LAUNCH_H_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_LAUNCH_H_

#include <cstdint>
#include <string>

// clang-format off
#include "../settings.h"
#include "arguments.h"  // reads it
// clang-format on

namespace tfquant {

// Starts `blocks` blocks of a kernel of kernel_list.h on a stream (a CUstream or cudaStream_t; null
// is the default one) and does not wait. Returns what went wrong, in words, or "".
std::string LaunchKernel(const std::string& kernel, int64_t blocks, const GpuArguments& arguments,
                         void* stream);

// One line: what there is to run kernels with, and what is missing.
std::string DescribeGpu();

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_LAUNCH_H_
