// The operations on 16 lanes as two registers of eight, common to AVX2 and AVX-VNNI. What they lack
// is `Dot`. In an anonymous namespace, like generic/isa.h and for its reason.
#ifndef TFQUANT_CUSTOM_OPS_CORE_AVX2_PAIRS_H_
#define TFQUANT_CUSTOM_OPS_CORE_AVX2_PAIRS_H_

#include <immintrin.h>

#include "../generic/table.h"

// Stops GCC from re-associating a chain of 16-bit additions, after which it spills every product.
#define TFQUANT_KEEP(v) asm("" : "+x"(v))

namespace tfquant {
namespace {

// For a fixed nibble of the activations the 16 possible weight nibbles have 16 population counts:
// one byte shuffle does 4 bits of 32 columns, and of two rows at once, whose counts share a byte.
// A row's code is its two nibbles' tables; two rows' code the two tables of both.
struct SignTables {
  uint8_t one[16][32];
  uint8_t two[16][16][32];  // second row, first row
};
constexpr uint8_t Differ(int x, int w) {
  const int d = x ^ (w & 15);
  return static_cast<uint8_t>((d & 1) + (d >> 1 & 1) + (d >> 2 & 1) + (d >> 3));
}
constexpr SignTables MakeSignTables() {
  SignTables t = {};
  for (int x = 0; x < 16; ++x) {
    for (int w = 0; w < 32; ++w) {
      t.one[x][w] = Differ(x, w);
      for (int y = 0; y < 16; ++y) {
        t.two[y][x][w] = static_cast<uint8_t>(Differ(x, w) | Differ(y, w) << 4);
      }
    }
  }
  return t;
}
alignas(64) constexpr SignTables kSignTables = MakeSignTables();

template <class Isa>
struct Pairs : GenericIsa<Isa> {
  static constexpr int kGemvPanels = 4;
  static constexpr int kBinaryStretch = 120, kSignRows = 2;
  static constexpr bool kStagesBinary = true;

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
  static void Store(void* to, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
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
  static void StreamReal(float* to, Real r) {
    _mm256_stream_ps(to, r.a);
    _mm256_stream_ps(to + 8, r.b);
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

  static __m256i Four(const void* x) {
    int32_t bits;
    memcpy(&bits, x, 4);
    return _mm256_set1_epi32(bits);
  }

  template <int kBits>
  static __m256i Part(__m256i row, int part) {
    const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << kBits) - 1));
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

  template <int kBits, bool kScaled, int kRows, int kPanels>
  static void RealTile(const TileArgs& args) {
    if constexpr (kBits == 4 && kRows == 1) {
      RealGemv4<kScaled, kPanels>(args);
    } else {
      GenericIsa<Isa>::template RealTile<kBits, kScaled, kRows, kPanels>(args);
    }
  }

  // Float activations, one row, weights of 4 bits. The values -8 .. 7 are bfloat16s, whose two
  // bytes are looked up for 32 weights at once and put together; the two values of a 32-bit lane
  // become floats by a shift and a mask. For a register of columns 0-7 and four values of k the
  // lanes are
  //
  //     even[0], odd[0]   c0 k0 | c0 k2 | c1 k0 | c1 k2 || c4 .. c5        and the same of k1, k3
  //     even[1], odd[1]   c2           | c3            || c6 .. c7
  //
  // so that adding neighbours in the end leaves the columns in their order.
  template <bool kScaled, int kPanels>
  static void RealGemv4(const TileArgs& args) {
    const __m256i low_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(  // of -8 .. 7
        0x00, static_cast<char>(0xe0), static_cast<char>(0xc0), static_cast<char>(0xa0),
        static_cast<char>(0x80), 0x40, 0x00, static_cast<char>(0x80), 0x00, static_cast<char>(0x80),
        0x00, 0x40, static_cast<char>(0x80), static_cast<char>(0xa0), static_cast<char>(0xc0),
        static_cast<char>(0xe0)));
    const char minus_large = static_cast<char>(0xc0), minus_one = static_cast<char>(0xbf);
    const __m256i high_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        static_cast<char>(0xc1), minus_large, minus_large, minus_large, minus_large, minus_large,
        minus_large, minus_one, 0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i upper = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
    const uint8_t* weights[kPanels];
    for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
    const float* x = static_cast<const float*>(args.x);
    float* const out = static_cast<float*>(args.sum);
    if (args.first) memset(out, 0, kPanels * kPanelColumns * sizeof(float));
    const int64_t groups = args.blocks / args.blocks_per_group;
    const int64_t rows = args.blocks_per_group * 4;
    for (int64_t g = 0; g < groups; ++g, x += rows * 8) {
      for (int p = 0; p < kPanels; ++p) {
        __m256 even[2][2], odd[2][2];  // [register of columns][half of it]
        for (int i = 0; i < 2; ++i) {
          for (int half = 0; half < 2; ++half) even[i][half] = odd[i][half] = _mm256_setzero_ps();
        }
        for (int64_t r = 0; r < rows; ++r, weights[p] += kRowBytes) {
          const Row bytes = LoadRow(weights[p]);
#pragma GCC unroll 2
          for (int high = 0; high < 2; ++high) {
            const __m256 four =
                _mm256_broadcast_ps(reinterpret_cast<const __m128*>(x + r * 8 + high * 4));
            const __m256 x_even = _mm256_permute_ps(four, 0x88);
            const __m256 x_odd = _mm256_permute_ps(four, 0xdd);
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
              const __m256i byte = i ? bytes.b : bytes.a;
              const __m256i v = _mm256_and_si256(high ? _mm256_srli_epi16(byte, 4) : byte, nibble);
              const __m256i low = _mm256_shuffle_epi8(low_bytes, v);
              const __m256i top = _mm256_shuffle_epi8(high_bytes, v);
#pragma GCC unroll 2
              for (int half = 0; half < 2; ++half) {
                const __m256i both =
                    half ? _mm256_unpackhi_epi8(low, top) : _mm256_unpacklo_epi8(low, top);
                even[i][half] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
                                                x_even, even[i][half]);
                odd[i][half] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(both, upper)),
                                               x_odd, odd[i][half]);
              }
            }
          }
        }
        Real scale = SplatReal(1);
        if (kScaled) {
          scale = HalfScales(weights[p]);
          weights[p] += sizeof(GroupScales);
        }
        for (int i = 0; i < 2; ++i) {
          const __m256 sum = _mm256_hadd_ps(_mm256_add_ps(even[i][0], odd[i][0]),
                                            _mm256_add_ps(even[i][1], odd[i][1]));
          float* const to = out + p * kPanelColumns + 8 * i;
          _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, i ? scale.b : scale.a, _mm256_loadu_ps(to)));
        }
      }
    }
  }

  static uint32_t SignByte(const float* x) {
    // x < 0, so that neither -0 nor a NaN counts as negative.
    return static_cast<uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_setzero_ps(), _CMP_LT_OQ)));
  }
  // Offsets of 32-byte tables.
  static uint32_t EncodeByte(uint32_t byte, int in_code) {
    return ((byte & 15u) | (byte >> 4) << 16) << (5 + 4 * in_code);
  }
  static void StageBinary(const uint8_t* rows, int64_t depth, uint8_t* nibbles) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int64_t k = 0; k < depth; ++k, rows += kRowBytes, nibbles += 2 * kRowBytes) {
      const Row w = LoadRow(rows);
      Store(nibbles, _mm256_and_si256(w.a, nibble));
      Store(nibbles + 32, _mm256_and_si256(w.b, nibble));
      Store(nibbles + 64, _mm256_and_si256(_mm256_srli_epi16(w.a, 4), nibble));
      Store(nibbles + 96, _mm256_and_si256(_mm256_srli_epi16(w.b, 4), nibble));
    }
  }

  // The low or high nibbles of a row of weights.
  template <bool kStaged>
  static inline __attribute__((always_inline)) Row Nibbles(const uint8_t* row, int high) {
    if (kStaged) return LoadRow(row + high * kRowBytes);
    const __m256i nibble = _mm256_set1_epi8(15);
    const Row w = LoadRow(row);
    if (!high) return {_mm256_and_si256(w.a, nibble), _mm256_and_si256(w.b, nibble)};
    return {_mm256_and_si256(_mm256_srli_epi16(w.a, 4), nibble),
            _mm256_and_si256(_mm256_srli_epi16(w.b, 4), nibble)};
  }

  // sum[0..63] += 64 counts in bytes.
  static void AddCounts(const __m256i (&bytes)[2], int32_t* sum) {
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        const __m128i half =
            j < 2 ? _mm256_castsi256_si128(bytes[i]) : _mm256_extracti128_si256(bytes[i], 1);
        const __m256i wide = _mm256_cvtepu8_epi32(j % 2 ? _mm_srli_si128(half, 8) : half);
        int32_t* const at = sum + i * 32 + j * 8;
        Store(at, _mm256_add_epi32(Load(at), wide));
      }
    }
  }

  template <bool kStaged, int kRows>
  static void BinaryTile(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    if constexpr (kRows == 1) {
      OneRow<kStaged>(weights, depth, x, sum);
    } else {
      TwoRows<kStaged, kRows / 2>(weights, depth, x, sum);
    }
  }

  template <bool kStaged>
  static void OneRow(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    while (depth > 0) {
      const int64_t count = Min(depth, 31);  // 31 counts of at most 8 fit a byte
      __m256i bytes[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 4
      for (int64_t k = 0; k < count; ++k, weights += (kStaged ? 2 : 1) * kRowBytes, ++x) {
        if (!kStaged) _mm_prefetch(reinterpret_cast<const char*>(weights) + 2048, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int high = 0; high < 2; ++high) {
          const Row w = Nibbles<kStaged>(weights, high);
          const __m256i table = TableAt(kSignTables.one, *x, high);
          bytes[0] = _mm256_add_epi8(bytes[0], _mm256_shuffle_epi8(table, w.a));
          TFQUANT_KEEP(bytes[0]);
          bytes[1] = _mm256_add_epi8(bytes[1], _mm256_shuffle_epi8(table, w.b));
          TFQUANT_KEEP(bytes[1]);
        }
      }
      AddCounts(bytes, sum);
      depth -= count;
    }
  }

  static inline __attribute__((always_inline)) __m256i TableAt(const void* tables, uint32_t code,
                                                               int high) {
    const uint32_t offset = high ? code >> 16 : code & 0xffffu;
    return _mm256_load_si256(
        reinterpret_cast<const __m256i*>(static_cast<const uint8_t*>(tables) + offset));
  }

  // Three nibbles' counts of two rows share a byte, at most 12 each. Summed up, `all` is the first
  // row's count plus 16 times the second's, modulo 256, and `second` the latter alone.
  template <bool kStaged, int kPairs>
  static void TwoRows(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    constexpr int64_t kStep = (kStaged ? 2 : 1) * kRowBytes;
    const __m256i nibble = _mm256_set1_epi8(15);
    while (depth > 0) {
      const int64_t count = Min(depth, 30);  // 60 counts of at most 4 fit a byte
      __m256i all[kPairs][2], second[kPairs][2];
      for (int m = 0; m < kPairs; ++m) {
        for (int i = 0; i < 2; ++i) all[m][i] = second[m][i] = _mm256_setzero_si256();
      }
      const auto add = [&](int m, const Row& three) __attribute__((always_inline)) {
        all[m][0] = _mm256_add_epi8(all[m][0], three.a);
        all[m][1] = _mm256_add_epi8(all[m][1], three.b);
        second[m][0] =
            _mm256_add_epi8(second[m][0], _mm256_and_si256(_mm256_srli_epi16(three.a, 4), nibble));
        second[m][1] =
            _mm256_add_epi8(second[m][1], _mm256_and_si256(_mm256_srli_epi16(three.b, 4), nibble));
      };
      int64_t k = 0;
      for (; k + 3 <= count; k += 3, weights += 3 * kStep, x += 3 * 2 * kPairs) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
          Row three[kPairs];
#pragma GCC unroll 3
          for (int i = 0; i < 3; ++i) {
            const int byte = (half * 3 + i) / 2, high = (half * 3 + i) % 2;
            const Row w = Nibbles<kStaged>(weights + byte * kStep, high);
#pragma GCC unroll 2
            for (int m = 0; m < kPairs; ++m) {
              const __m256i table = TableAt(kSignTables.two, x[byte * 2 * kPairs + m], high);
              const __m256i a = _mm256_shuffle_epi8(table, w.a);
              const __m256i b = _mm256_shuffle_epi8(table, w.b);
              three[m].a = i ? _mm256_add_epi8(three[m].a, a) : a;
              three[m].b = i ? _mm256_add_epi8(three[m].b, b) : b;
            }
          }
#pragma GCC unroll 2
          for (int m = 0; m < kPairs; ++m) add(m, three[m]);
        }
      }
      for (; k < count; ++k, weights += kStep, x += 2 * kPairs) {
        for (int m = 0; m < kPairs; ++m) {
          const Row low = Nibbles<kStaged>(weights, 0), high = Nibbles<kStaged>(weights, 1);
          const __m256i tables[2] = {TableAt(kSignTables.two, x[m], 0),
                                     TableAt(kSignTables.two, x[m], 1)};
          add(m, {_mm256_add_epi8(_mm256_shuffle_epi8(tables[0], low.a),
                                  _mm256_shuffle_epi8(tables[1], high.a)),
                  _mm256_add_epi8(_mm256_shuffle_epi8(tables[0], low.b),
                                  _mm256_shuffle_epi8(tables[1], high.b))});
        }
      }
      for (int m = 0; m < kPairs; ++m) {
        // Bytes have no shift; what 16 bits carry into the upper byte is masked away.
        const __m256i upper = _mm256_set1_epi8(static_cast<char>(0xf0));
        __m256i first[2];
        for (int i = 0; i < 2; ++i) {
          first[i] = _mm256_sub_epi8(all[m][i],
                                     _mm256_and_si256(_mm256_slli_epi16(second[m][i], 4), upper));
        }
        AddCounts(first, sum + 2 * m * kBinaryPanelColumns);
        AddCounts(second[m], sum + (2 * m + 1) * kBinaryPanelColumns);
      }
      depth -= count;
    }
  }

  // Eight values; without a codebook their numbers, of 8 bits always.
  template <int kBits>
  static inline __attribute__((always_inline)) __m256 Values8(const uint8_t* from, bool look_up,
                                                              const float* base) {
    if constexpr (kBits == 8) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    } else {
      // Every lane gets the word, and shifts its value to the bottom.
      uint32_t word = 0;
      memcpy(&word, from, kBits);
      const __m256i lane = _mm256_setr_epi32(0, kBits, 2 * kBits, 3 * kBits, 4 * kBits, 5 * kBits,
                                             6 * kBits, 7 * kBits);
      const __m256i v = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int32_t>(word)), lane);
      if (!look_up) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32((1 << kBits) - 1)));
      }
      // A look-up reads three bits; tables of fewer repeat, and of four there are two.
      const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(base), v);
      if (kBits < 4) return low;
      const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(base + 8), v);
      return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(v, 28)));
    }
  }

  template <bool kStream>
  static inline __attribute__((always_inline)) void Store16(const DequantizeArgs& a, int64_t at,
                                                            __m256 v, __m256 w) {
    if (a.type == DataType::kFloat32) {
      float* const to = static_cast<float*>(a.out) + at;
      if (kStream) {
        _mm256_stream_ps(to, v);
        _mm256_stream_ps(to + 8, w);
      } else {
        _mm256_storeu_ps(to, v);
        _mm256_storeu_ps(to + 8, w);
      }
      return;
    }
    const __m256i both = _mm256_packus_epi32(Brain(v), Brain(w));
    Store(static_cast<uint16_t*>(a.out) + at, _mm256_permute4x64_epi64(both, 0xd8));
  }

  // To bfloat16: add half a step, or half minus one where the kept part is even, and cut.
  static __m256i Brain(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(bits, even), _mm256_set1_epi32(0x7fff));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(is_nan)), 16);
  }

  // Streamed stores want whole registers of an output that the caches could not hold anyway.
  static bool Streams(const DequantizeArgs& a, int64_t at) {
    return a.stream && a.type == DataType::kFloat32 &&
           reinterpret_cast<uintptr_t>(static_cast<float*>(a.out) + at) % 32 == 0;
  }

  template <int kBits, bool kStream>
  static inline __attribute__((always_inline)) void RunOf16(const DequantizeArgs& a, int64_t at,
                                                            int64_t whole, const float* base,
                                                            float scale, float zero_point) {
    const uint8_t* const from = a.packed + at * kBits / 8;
    const bool look_up = a.codebook != nullptr;
    const __m256 zero = _mm256_set1_ps(zero_point), factor = _mm256_set1_ps(scale);
    for (int64_t i = 0; i < whole; i += 16) {
      const uint8_t* const bytes = from + i * kBits / 8;
      __m256 v, w;
      if (kBits == 8 && look_up) {  // 256 floats fit no register
        alignas(32) float line[16];
        for (int j = 0; j < 16; ++j) line[j] = base[bytes[j]];
        v = _mm256_load_ps(line);
        w = _mm256_load_ps(line + 8);
      } else {
        v = Values8<kBits>(bytes, look_up, base);
        w = Values8<kBits>(bytes + kBits, look_up, base);
      }
      Store16<kStream>(a, at + i, _mm256_mul_ps(_mm256_sub_ps(v, zero), factor),
                       _mm256_mul_ps(_mm256_sub_ps(w, zero), factor));
    }
  }

  template <int kBits>
  static inline __attribute__((always_inline)) int64_t DequantizeRun(const DequantizeArgs& a,
                                                                     int64_t at, int64_t count,
                                                                     const float* base, float scale,
                                                                     float zero_point) {
    const int64_t whole = count / 16 * 16;
    if (Streams(a, at)) {
      RunOf16<kBits, true>(a, at, whole, base, scale, zero_point);
    } else {
      RunOf16<kBits, false>(a, at, whole, base, scale, zero_point);
    }
    return whole;
  }

  template <int kBits, bool kStream>
  static void ColumnsOf16(const DequantizeArgs& a, int64_t whole) {
    const __m256 symmetric = _mm256_set1_ps(static_cast<float>(Offset(kBits)));
    for (int64_t i = 0; i < whole; i += 16) {
      __m256 v[2];
      for (int half = 0; half < 2; ++half) {
        const int64_t at = i + 8 * half;
        const __m256 zero = a.zero_point ? _mm256_loadu_ps(a.zero_point + at) : symmetric;
        const __m256 value = Values8<kBits>(a.packed + at * kBits / 8, false, nullptr);
        v[half] = _mm256_mul_ps(_mm256_sub_ps(value, zero), _mm256_loadu_ps(a.scale + at));
      }
      Store16<kStream>(a, i, v[0], v[1]);
    }
  }

  template <int kBits>
  static int64_t DequantizeColumns(const DequantizeArgs& a, int64_t count, const float*) {
    const int64_t whole = count / 16 * 16;
    if (Streams(a, 0)) {
      ColumnsOf16<kBits, true>(a, whole);
    } else {
      ColumnsOf16<kBits, false>(a, whole);
    }
    return whole;
  }

  // Streamed stores are ordered before what the thread says next.
  static void Fence() { _mm_sfence(); }
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_AVX2_PAIRS_H_
