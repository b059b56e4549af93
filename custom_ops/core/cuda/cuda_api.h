/* The C ABI of the GPU path: device pointers and a stream (a cudaStream_t), no TensorFlow.
 * Functions return a cudaError_t, 0 for success; launches are asynchronous. `weights` is a packed
 * buffer of
 * ../blocks.h on the device, whose numbers the caller has checked (tfquant_packed_bytes). */
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_CUDA_API_H_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_CUDA_API_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int tfquant_cuda_abi_version(void);

/* Float activations, 8, 4 or 2 bits. bias may be null. */
int tfquant_cuda_real_matmul(int num_bits, int64_t group_size, int64_t m, int64_t k, int64_t n,
                             const void* weights, const float* x, const float* bias, float* y,
                             void* stream);
/* Activations quantized per row inside; `q` has m * padded_k bytes and `row_scale` m floats. */
int tfquant_cuda_integer_matmul(int num_bits, int64_t group_size, int64_t m, int64_t k, int64_t n,
                                const void* weights, const float* x, const float* bias, void* q,
                                float* row_scale, float* y, void* stream);
int tfquant_cuda_binary_matmul(int64_t m, int64_t k, int64_t n, const void* weights, const float* x,
                               const float* bias, float* y, void* stream);
/* zero_point and codebook may be null. */
int tfquant_cuda_dequantize(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                            int64_t column_group, const void* packed, const float* scale,
                            const float* zero_point, const float* codebook, float* out,
                            void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TFQUANT_CUSTOM_OPS_CORE_CUDA_CUDA_API_H_ */
