// Device code of the GPU path: its parts, in the order in which each builds on those before. A part
// includes nothing and reads arguments.h and intrinsics.cuh before it, so that NVRTC, nvcc and (for
// the emulator) g++ compile it as it is; NVRTC, which has no files, gets the same list from
// nvrtc_launch.cc. Formats: ../blocks.h; meaning: ../reference_matmul.h, ../dequantize.h; which
// kernel runs when: launches.cc.
//
// A kernel is a struct whose Run() a block of kGpuThreads threads calls; kernel_list.h names them
// all. Sums are taken in an order that depends on the shape alone, so results repeat.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_

// clang-format off
#include "parts/values.cuh"
#include "parts/output.cuh"
#include "parts/rows.cuh"
#include "parts/weights.cuh"
#include "parts/forms.cuh"
#include "parts/gemm.cuh"
#include "parts/skinny.cuh"
#include "parts/gemv.cuh"
#include "parts/binary.cuh"
#include "parts/plain.cuh"
// clang-format on

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_
