// AVX512 with VNNI, VBMI-free: F, BW, DQ, VL, VNNI; the 1-bit tiles also want BITALG (Ice Lake, Zen
// 4). A panel's row of 64 bytes is one register; vpdpbusd multiplies it with four values of k.
#if defined(__x86_64__)
#include <immintrin.h>

#include "../generic/table.h"

namespace tfquant {
namespace {

struct Avx512 : GenericIsa<Avx512> {
  static constexpr int kPanels = 2, kGemvPanels = 4, kMaxRowSize = 3;
  template <int kBits>
  static constexpr bool kStages = false;

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

  // Keeps what was loaded in its register; the compiler would load it again for every use.
  static inline __attribute__((always_inline)) void Pin(__m512i* row) {
#if !defined(TFQUANT_SIMDE)  // whose registers are arrays
    asm("" : "+v"(*row));
#else
    (void)row;
#endif
  }

  // The part-th value of every byte.
  template <int kBits>
  static __m512i Part(__m512i row, int part) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1));
    if (kBits == 8) return row;
    if (part == 0) return _mm512_and_si512(row, mask);
    return _mm512_and_si512(_mm512_srli_epi16(row, static_cast<unsigned>(part * kBits)), mask);
  }

  // The same, left where it is in the byte: 2^(part * kBits) times as large.
  template <int kBits>
  static __m512i PartInPlace(__m512i row, int part) {
    return _mm512_and_si512(
        row, _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << (part * kBits))));
  }

  // A single row has few sums, and each waits five cycles for the one before. So it has one for
  // each part of a byte, which then need not be shifted; with 8 bits, two that take turns. Joining
  // them after every group costs, so there of 2 bits the upper half is shifted down. The largest,
  // of kMaxDepth / 2 products of 15 * 16 and 128, stays below 2^31.
  template <int kBits, bool kPacked, int kRows, bool kGrouped>
  static constexpr int kChains = kRows > 1 ? 1 : (kBits == 2 && !kGrouped ? 4 : 2);

  template <int kBits, bool kPacked, int kRows, int kCount, int kSums>
  static inline __attribute__((always_inline)) void Dot(const uint8_t* const (&weights)[kCount],
                                                        const int8_t* x,
                                                        Sum (&sum)[kSums][kCount]) {
    static_assert(kPacked, "");
    constexpr int kParts = 8 / kBits, kCopies = kSums / kRows;
#pragma GCC unroll 8
    for (int row = 0; row < 8 / kParts; ++row) {
      __m512i bytes[kCount];
#pragma GCC unroll 4
      for (int p = 0; p < kCount; ++p) {
        const uint8_t* const at = weights[p] + row * kRowBytes;
        bytes[p] = LoadRow(at);
        if (kParts > 1) Pin(&bytes[p]);
        if (kRows > 1) _mm_prefetch(reinterpret_cast<const char*>(at + 1536), _MM_HINT_T0);
      }
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const int chain = kBits == 8 ? row % kCopies : part % kCopies;
        __m512i w[kCount];
#pragma GCC unroll 4
        for (int p = 0; p < kCount; ++p) {
          if (kCopies > 1 && part == kCopies) bytes[p] = _mm512_srli_epi16(bytes[p], 4);
          w[p] = kBits == 8    ? bytes[p]
                 : kCopies > 1 ? PartInPlace<kBits>(bytes[p], chain)
                               : Part<kBits>(bytes[p], part);
        }
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          const __m512i four = Four(x + ((row * kParts + part) * kRows + m) * 4);
#pragma GCC unroll 4
          for (int p = 0; p < kCount; ++p) {
            Sum& to = sum[m + chain][p];
            to = _mm512_dpbusd_epi32(to, w[p], four);
          }
        }
      }
    }
  }

  // By literals: of a variable GCC 12 warns in its own header.
  static inline __attribute__((always_inline)) __m512i ShiftDown(__m512i v, int bits) {
    return bits == 2   ? _mm512_srai_epi32(v, 2)
           : bits == 4 ? _mm512_srai_epi32(v, 4)
           : bits == 6 ? _mm512_srai_epi32(v, 6)
                       : v;
  }

  template <int kBits, int kCopies, int kCount>
  static inline __attribute__((always_inline)) void Join(Sum (&sum)[kCopies][kCount]) {
#pragma GCC unroll 4
    for (int chain = 1; chain < kCopies; ++chain) {
#pragma GCC unroll 4
      for (int p = 0; p < kCount; ++p) {
        const __m512i shifted = ShiftDown(sum[chain][p], kBits == 8 ? 0 : chain * kBits);
        sum[0][p] = _mm512_add_epi32(sum[0][p], shifted);
      }
    }
  }

  // The lowest bits of a float between two powers of two are an integer: puts a value there, given
  // where in each lane it is, and takes the power and the weights' offset away, exactly.
  template <int kBits>
  static inline __attribute__((always_inline)) Real FromBits(__m512i lanes, int at) {
    const int power = 1 << (23 - at);
    const __m512i mask = _mm512_set1_epi32(((1 << kBits) - 1) << at);
    const __m512 base = _mm512_set1_ps(static_cast<float>(power));
    constexpr int kAndOr = 0xea;
    const __m512i bits = _mm512_ternarylogic_epi32(lanes, mask, _mm512_castps_si512(base), kAndOr);
    const __m512 away = _mm512_set1_ps(static_cast<float>(power + Offset(kBits)));
    return _mm512_sub_ps(_mm512_castsi512_ps(bits), away);
  }

  // A look-up reads the low four bits only, so nothing needs masking.
  template <int kBits>
  static inline __attribute__((always_inline)) Real LookUp(__m512i lanes) {
    const __m512 table =
        kBits == 4 ? _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)
                   : _mm512_setr_ps(-2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1);
    return _mm512_permutexvar_ps(lanes, table);
  }

  template <int kBits>
  static inline __attribute__((always_inline)) Real Value(Row row, int index) {
    const int at = 8 * (index % 4) + kBits * (index / 4);
    if (kBits == 8 && at < 16) return FromBits<8>(row, at);
    const __m512i shifted = _mm512_srl_epi32(row, _mm_cvtsi32_si128(at));
    if constexpr (kBits == 8) return FromBits<8>(shifted, 0);
    return LookUp<kBits>(shifted);
  }

  template <int kBits, bool kScaled, int kRows, int kPanels>
  static void RealTile(const TileArgs& args) {
    if constexpr (kBits == 4 && kRows == 1) {
      RealGemv4<kScaled, kPanels>(args);
    } else {
      GenericIsa::RealTile<kBits, kScaled, kRows, kPanels>(args);
    }
  }

  // Of one row and 4 bits. Loading a row from its byte b on shifts every lane by 8 * b;
  // its last three bytes, then of what follows, are in no value. A byte's lower half is looked up,
  // which the higher half does without, since that would be one shift more for the same port.
  template <bool kScaled, int kPanels>
  static void RealGemv4(const TileArgs& args) {
    const uint8_t* weights[kPanels];
    for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
    const float* x = static_cast<const float*>(args.x);
    float* const out = static_cast<float*>(args.sum);
    Real total[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      total[p] = args.first ? SplatReal(0) : LoadReal(out + p * kPanelColumns);
    }
    const int64_t groups = args.blocks / args.blocks_per_group;
    for (int64_t g = 0; g < groups; ++g) {
      Real low[kPanels], high[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) low[p] = high[p] = SplatReal(0);
      for (int64_t r = 0; r < 4 * args.blocks_per_group; ++r, x += 8) {
#pragma GCC unroll 4
        for (int b = 0; b < 4; ++b) {
          const Real x_low = SplatReal(x[b]), x_high = SplatReal(x[4 + b]);
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) {
            Row lanes = LoadRow(weights[p] + r * kRowBytes + b);
            Pin(&lanes);
            low[p] = Fma(LookUp<4>(lanes), x_low, low[p]);
            high[p] = Fma(FromBits<4>(lanes, 4), x_high, high[p]);
          }
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        weights[p] += 4 * args.blocks_per_group * kRowBytes;
        const Real part = _mm512_add_ps(low[p], high[p]);
        if (kScaled) {
          total[p] = Fma(part, HalfScales(weights[p]), total[p]);
          weights[p] += sizeof(GroupScales);
        } else {
          total[p] = _mm512_add_ps(total[p], part);
        }
      }
    }
    for (int p = 0; p < kPanels; ++p) StoreReal(out + p * kPanelColumns, total[p]);
  }

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

  // Of 256 floats: every pair of registers is looked up, and bits 5 to 7 choose between the eight.
  static __m512 LookUp256(__m512i index, const __m512 (&book)[16]) {
    __m512 found[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      found[i] = _mm512_permutex2var_ps(book[2 * i], index, book[2 * i + 1]);
    }
#pragma GCC unroll 3
    for (int bit = 0; bit < 3; ++bit) {
      const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32 << bit));
#pragma GCC unroll 4
      for (int i = 0; i < 4 >> bit; ++i) {
        found[i] = _mm512_mask_blend_ps(upper, found[2 * i], found[2 * i + 1]);
      }
    }
    return found[0];
  }

  static bool Streams(const DequantizeArgs& a, int64_t at) {
    return a.stream && a.type == DataType::kFloat32 &&
           reinterpret_cast<uintptr_t>(static_cast<float*>(a.out) + at) % 64 == 0;
  }

  template <int kBits>
  static int64_t DequantizeRun(const DequantizeArgs& a, int64_t at, int64_t count,
                               const float* base, float scale, float zero_point) {
    if (kBits == 8 && base)
      return GenericIsa::DequantizeRun<kBits>(a, at, count, base, scale, zero_point);
    const int64_t whole = count / 16 * 16;
    if (Streams(a, at)) {
      RunOf16<kBits, true>(a, at, whole, base, scale, zero_point);
    } else {
      RunOf16<kBits, false>(a, at, whole, base, scale, zero_point);
    }
    return whole;
  }

  template <bool kStream>
  static void BookGroups(const DequantizeArgs& a, int64_t whole) {
    __m512 book[16];
    for (int i = 0; i < 16; ++i) book[i] = _mm512_loadu_ps(a.codebook + 16 * i);
    for (int64_t i = 0, g = 0; i < whole; ++g) {
      const __m512 scale = _mm512_set1_ps(a.scale[g]);
      for (const int64_t end = Min(whole, i + a.group_size); i < end; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a.packed + i));
        const __m512 v = LookUp256(_mm512_cvtepu8_epi32(bytes), book);
        Store16<kStream>(a, i, _mm512_mul_ps(v, scale));
      }
    }
  }

  static int64_t DequantizeBook(const DequantizeArgs& a) {
    if (a.group_size % 16 != 0 && a.group_size < a.columns) return 0;
    const int64_t whole = a.columns / 16 * 16;
    Streams(a, 0) ? BookGroups<true>(a, whole) : BookGroups<false>(a, whole);
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

extern const Path avx2_path;

// F, DQ, BW, VL, VNNI and BITALG; zmm and mask registers.
extern const Path avx512_path;
const Path avx512_path = {
    "avx512",
    []() -> const Kernels& { return PanelKernels<Avx512>::kTable; },
    {&avx2_path,
     {{7, 0, 1, 16}, {7, 0, 1, 17}, {7, 0, 1, 30}, {7, 0, 1, 31}, {7, 0, 2, 11}, {7, 0, 2, 12}},
     0xe6},
};

}  // namespace tfquant
#endif
