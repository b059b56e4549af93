// Launches by the CUDA runtime: every kernel of kernel_list.h compiled by nvcc, for a library that
// needs no TensorFlow. custom_ops/tests/gpu_check.py builds it.
#include <cuda_runtime.h>

#include <map>
#include <string>

#include "kernel_list.h"
#include "launch.h"
// clang-format off
#include "intrinsics.cuh"
#include "kernels.cuh"
// clang-format on

namespace tfquant {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(kGpuThreads) Entry(const GpuArguments arguments) {
  Kernel::Run(arguments);
}

}  // namespace

std::string LaunchKernel(const std::string& kernel, int64_t blocks, const GpuArguments& arguments,
                         void* stream) {
#define TFQUANT_ENTRY(...) {#__VA_ARGS__, reinterpret_cast<const void*>(&Entry<__VA_ARGS__>)},
  static const auto* const kernels =
      new std::map<std::string, const void*>{TFQUANT_GPU_KERNELS(TFQUANT_ENTRY)};
#undef TFQUANT_ENTRY
  const auto found = kernels->find(kernel);
  if (found == kernels->end()) return "There is no GPU kernel " + kernel + ".";
  GpuArguments copy = arguments;
  void* list[] = {&copy};
  const cudaError_t code =
      cudaLaunchKernel(found->second, dim3(static_cast<unsigned>(blocks)), dim3(kGpuThreads), list,
                       0, static_cast<cudaStream_t>(stream));
  return code == cudaSuccess ? "" : kernel + ": " + cudaGetErrorString(code);
}

std::string DescribeGpu() {
  int count = 0, runtime = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(code);
  cudaRuntimeGetVersion(&runtime);
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return "no GPU";
  return std::string(properties.name) + ", kernels compiled by nvcc, CUDA " +
         std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10);
}

}  // namespace tfquant
