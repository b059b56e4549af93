/* The C ABI of core, for tests, benchmarks and hosts without TensorFlow; a language away by ctypes.
 *
 * Functions return 0, or -1 after which tfquant_error() of the same thread says what was wrong.
 * Enumerations are the integers of settings.h; `path` is a name or null for the chosen one. Sizes
 * of buffers are checked; the buffers themselves are the caller's to get right. */
#ifndef TFQUANT_CUSTOM_OPS_CORE_C_API_H_
#define TFQUANT_CUSTOM_OPS_CORE_C_API_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int tfquant_abi_version(void);
const char* tfquant_error(void);

/* Name of path 0, 1, ...; null behind the last. */
const char* tfquant_path_name(int index);
int tfquant_path_supported(int index);
/* The path that runs, or null when TFQUANT_PATH is wrong. */
const char* tfquant_chosen_path(void);

int64_t tfquant_packed_bytes(int num_bits, int64_t group_size, int64_t k, int64_t n);
int tfquant_pack(int num_bits, int64_t group_size, int64_t k, int64_t n, const int8_t* q,
                 const float* scale, uint8_t* out);
int tfquant_unpack(int num_bits, int64_t group_size, int64_t k, int64_t n, const uint8_t* weights,
                   int64_t weights_bytes, int8_t* q, float* scale);

int tfquant_matmul(const char* path, int threads, int type, int64_t m, const void* x, int num_bits,
                   int64_t group_size, int64_t k, int64_t n, const uint8_t* weights,
                   int64_t weights_bytes, int activations, float x_scale, int zero_point,
                   const float* bias, int fused, void* y);

int tfquant_dequantize(const char* path, int threads, int num_bits, int64_t rows, int64_t columns,
                       int64_t row_group, int64_t column_group, const uint8_t* packed,
                       int64_t packed_bytes, const float* scale, int64_t scales,
                       const float* zero_point, const float* codebook, int type, void* out);
int tfquant_quantize(int threads, int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                     int64_t column_group, const float* x, const float* scale, int64_t scales,
                     const float* zero_point, uint8_t* packed, int64_t packed_bytes);

#ifdef __cplusplus
}
#endif

#endif /* TFQUANT_CUSTOM_OPS_CORE_C_API_H_ */
