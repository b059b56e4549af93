// AVX512 with VNNI, VBMI-free: F, BW, DQ, VL, VNNI; the 1-bit tiles also want BITALG (Ice Lake, Zen
// 4). A panel's row of 64 bytes is one register; vpdpbusd multiplies it with four values of k.
#include "../panel_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace tfquant {
namespace {

struct Avx512 {
  static constexpr bool kUnsignedWeights = true;
  static constexpr int kPanels = 2, kGemvPanels = 4, kMaxRowSize = 3, kMaxGroupedRowSize = 2;
  static constexpr bool kOwnTiles = false, kOwnRealGemv = false;
  static constexpr bool kStagesBinary = false;
  static constexpr int kBinaryStretch = 256, kSignRows = 1;

  using Sum = __m512i;
  using Real = __m512;
  using Row = __m512i;

  static Sum Splat(int32_t value) { return _mm512_set1_epi32(value); }
  static Sum LoadSum(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void StoreSum(int32_t* to, Sum s) { _mm512_storeu_si512(to, s); }
  static Real ToReal(Sum s) { return _mm512_cvtepi32_ps(s); }
  static Real SplatReal(float value) { return _mm512_set1_ps(value); }
  static Real LoadReal(const float* from) { return _mm512_loadu_ps(from); }
  static void StoreReal(float* to, Real r) { _mm512_storeu_ps(to, r); }
  static void StreamReal(float* to, Real r) { _mm512_stream_ps(to, r); }
  static Real Mul(Real a, Real b) { return _mm512_mul_ps(a, b); }
  static Real Fma(Real a, Real b, Real c) { return _mm512_fmadd_ps(a, b, c); }
  static Real HalfScales(const uint8_t* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Row LoadRow(const uint8_t* from) { return _mm512_loadu_si512(from); }

  static __m512i Four(const int8_t* x) {
    int32_t bits;
    memcpy(&bits, x, 4);
    return _mm512_set1_epi32(bits);
  }

  // The part-th value of every byte.
  template <int kBits>
  static __m512i Part(__m512i row, int part) {
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    if (kBits == 8) return row;
    if (part == 0) return _mm512_and_si512(row, mask);
    return _mm512_and_si512(_mm512_srli_epi16(row, static_cast<unsigned>(part * kBits)), mask);
  }

  template <int kBits, bool kPacked, int kRows, int kCount>
  static inline __attribute__((always_inline)) void Dot(const uint8_t* const (&weights)[kCount],
                                                        const int8_t* x,
                                                        Sum (&sum)[kRows][kCount]) {
    constexpr int kParts = kPacked ? 8 / kBits : 1;
    // A single row has few sums, and each waits five cycles for the one before: use two chains.
    // With 4 bits the second one is of high nibbles left where they are, 16 times their products.
    constexpr bool kTwoChains = kRows == 1, kHighChain = kTwoChains && kPacked && kBits == 4;
    const __m512i high = _mm512_set1_epi8(static_cast<char>(0xf0));
    __m512i other[kCount];
    if (kTwoChains) {
      for (int p = 0; p < kCount; ++p) other[p] = _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int row = 0; row < 8 / kParts; ++row) {
      __m512i bytes[kCount];
#pragma GCC unroll 4
      for (int p = 0; p < kCount; ++p) {
        bytes[p] = LoadRow(weights[p] + row * kRowBytes);
        if (kPacked)
          _mm_prefetch(reinterpret_cast<const char*>(weights[p] + row * kRowBytes + 1536),
                       _MM_HINT_T0);
      }
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        __m512i w[kCount];
#pragma GCC unroll 4
        for (int p = 0; p < kCount; ++p) {
          w[p] = kHighChain && part ? _mm512_and_si512(bytes[p], high)
                                    : (kPacked ? Part<kBits>(bytes[p], part) : bytes[p]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          const __m512i four = Four(x + ((row * kParts + part) * kRows + m) * 4);
#pragma GCC unroll 4
          for (int p = 0; p < kCount; ++p) {
            __m512i& to = kTwoChains && (row * kParts + part) % 2 ? other[p] : sum[m][p];
            to = _mm512_dpbusd_epi32(to, w[p], four);
          }
        }
      }
    }
    if (kTwoChains) {
      for (int p = 0; p < kCount; ++p) {
        if (kHighChain) other[p] = _mm512_srai_epi32(other[p], 4);
        sum[0][p] = _mm512_add_epi32(sum[0][p], other[p]);
      }
    }
  }

  template <int kBits>
  static void Unpack(const uint8_t* block, uint8_t* bytes) {
    for (int row = 0; row < kBits; ++row, block += kRowBytes) {
      const __m512i packed = LoadRow(block);
#pragma GCC unroll 4
      for (int part = 0; part < 8 / kBits; ++part, bytes += kRowBytes) {
        _mm512_storeu_si512(bytes, Part<kBits>(packed, part));
      }
    }
  }

  template <int kBits>
  static inline __attribute__((always_inline)) Real Value(Row row, int index) {
    const __m512i shifted =
        _mm512_srl_epi32(row, _mm_cvtsi32_si128(8 * (index % 4) + kBits * (index / 4)));
    if (kBits == 4) {  // a look-up reads the low four bits only, so nothing needs masking
      const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
      return _mm512_permutexvar_ps(shifted, table);
    }
    if (kBits == 2) {
      const __m512 table = _mm512_setr_ps(-2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1);
      return _mm512_permutexvar_ps(shifted, table);
    }
    const __m512i value = _mm512_and_si512(shifted, _mm512_set1_epi32(255));
    return _mm512_sub_ps(_mm512_cvtepi32_ps(value), _mm512_set1_ps(128));
  }

  static uint32_t SignByte(const float* x) { return PlainSignByte(x); }
  static uint32_t EncodeByte(uint32_t byte, int) { return byte * 0x01010101u; }

  // 31 byte counts of at most 8 fit a byte; even and odd columns are then widened apart.
  template <bool, int kRows>
  static void BinaryTile(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    const __m512i low = _mm512_set1_epi16(255);
    while (depth > 0) {
      __m512i even[kRows], odd[kRows];
      for (int m = 0; m < kRows; ++m) even[m] = odd[m] = _mm512_setzero_si512();
      // 255 stretches of at most 31 * 8 stay below 2^16.
      for (int stretch = 0; stretch < 255 && depth > 0; ++stretch) {
        const int64_t count = Min(depth, 31);
        __m512i bytes[kRows];
        for (int m = 0; m < kRows; ++m) bytes[m] = _mm512_setzero_si512();
        for (int64_t k = 0; k < count; ++k, weights += kRowBytes, x += kRows) {
          const __m512i row = LoadRow(weights);
          if (kRows == 1) _mm_prefetch(reinterpret_cast<const char*>(weights + 2048), _MM_HINT_T0);
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) {
            const __m512i differ =
                _mm512_xor_si512(row, _mm512_set1_epi32(static_cast<int32_t>(x[m])));
            bytes[m] = _mm512_add_epi8(bytes[m], _mm512_popcnt_epi8(differ));
          }
        }
        for (int m = 0; m < kRows; ++m) {
          even[m] = _mm512_add_epi16(even[m], _mm512_and_si512(bytes[m], low));
          odd[m] = _mm512_add_epi16(odd[m], _mm512_srli_epi16(bytes[m], 8));
        }
        depth -= count;
      }
      for (int m = 0; m < kRows; ++m) {
        alignas(64) uint16_t e[32], o[32];
        _mm512_store_si512(e, even[m]);
        _mm512_store_si512(o, odd[m]);
        int32_t* const to = sum + m * kBinaryPanelColumns;
        for (int i = 0; i < 32; ++i) {
          to[2 * i] += e[i];
          to[2 * i + 1] += o[i];
        }
      }
    }
  }

  template <bool kStream>
  static void Store16(const DequantizeArgs& a, int64_t at, __m512 v) {
    if (a.type == DataType::kFloat32) {
      float* const to = static_cast<float*>(a.out) + at;
      return kStream ? _mm512_stream_ps(to, v) : _mm512_storeu_ps(to, v);
    }
    // To bfloat16: add half a step, or half minus one where the kept part is even, and cut.
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, even), _mm512_set1_epi32(0x7fff));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(a.out) + at),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }

  // 16 values of 4, 2 or 1 bits: every lane gets a 32-bit word that holds its value, shifts it to
  // the bottom, and looks it up in a register; the bits above do not matter. 8 bits are converted.
  template <int kBits>
  static __m512 Values16(const uint8_t* from, const float* base) {
    if constexpr (kBits == 8) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      const __m512i v = _mm512_cvtepu8_epi32(bytes);
      return _mm512_cvtepi32_ps(v);
    } else {
      const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i in_word = _mm512_and_si512(lane, _mm512_set1_epi32(kBits == 4 ? 7 : 15));
      const __m512i shift = _mm512_mullo_epi32(in_word, _mm512_set1_epi32(kBits));
      uint64_t bits = 0;
      memcpy(&bits, from, 2 * kBits);
      __m512i word = _mm512_set1_epi32(static_cast<int32_t>(bits));
      if (kBits == 4) {
        word = _mm512_mask_set1_epi32(word, 0xff00, static_cast<int32_t>(bits >> 32));
      }
      return _mm512_permutexvar_ps(_mm512_srlv_epi32(word, shift), _mm512_loadu_ps(base));
    }
  }

  // Streamed stores are ordered before what the thread says next.
  static void Fence() { _mm_sfence(); }

  template <int kBits, bool kStream>
  static void RunOf16(const DequantizeArgs& a, int64_t at, int64_t whole, const float* base,
                      float scale, float zero_point) {
    const uint8_t* const from = a.packed + at * kBits / 8;
    const __m512 zero = _mm512_set1_ps(zero_point), factor = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < whole; i += 16) {
      const __m512 v = Values16<kBits>(from + i * kBits / 8, base);
      Store16<kStream>(a, at + i, _mm512_mul_ps(_mm512_sub_ps(v, zero), factor));
    }
  }

  static bool Streams(const DequantizeArgs& a, int64_t at) {
    return a.stream && a.type == DataType::kFloat32 &&
           reinterpret_cast<uintptr_t>(static_cast<float*>(a.out) + at) % 64 == 0;
  }

  template <int kBits>
  static int64_t DequantizeRun(const DequantizeArgs& a, int64_t at, int64_t count,
                               const float* base, float scale, float zero_point) {
    if (kBits == 8 && base) return PlainRun<kBits>(a, at, count, base, scale, zero_point);
    const int64_t whole = count / 16 * 16;
    if (Streams(a, at)) {
      RunOf16<kBits, true>(a, at, whole, base, scale, zero_point);
    } else {
      RunOf16<kBits, false>(a, at, whole, base, scale, zero_point);
    }
    return whole;
  }

  template <int kBits, bool kStream>
  static void ColumnsOf16(const DequantizeArgs& a, int64_t whole, const float* base) {
    const __m512 symmetric = _mm512_set1_ps(static_cast<float>(Offset(kBits)));
    for (int64_t i = 0; i < whole; i += 16) {
      const __m512 v = Values16<kBits>(a.packed + i * kBits / 8, base);
      const __m512 zero = a.zero_point ? _mm512_loadu_ps(a.zero_point + i) : symmetric;
      const __m512 scale = _mm512_loadu_ps(a.scale + i);
      Store16<kStream>(a, i, _mm512_mul_ps(_mm512_sub_ps(v, zero), scale));
    }
  }

  template <int kBits>
  static int64_t DequantizeColumns(const DequantizeArgs& a, int64_t count, const float* base) {
    const int64_t whole = count / 16 * 16;
    if (Streams(a, 0)) {
      ColumnsOf16<kBits, true>(a, whole, base);
    } else {
      ColumnsOf16<kBits, false>(a, whole, base);
    }
    return whole;
  }
};

}  // namespace

const Kernels& Avx512Kernels() { return PanelKernels<Avx512>::kTable; }

}  // namespace tfquant
#endif
