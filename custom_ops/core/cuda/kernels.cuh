// Device code of the GPU path. No header is included, so that NVRTC compiles this file as it is,
// and nvcc does too. The formats are those of ../blocks.h, the meaning that of
// ../reference_matmul.h.
//
// All matmul kernels share one shape: a block of 256 threads owns one panel and kRows rows of x.
// Thread t reads column t % 16 of every 16th row of 64 bytes, so a warp reads 128 bytes in a piece;
// the 16 partial sums of a column meet in shared memory. That is a matrix-vector product that reads
// each weight once for kRows rows; it is not a tensor-core GEMM.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_

namespace tfquant {

typedef unsigned char Byte;
typedef long long Index;

constexpr int kThreads = 256;
constexpr int kSlices = 16;  // threads that share a column
constexpr int kColumns = 16;
constexpr int kRowBytesOnDevice = 64;
constexpr int kRows = 4;

__device__ __forceinline__ float HalfAt(const Byte* at) {
  const unsigned short bits = *reinterpret_cast<const unsigned short*>(at);
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// A packed panel: where its rows of 64 bytes and their scales lie.
struct Panel {
  const Byte* at;
  Index rows;        // of 64 bytes, without the scales
  Index group_rows;  // rows that share a scale; 0: per channel
  Index group_bytes;

  __device__ __forceinline__ const Byte* Row(Index r) const {
    return group_rows ? at + r / group_rows * group_bytes + r % group_rows * kRowBytesOnDevice
                      : at + r * kRowBytesOnDevice;
  }
  __device__ __forceinline__ float Scale(Index r, int column) const {
    if (!group_rows) return 1.0f;
    return HalfAt(at + r / group_rows * group_bytes + group_rows * kRowBytesOnDevice + 2 * column);
  }
};

struct MatmulShape {
  Index m, k, padded_k, n;
  int num_bits;
  Index group_size, panel_bytes;
  const Byte* panels;
  const float* column_scale;
  const float* bias;  // or null
};

__device__ __forceinline__ Panel PanelOf(const MatmulShape& s, Index index) {
  const Index group_rows = s.group_size / 32 * s.num_bits;
  return {s.panels + index * s.panel_bytes, s.padded_k / 32 * s.num_bits, group_rows,
          group_rows * kRowBytesOnDevice + 32};
}

// Adds the slices of a column; the result is valid in slice 0.
template <class T>
__device__ __forceinline__ T AddSlices(T value, T* shared) {
  const int column = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  __syncthreads();
  shared[slice * kColumns + column] = value;
  __syncthreads();
  T sum = 0;
  if (slice == 0) {
    for (int i = 0; i < kSlices; ++i) sum += shared[i * kColumns + column];
  }
  return sum;
}

// y = x . w with float activations: w4a16 and w8a16.
template <int kBits>
__device__ __forceinline__ void RealMatmul(const MatmulShape& s, const float* x, float* y) {
  __shared__ float shared[kThreads];
  const int column = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  const Panel panel = PanelOf(s, blockIdx.x);
  const Index first = static_cast<Index>(blockIdx.y) * kRows;
  float sum[kRows] = {};
  for (Index r = slice; r < panel.rows; r += kSlices) {
    const unsigned word = *reinterpret_cast<const unsigned*>(panel.Row(r) + 4 * column);
    const float scale = panel.Scale(r, column);
    const Index k0 = r * (32 / kBits);
    float part[kRows] = {};
#pragma unroll
    for (int i = 0; i < 32 / kBits; ++i) {
      const int shift = 8 * (i % 4) + kBits * (i / 4);
      const int v = static_cast<int>((word >> shift) & ((1u << kBits) - 1u)) - (1 << (kBits - 1));
      const Index k = k0 + i;
      if (k < s.k) {
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          if (first + m < s.m) part[m] += static_cast<float>(v) * x[(first + m) * s.k + k];
        }
      }
    }
    for (int m = 0; m < kRows; ++m) sum[m] += part[m] * scale;
  }
  const Index n = static_cast<Index>(blockIdx.x) * kColumns + column;
  for (int m = 0; m < kRows; ++m) {
    const float total = AddSlices(sum[m], shared);
    if (slice == 0 && n < s.n && first + m < s.m) {
      y[(first + m) * s.n + n] = total * s.column_scale[n] + (s.bias ? s.bias[n] : 0.0f);
    }
  }
}

// y = x . w with activations quantized by QuantizeRows: w8a8, w4a8 and w2a8. Sums of a row of the
// panel are exact; per channel everything is.
template <int kBits>
__device__ __forceinline__ void IntegerMatmul(const MatmulShape& s, const signed char* q,
                                              const float* row_scale, float* y) {
  __shared__ float shared[kThreads];
  __shared__ int shared_integers[kThreads];
  const int column = threadIdx.x % kColumns, slice = threadIdx.x / kColumns;
  const Panel panel = PanelOf(s, blockIdx.x);
  const Index first = static_cast<Index>(blockIdx.y) * kRows;
  constexpr int kParts = 8 / kBits;
  constexpr unsigned kMask = kBits == 8 ? 0xffffffffu : (kBits == 4 ? 0x0f0f0f0fu : 0x03030303u);
  constexpr unsigned kOffset = kBits == 8 ? 0x80808080u : (kBits == 4 ? 0x08080808u : 0x02020202u);
  int integers[kRows] = {};
  float sum[kRows] = {};
  for (Index r = slice; r < panel.rows; r += kSlices) {
    const unsigned word = *reinterpret_cast<const unsigned*>(panel.Row(r) + 4 * column);
    int part[kRows] = {};
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      // Four signed bytes: the stored offset is taken away byte by byte.
      const int four = static_cast<int>(__vsub4((word >> (p * kBits)) & kMask, kOffset));
      const Index k = (r * kParts + p) * 4;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (first + m < s.m) {
          const int x = *reinterpret_cast<const int*>(q + (first + m) * s.padded_k + k);
          part[m] = __dp4a(four, x, part[m]);
        }
      }
    }
    if (s.group_size) {
      const float scale = panel.Scale(r, column);
      for (int m = 0; m < kRows; ++m) sum[m] += static_cast<float>(part[m]) * scale;
    } else {
      for (int m = 0; m < kRows; ++m) integers[m] += part[m];
    }
  }
  const Index n = static_cast<Index>(blockIdx.x) * kColumns + column;
  for (int m = 0; m < kRows; ++m) {
    const float total = s.group_size ? AddSlices(sum[m], shared)
                                     : static_cast<float>(AddSlices(integers[m], shared_integers));
    if (slice == 0 && n < s.n && first + m < s.m) {
      y[(first + m) * s.n + n] =
          total * row_scale[first + m] * s.column_scale[n] + (s.bias ? s.bias[n] : 0.0f);
    }
  }
}

}  // namespace tfquant

extern "C" {

#define TFQUANT_MATMUL_KERNELS(bits)                                                             \
  __global__ void tfquant_real_matmul_##bits(tfquant::MatmulShape s, const float* x, float* y) { \
    tfquant::RealMatmul<bits>(s, x, y);                                                          \
  }                                                                                              \
  __global__ void tfquant_integer_matmul_##bits(tfquant::MatmulShape s, const signed char* q,    \
                                                const float* row_scale, float* y) {              \
    tfquant::IntegerMatmul<bits>(s, q, row_scale, y);                                            \
  }
TFQUANT_MATMUL_KERNELS(8)
TFQUANT_MATMUL_KERNELS(4)
TFQUANT_MATMUL_KERNELS(2)
#undef TFQUANT_MATMUL_KERNELS

// One block of 256 threads a row: q[m, padded_k] and its scale; see Activations::kPerRow.
__global__ void tfquant_quantize_rows(const float* x, long long k, long long padded_k,
                                      signed char* q, float* row_scale) {
  __shared__ unsigned shared[256];
  const float* const row = x + blockIdx.x * k;
  unsigned largest = 0;
  for (long long i = threadIdx.x; i < k; i += 256) {
    const unsigned bits = __float_as_uint(row[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  shared[threadIdx.x] = largest;
  __syncthreads();
  for (int step = 128; step > 0; step /= 2) {
    if (threadIdx.x < step && shared[threadIdx.x + step] > shared[threadIdx.x]) {
      shared[threadIdx.x] = shared[threadIdx.x + step];
    }
    __syncthreads();
  }
  const bool finite = shared[0] < 0x7f800000u;
  float scale = __fdiv_rn(__uint_as_float(shared[0]), 127.0f);
  if (scale < 1.17549435e-38f) scale = 0.0f;
  const float inverse = finite && scale > 0.0f ? __fdiv_rn(1.0f, scale) : 0.0f;
  if (threadIdx.x == 0) row_scale[blockIdx.x] = finite ? scale : __uint_as_float(0x7fc00000u);
  for (long long i = threadIdx.x; i < padded_k; i += 256) {
    const float v = i < k && finite ? __fmul_rn(row[i], inverse) : 0.0f;
    q[blockIdx.x * padded_k + i] = static_cast<signed char>(__float2int_rn(v));
  }
}

// 1-bit weights: a block of 64 threads owns a panel of 64 columns and one row of x.
__global__ void tfquant_binary_matmul(const unsigned char* panels, const float* column_scale,
                                      const float* bias, const float* x, long long k,
                                      long long padded_k, long long n, float* y) {
  const long long column = blockIdx.x * 64ll + threadIdx.x;
  const unsigned char* const panel = panels + blockIdx.x * (padded_k / 8 * 64) + threadIdx.x;
  const float* const row = x + blockIdx.y * k;
  int differ = 0;
  __shared__ unsigned char signs[64];
  for (long long base = 0; base < padded_k / 8; base += 64) {
    unsigned byte = 0;
    for (int i = 0; i < 8; ++i) {
      const long long at = (base + threadIdx.x) * 8 + i;
      byte |= (at < k && row[at] < 0.0f ? 1u : 0u) << i;
    }
    __syncthreads();
    signs[threadIdx.x] = static_cast<unsigned char>(byte);
    __syncthreads();
    for (long long r = 0; r < 64 && base + r < padded_k / 8; ++r) {
      differ += __popc(static_cast<unsigned>(panel[(base + r) * 64] ^ signs[r]));
    }
  }
  if (column < n) {
    y[blockIdx.y * n + column] =
        static_cast<float>(k - 2ll * differ) * column_scale[column] + (bias ? bias[column] : 0.0f);
  }
}

// Plain rows: out = scale * (v - zero_point), or scale * codebook[v]; one thread a value.
__global__ void tfquant_dequantize(const unsigned char* packed, int num_bits, long long rows,
                                   long long columns, long long row_bytes, long long row_group,
                                   long long column_group, long long scales_in_row,
                                   const float* scale, const float* zero_point,
                                   const float* codebook, float* out) {
  const long long at = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
  if (at >= rows * columns) return;
  const long long r = at / columns, c = at % columns, in_byte = 8 / num_bits;
  const unsigned byte = packed[r * row_bytes + c / in_byte];
  const unsigned v = (byte >> (c % in_byte * num_bits)) & ((1u << num_bits) - 1u);
  const long long g = r / row_group * scales_in_row + c / column_group;
  const float zero = zero_point ? zero_point[g] : static_cast<float>(1u << (num_bits - 1));
  out[at] = scale[g] * (codebook ? codebook[v] : static_cast<float>(v) - zero);
}

}  // extern "C"

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_
