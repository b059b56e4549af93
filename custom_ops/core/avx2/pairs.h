// The operations on 16 lanes as two registers of eight, common to AVX2 and AVX-VNNI. What they lack
// is `Dot`. In an anonymous namespace, like panel_kernels.h and for its reason.
#ifndef TFQUANT_CUSTOM_OPS_CORE_AVX2_PAIRS_H_
#define TFQUANT_CUSTOM_OPS_CORE_AVX2_PAIRS_H_

#include <immintrin.h>

#include "../panel_kernels.h"

// Stops GCC from re-associating a chain of 16-bit additions, after which it spills every product.
#define TFQUANT_KEEP(v) asm("" : "+x"(v))

namespace tfquant {
namespace {

struct Pairs {
  static constexpr bool kUnsignedWeights = true;
  static constexpr int kPanels = 1, kGemvPanels = 4, kMaxRowSize = 2, kMaxGroupedRowSize = 2;

  struct Sum {
    __m256i a, b;
  };
  struct Real {
    __m256 a, b;
  };
  using Row = Sum;

  static __m256i Load(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static Sum Splat(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static Sum LoadSum(const int32_t* from) { return {Load(from), Load(from + 8)}; }
  static void StoreSum(int32_t* to, Sum s) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), s.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), s.b);
  }
  static Real ToReal(Sum s) { return {_mm256_cvtepi32_ps(s.a), _mm256_cvtepi32_ps(s.b)}; }
  static Real SplatReal(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Real LoadReal(const float* from) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static void StoreReal(float* to, Real r) {
    _mm256_storeu_ps(to, r.a);
    _mm256_storeu_ps(to + 8, r.b);
  }
  static Real Mul(Real x, Real y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static Real Fma(Real x, Real y, Real z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static Real HalfScales(const uint8_t* from) {
    const __m128i* const halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static Row LoadRow(const uint8_t* from) { return {Load(from), Load(from + 32)}; }

  static __m256i Four(const int8_t* x) {
    int32_t bits;
    memcpy(&bits, x, 4);
    return _mm256_set1_epi32(bits);
  }

  template <int kBits>
  static __m256i Part(__m256i row, int part) {
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
    if (kBits == 8) return row;
    if (part == 0) return _mm256_and_si256(row, mask);
    return _mm256_and_si256(_mm256_srli_epi16(row, part * kBits), mask);
  }

  template <int kBits>
  static void Unpack(const uint8_t* block, uint8_t* bytes) {
    for (int row = 0; row < kBits; ++row, block += kRowBytes) {
      const Row packed = LoadRow(block);
#pragma GCC unroll 4
      for (int part = 0; part < 8 / kBits; ++part, bytes += kRowBytes) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), Part<kBits>(packed.a, part));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 32), Part<kBits>(packed.b, part));
      }
    }
  }

  template <int kBits>
  static inline __attribute__((always_inline)) Real Value(Row row, int index) {
    const int shift = 8 * (index % 4) + kBits * (index / 4);
    const __m256i mask = _mm256_set1_epi32((1 << kBits) - 1);
    const __m256 offset = _mm256_set1_ps(static_cast<float>(Offset(kBits)));
    const __m256i a = _mm256_and_si256(_mm256_srli_epi32(row.a, shift), mask);
    const __m256i b = _mm256_and_si256(_mm256_srli_epi32(row.b, shift), mask);
    return {_mm256_sub_ps(_mm256_cvtepi32_ps(a), offset),
            _mm256_sub_ps(_mm256_cvtepi32_ps(b), offset)};
  }

  // For a fixed nibble of the activations the 16 possible weight nibbles have 16 population counts:
  // one byte shuffle does 4 bits of 32 columns. The code of a byte is its two nibbles' tables.
  struct Tables {
    uint8_t differ[16][32];
  };
  static constexpr Tables MakeTables() {
    Tables t = {};
    for (int x = 0; x < 16; ++x) {
      for (int w = 0; w < 32; ++w) {
        const int d = x ^ (w & 15);
        t.differ[x][w] = static_cast<uint8_t>((d & 1) + (d >> 1 & 1) + (d >> 2 & 1) + (d >> 3));
      }
    }
    return t;
  }
  static uint32_t EncodeByte(uint32_t byte) { return (byte & 15u) | (byte >> 4) << 16; }

  template <int kRows>
  static void BinaryTile(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    static constexpr Tables kTables = MakeTables();
    const __m256i nibble = _mm256_set1_epi8(15);
    while (depth > 0) {
      const int64_t count = Min(depth, 31);  // 31 counts of at most 8 fit a byte
      __m256i bytes[kRows][2];
      for (int m = 0; m < kRows; ++m) bytes[m][0] = bytes[m][1] = _mm256_setzero_si256();
      for (int64_t k = 0; k < count; ++k, weights += kRowBytes, x += kRows) {
        const __m256i w[2] = {Load(weights), Load(weights + 32)};
        const __m256i low_nibble[2] = {_mm256_and_si256(w[0], nibble),
                                       _mm256_and_si256(w[1], nibble)};
        const __m256i high_nibble[2] = {_mm256_and_si256(_mm256_srli_epi16(w[0], 4), nibble),
                                        _mm256_and_si256(_mm256_srli_epi16(w[1], 4), nibble)};
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const __m256i low_table = Load(kTables.differ[x[m] & 15u]);
          const __m256i high_table = Load(kTables.differ[x[m] >> 16]);
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            bytes[m][i] =
                _mm256_add_epi8(bytes[m][i], _mm256_shuffle_epi8(low_table, low_nibble[i]));
            TFQUANT_KEEP(bytes[m][i]);
            bytes[m][i] =
                _mm256_add_epi8(bytes[m][i], _mm256_shuffle_epi8(high_table, high_nibble[i]));
            TFQUANT_KEEP(bytes[m][i]);
          }
        }
      }
      for (int m = 0; m < kRows; ++m) {
        int32_t* const to = sum + m * kBinaryPanelColumns;
        for (int i = 0; i < 2; ++i) {
          for (int j = 0; j < 4; ++j) {
            const __m128i half = j < 2 ? _mm256_castsi256_si128(bytes[m][i])
                                       : _mm256_extracti128_si256(bytes[m][i], 1);
            const __m256i wide = _mm256_cvtepu8_epi32(j % 2 ? _mm_srli_si128(half, 8) : half);
            __m256i* const at = reinterpret_cast<__m256i*>(to + i * 32 + j * 8);
            _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), wide));
          }
        }
      }
      depth -= count;
    }
  }

  static void Fence() {}
  template <int kBits>
  static int64_t DequantizeRun(const DequantizeArgs& a, int64_t at, int64_t count,
                               const float* base, float scale, float zero_point) {
    return PlainRun<kBits>(a, at, count, base, scale, zero_point);
  }
  template <int kBits>
  static int64_t DequantizeColumns(const DequantizeArgs& a, int64_t count, const float*) {
    return PlainColumns<kBits>(a, count);
  }
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_AVX2_PAIRS_H_
