// Launches of kernels.cuh behind the C ABI of cuda_api.h.
#include <cuda_runtime.h>

#include "../blocks.h"
#include "cuda_api.h"
#include "kernels.cuh"

namespace {

tfquant::MatmulShape ShapeOf(const tfquant::PackedLayout& layout, int64_t m, const void* weights,
                             const float* bias) {
  const tfquant::Byte* const at = static_cast<const tfquant::Byte*>(weights);
  return {m,
          layout.k,
          layout.padded_k(),
          layout.n,
          layout.num_bits,
          layout.group_size,
          layout.panel_bytes(),
          at + layout.panels_offset(),
          reinterpret_cast<const float*>(at + layout.column_scale_offset()),
          bias};
}

dim3 GridOf(const tfquant::PackedLayout& layout, int64_t m) {
  return dim3(static_cast<unsigned>(layout.panels()),
              static_cast<unsigned>((m + tfquant::kRows - 1) / tfquant::kRows));
}

}  // namespace

int tfquant_cuda_abi_version(void) { return 1; }

int tfquant_cuda_real_matmul(int num_bits, int64_t group_size, int64_t m, int64_t k, int64_t n,
                             const void* weights, const float* x, const float* bias, float* y,
                             void* stream) {
  if (m == 0) return 0;
  const tfquant::PackedLayout layout = {num_bits, group_size, k, n};
  const tfquant::MatmulShape shape = ShapeOf(layout, m, weights, bias);
  const dim3 grid = GridOf(layout, m);
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (num_bits) {
    case 8:
      tfquant_real_matmul_8<<<grid, tfquant::kThreads, 0, s>>>(shape, x, y);
      break;
    case 4:
      tfquant_real_matmul_4<<<grid, tfquant::kThreads, 0, s>>>(shape, x, y);
      break;
    case 2:
      tfquant_real_matmul_2<<<grid, tfquant::kThreads, 0, s>>>(shape, x, y);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

int tfquant_cuda_integer_matmul(int num_bits, int64_t group_size, int64_t m, int64_t k, int64_t n,
                                const void* weights, const float* x, const float* bias, void* q,
                                float* row_scale, float* y, void* stream) {
  if (m == 0) return 0;
  const tfquant::PackedLayout layout = {num_bits, group_size, k, n};
  const tfquant::MatmulShape shape = ShapeOf(layout, m, weights, bias);
  const dim3 grid = GridOf(layout, m);
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  signed char* const bytes = static_cast<signed char*>(q);
  tfquant_quantize_rows<<<static_cast<unsigned>(m), 256, 0, s>>>(x, k, layout.padded_k(), bytes,
                                                                 row_scale);
  switch (num_bits) {
    case 8:
      tfquant_integer_matmul_8<<<grid, tfquant::kThreads, 0, s>>>(shape, bytes, row_scale, y);
      break;
    case 4:
      tfquant_integer_matmul_4<<<grid, tfquant::kThreads, 0, s>>>(shape, bytes, row_scale, y);
      break;
    case 2:
      tfquant_integer_matmul_2<<<grid, tfquant::kThreads, 0, s>>>(shape, bytes, row_scale, y);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

int tfquant_cuda_binary_matmul(int64_t m, int64_t k, int64_t n, const void* weights, const float* x,
                               const float* bias, float* y, void* stream) {
  if (m == 0) return 0;
  const tfquant::PackedLayout layout = {1, 0, k, n};
  const tfquant::MatmulShape shape = ShapeOf(layout, m, weights, bias);
  const dim3 grid(static_cast<unsigned>(layout.panels()), static_cast<unsigned>(m));
  tfquant_binary_matmul<<<grid, 64, 0, static_cast<cudaStream_t>(stream)>>>(
      shape.panels, shape.column_scale, bias, x, k, layout.padded_k(), n, y);
  return cudaGetLastError();
}

int tfquant_cuda_dequantize(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                            int64_t column_group, const void* packed, const float* scale,
                            const float* zero_point, const float* codebook, float* out,
                            void* stream) {
  if (rows * columns == 0) return 0;
  const int64_t row_bytes = (columns * num_bits + 7) / 8;
  const int64_t scales = (columns + column_group - 1) / column_group;
  const unsigned blocks = static_cast<unsigned>((rows * columns + 255) / 256);
  tfquant_dequantize<<<blocks, 256, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const unsigned char*>(packed), num_bits, rows, columns, row_bytes, row_group,
      column_group, scales, scale, zero_point, codebook, out);
  return cudaGetLastError();
}
