// The kernels of kernels.cuh, by the names with which launches.cc asks for them.
//
// nvcc and the emulator compile all of them; NVRTC compiles each when it is first wanted.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNEL_LIST_H_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNEL_LIST_H_

// clang-format off

// `tiles` is kSkinnyTiles or kSplitSkinnyTiles of arguments.h.
#define TFQUANT_FORM_KERNELS(kernel, tiles, ...) \
  kernel(Gemm<__VA_ARGS__, false>)               \
  kernel(Gemm<__VA_ARGS__, true>)                \
  kernel(Skinny<__VA_ARGS__, false, 1>)          \
  kernel(Skinny<__VA_ARGS__, true, 1>)           \
  kernel(Skinny<__VA_ARGS__, false, tiles>)      \
  kernel(Skinny<__VA_ARGS__, true, tiles>)

#define TFQUANT_MATMUL_KERNELS(kernel, bits)     \
  TFQUANT_FORM_KERNELS(kernel, 4, Integer<bits>) \
  TFQUANT_FORM_KERNELS(kernel, 4, Real<bits, 1>) \
  TFQUANT_FORM_KERNELS(kernel, 2, Real<bits, 3>) \
  kernel(IntegerGemv<bits, 1>)                   \
  kernel(IntegerGemv<bits, 4>)                   \
  kernel(RealGemv<bits, 1, false>)               \
  kernel(RealGemv<bits, 1, true>)                \
  kernel(RealGemv<bits, 4, false>)               \
  kernel(RealGemv<bits, 4, true>)

#define TFQUANT_PLAIN_KERNELS(kernel, bits) \
  kernel(UnpackWeights<bits>)               \
  kernel(Dequantize<bits>)                  \
  kernel(QuantizePack<bits>)

#define TFQUANT_GPU_KERNELS(kernel) \
  kernel(QuantizeRows)              \
  kernel(SplitRows<1>)              \
  kernel(SplitRows<3>)              \
  kernel(EncodeSigns)               \
  kernel(BinaryGemv<1>)             \
  kernel(BinaryGemv<4>)             \
  kernel(BinaryGemm)                \
  TFQUANT_MATMUL_KERNELS(kernel, 8) \
  TFQUANT_MATMUL_KERNELS(kernel, 4) \
  TFQUANT_MATMUL_KERNELS(kernel, 2) \
  TFQUANT_PLAIN_KERNELS(kernel, 8)  \
  TFQUANT_PLAIN_KERNELS(kernel, 4)  \
  TFQUANT_PLAIN_KERNELS(kernel, 2)  \
  TFQUANT_PLAIN_KERNELS(kernel, 1)

// clang-format on

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNEL_LIST_H_
