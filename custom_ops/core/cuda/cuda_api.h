/* The C ABI of the GPU path: device pointers and a stream (CUstream, cudaStream_t; null is the
 * default one), no TensorFlow. Enumerations and meaning are those of ../c_api.h; launches do not
 * wait for the device.
 *
 * Functions return 0, or -1 after which tfquant_cuda_error() of the same thread says what was
 * wrong. Numbers and sizes are checked. What lies in the device's memory is not, it would take a
 * wait: a packed buffer whose header says otherwise gives NaN, and a scale that is not positive and
 * finite is used as it is. */
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_CUDA_API_H_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_CUDA_API_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int tfquant_cuda_abi_version(void);
const char* tfquant_cuda_error(void);
/* One line: what there is to run kernels with, and what is missing. */
const char* tfquant_cuda_describe(void);
/* Name of kernel 0, 1, ...; null behind the last. */
const char* tfquant_cuda_kernel_name(int index);

/* Bytes of device memory that tfquant_cuda_matmul needs as `scratch`; -1 on an error. */
int64_t tfquant_cuda_scratch_bytes(int type, int64_t m, int num_bits, int64_t group_size, int64_t k,
                                   int64_t n, int activations);
/* `weights` and `scratch` must start on a multiple of 16 bytes; bias may be null. */
int tfquant_cuda_matmul(int type, int64_t m, const void* x, int num_bits, int64_t group_size,
                        int64_t k, int64_t n, const void* weights, int64_t weights_bytes,
                        int activations, float x_scale, int zero_point, const float* bias,
                        int fused, void* y, void* scratch, int64_t scratch_bytes, void* stream);
/* weight[k, n] = q * scale, float32. */
int tfquant_cuda_unpack(int num_bits, int64_t group_size, int64_t k, int64_t n, const void* weights,
                        int64_t weights_bytes, float* weight, void* stream);
/* zero_point and codebook may be null. */
int tfquant_cuda_dequantize(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                            int64_t column_group, const void* packed, int64_t packed_bytes,
                            const float* scale, int64_t scales, const float* zero_point,
                            const float* codebook, int type, void* out, void* stream);
int tfquant_cuda_quantize(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                          int64_t column_group, const float* x, const float* scale, int64_t scales,
                          const float* zero_point, void* packed, int64_t packed_bytes,
                          void* stream);

#ifdef __cplusplus
}
#endif

#endif /* TFQUANT_CUSTOM_OPS_CORE_CUDA_CUDA_API_H_ */
