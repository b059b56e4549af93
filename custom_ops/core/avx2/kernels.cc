// AVX2 with FMA and F16C. A panel's row of 64 bytes is two registers of eight columns.
//
// Values of at most 4 bits: vpmaddubsw, then a chain of 16-bit additions over a block of 32. A lane
// adds 2 x 8 products of at most 15 * 128, which is 30720 < 2^15: nothing saturates. With groups
// the chain starts at minus the offset times its x and ends within 8 * 128 * 16; on the way it may
// wrap around. Values of 8 bits: vpmaddubsw would saturate (2 * 255 * 128), so even and odd bytes
// are widened to 16 bits and vpmaddwd adds exact products to 32 bits; both cost the multipliers the
// same.
//
// Chains and products fill the registers, so what outlives a block lies in memory.
#if defined(__x86_64__)
#include "pairs.h"

namespace tfquant {
namespace {

struct Avx2 : Pairs<Avx2> {
  static constexpr bool kPairOffsets = true, kWide = true;
  template <int kBits>
  static constexpr bool kStages = true;
  template <int kBits>
  static constexpr int kStagedAs = kBits;

  // What Kernels::pair_offsets wants of 32 values.
  static int32_t OffsetPairs(const int8_t* q, int offset) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), Load(q));
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi16(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(_mm_mullo_epi16(sum, _mm_set1_epi16(static_cast<int16_t>(-offset))));
  }

  template <int kBits>
  static void Unpack(const uint8_t* block, uint8_t* out) {
    if constexpr (kBits < 8) return Pairs::Unpack<kBits>(block, out);
    const __m256i low = _mm256_set1_epi16(255);
    for (int row = 0; row < 8; ++row, block += kRowBytes, out += 2 * kRowBytes) {
      const Row bytes = LoadRow(block);
      Store(out, _mm256_and_si256(bytes.a, low));
      Store(out + 32, _mm256_and_si256(bytes.b, low));
      Store(out + 64, _mm256_srli_epi16(bytes.a, 8));
      Store(out + 96, _mm256_srli_epi16(bytes.b, 8));
    }
  }

  template <int kBits, bool kPacked, Scales kScales, int kRows, int kPanels>
  static void IntegerTile(const TileArgs& args) {
    if constexpr (kBits == 8) {
      WideTile<kPacked, kScales, kRows, kPanels>(args);
    } else if (kScales == kNoScales || args.blocks_per_group == 1) {
      NarrowTile<kBits, kPacked, kScales, true, kRows, kPanels>(args);
    } else {
      NarrowTile<kBits, kPacked, kScales, false, kRows, kPanels>(args);
    }
  }

 private:
  static inline __attribute__((always_inline)) void Prefetch(const void* from, int bytes) {
    for (int i = 0; i < bytes; i += 64) {
      _mm_prefetch(static_cast<const char*>(from) + i, _MM_HINT_T0);
    }
  }
  static void Clear(void* memory, int64_t bytes) { memset(memory, 0, static_cast<size_t>(bytes)); }

  // total += scale * sum, for eight columns in memory.
  static inline __attribute__((always_inline)) void AddScaled(float* total, __m256i sum,
                                                              __m256 scale) {
    _mm256_storeu_ps(total,
                     _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_loadu_ps(total)));
  }
  static inline __attribute__((always_inline)) void AddSum(int32_t* total, __m256i sum) {
    Store(total, _mm256_add_epi32(sum, Load(total)));
  }

  // A block of 32 values of k of one panel, added to the chains.
  template <int kBits, bool kPacked, int kRows>
  static inline __attribute__((always_inline)) void Chain(const uint8_t* weights, const int8_t* x,
                                                          __m256i (&chain)[kRows][2]) {
    constexpr int kParts = kPacked ? 8 / kBits : 1;
#pragma GCC unroll 8
    for (int row = 0; row < 8 / kParts; ++row) {
      const Row bytes = LoadRow(weights + row * kRowBytes);
#pragma GCC unroll 4
      for (int part = 0; part < kParts; ++part) {
        const __m256i a = kPacked ? Part<kBits>(bytes.a, part) : bytes.a;
        const __m256i b = kPacked ? Part<kBits>(bytes.b, part) : bytes.b;
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const __m256i four = Four(x + ((row * kParts + part) * kRows + m) * 4);
          chain[m][0] = _mm256_add_epi16(chain[m][0], _mm256_maddubs_epi16(a, four));
          TFQUANT_KEEP(chain[m][0]);
          chain[m][1] = _mm256_add_epi16(chain[m][1], _mm256_maddubs_epi16(b, four));
          TFQUANT_KEEP(chain[m][1]);
        }
      }
    }
  }

  // The result of a tile, eight columns at a time: integers without scales, floats with them.
  template <Scales kScales>
  static inline __attribute__((always_inline)) __m256i Add(__m256i total, __m256i sum,
                                                           __m256 scale) {
    if (kScales == kNoScales) return _mm256_add_epi32(total, sum);
    return _mm256_castps_si256(
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, _mm256_castsi256_ps(total)));
  }

  // kOneBlock: a group is a block, so its sums never leave the registers.
  template <int kBits, bool kPacked, Scales kScales, bool kOneBlock, int kRows, int kPanels>
  static void NarrowTile(const TileArgs& args) {
    constexpr int64_t kBytes = (kPacked ? kBits : 8) * kRowBytes;
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t* weights[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
    const int8_t* x = static_cast<const int8_t*>(args.x);
    const int32_t* offset = args.offset_sum;
    const float* x_scale = args.x_scale;
    int32_t* const out = static_cast<int32_t*>(args.sum);
    __m256i total[kRows][kPanels][2];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const int32_t* const from = out + (m * kPanels + p) * kPanelColumns;
        const __m256i start =
            kScales == kNoScales ? _mm256_set1_epi32(offset[m]) : _mm256_setzero_si256();
        total[m][p][0] = args.first ? start : Load(from);
        total[m][p][1] = args.first ? start : Load(from + 8);
      }
    }
    // Values of 2 bits add up to at most 3 * 128 * 16 in a block, so five blocks fit a chain.
    constexpr int64_t kLongest = kBits == 2 && kScales == kNoScales ? 4 : 1;
    const int64_t group_blocks = kOneBlock ? 1 : args.blocks_per_group;
    const int64_t groups = (args.blocks + kLongest * group_blocks - 1) / (kLongest * group_blocks);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t length = Min(kLongest, args.blocks - g * kLongest);  // of the chain
      __m256i sum[kRows][kPanels][2];
      for (int64_t b = 0; b < group_blocks; ++b) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          // Of the next tile, which lies behind this one's x.
          if (!kPacked && p == 0)
            Prefetch(x + args.blocks * kBlockDepth * kRows, kBlockDepth * kRows);
          __m256i chain[kRows][2];
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m) {
            chain[m][0] = chain[m][1] =
                kScales == kNoScales ? _mm256_setzero_si256() : _mm256_set1_epi32(offset[m]);
          }
          Chain<kBits, kPacked, kRows>(weights[p], x, chain);
          weights[p] += kBytes;
          for (int64_t i = 1; kLongest > 1 && i < length; ++i) {
            Chain<kBits, kPacked, kRows>(weights[p], x + i * kBlockDepth * kRows, chain);
            weights[p] += kBytes;
          }
          Real scale = {};
          if (kOneBlock && kScales != kNoScales && kPacked) {
            scale = HalfScales(weights[p]);
            weights[p] += sizeof(GroupScales);
          } else if (kOneBlock && kScales != kNoScales) {
            scale = LoadReal(args.scale[p] + g * kPanelColumns);
          }
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m) {
            const __m256i part[2] = {_mm256_madd_epi16(chain[m][0], ones),
                                     _mm256_madd_epi16(chain[m][1], ones)};
            if (kOneBlock) {
              const Real factor =
                  kScales == kBothScales ? Mul(scale, SplatReal(x_scale[m])) : scale;
              total[m][p][0] = Add<kScales>(total[m][p][0], part[0], factor.a);
              total[m][p][1] = Add<kScales>(total[m][p][1], part[1], factor.b);
            } else {
              sum[m][p][0] = b ? _mm256_add_epi32(sum[m][p][0], part[0]) : part[0];
              sum[m][p][1] = b ? _mm256_add_epi32(sum[m][p][1], part[1]) : part[1];
            }
          }
        }
        x += (kLongest > 1 ? length : 1) * kBlockDepth * kRows;
        offset += kRows;
      }
      if (!kOneBlock) {
        for (int p = 0; p < kPanels; ++p) {
          Real scale;
          if (kPacked) {
            scale = HalfScales(weights[p]);
            weights[p] += sizeof(GroupScales);
          } else {
            scale = LoadReal(args.scale[p] + g * kPanelColumns);
          }
          for (int m = 0; m < kRows; ++m) {
            const Real factor = kScales == kBothScales ? Mul(scale, SplatReal(x_scale[m])) : scale;
            total[m][p][0] = Add<kScales>(total[m][p][0], sum[m][p][0], factor.a);
            total[m][p][1] = Add<kScales>(total[m][p][1], sum[m][p][1], factor.b);
          }
        }
      }
      if (kScales == kBothScales) x_scale += kRows;
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        int32_t* const to = out + (m * kPanels + p) * kPanelColumns;
        Store(to, total[m][p][0]);
        Store(to + 8, total[m][p][1]);
      }
    }
  }

  template <bool kPacked, Scales kScales, int kRows, int kPanels>
  static void WideTile(const TileArgs& args) {
    const __m256i low = _mm256_set1_epi16(255);
    const int16_t* x = static_cast<const int16_t*>(args.x);
    const int32_t* offset = args.offset_sum;
    const float* x_scale = args.x_scale;
    int32_t* const sums = static_cast<int32_t*>(args.sum);
    float* const totals = static_cast<float*>(args.sum);
    const int64_t groups = kScales == kNoScales ? 1 : args.blocks / args.blocks_per_group;
    const int64_t rows = (kScales == kNoScales ? args.blocks : args.blocks_per_group) * 8;
    const uint8_t* weights[kPanels];
    for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
    if (args.first && kScales != kNoScales) Clear(totals, kRows * kPanels * kPanelColumns * 4);
    for (int64_t g = 0; g < groups; ++g, offset += kRows, x += rows * kRows * 4) {
      __m256i sum[kRows][kPanels][2];
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          const int at = (m * kPanels + p) * static_cast<int>(kPanelColumns);
          const bool go_on = kScales == kNoScales && !args.first;
          const __m256i start = _mm256_set1_epi32(offset[m]);
          sum[m][p][0] = go_on ? Load(sums + at) : start;
          sum[m][p][1] = go_on ? Load(sums + at + 8) : start;
        }
      }
      const int16_t* four = x;
#pragma GCC unroll 2
      for (int64_t r = 0; r < rows; ++r, four += kRows * 4) {
        if (!kPacked) Prefetch(four + args.blocks * kBlockDepth * kRows, 1);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          const uint8_t* const w = weights[p];
          weights[p] += (kPacked ? 1 : 2) * kRowBytes;
          const Row bytes = kPacked ? LoadRow(w) : Row{};
#pragma GCC unroll 2
          for (int odd = 0; odd < 2; ++odd) {
            __m256i a, b;
            if (!kPacked) {
              a = Load(w + odd * kRowBytes);
              b = Load(w + odd * kRowBytes + 32);
            } else if (odd) {
              a = _mm256_srli_epi16(bytes.a, 8);
              b = _mm256_srli_epi16(bytes.b, 8);
            } else {
              a = _mm256_and_si256(bytes.a, low);
              b = _mm256_and_si256(bytes.b, low);
            }
#pragma GCC unroll 4
            for (int m = 0; m < kRows; ++m) {
              const __m256i two = Four(four + m * 4 + odd * 2);
              sum[m][p][0] = _mm256_add_epi32(sum[m][p][0], _mm256_madd_epi16(a, two));
              TFQUANT_KEEP(sum[m][p][0]);
              sum[m][p][1] = _mm256_add_epi32(sum[m][p][1], _mm256_madd_epi16(b, two));
              TFQUANT_KEEP(sum[m][p][1]);
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        Real scale = {};
        if (kScales != kNoScales && kPacked) {
          scale = HalfScales(weights[p]);
          weights[p] += sizeof(GroupScales);
        } else if (kScales != kNoScales) {
          scale = LoadReal(args.scale[p] + g * kPanelColumns);
        }
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const int at = (m * kPanels + p) * static_cast<int>(kPanelColumns);
          if (kScales == kNoScales) {
            Store(sums + at, sum[m][p][0]);
            Store(sums + at + 8, sum[m][p][1]);
          } else {
            const Real factor = kScales == kBothScales ? Mul(scale, SplatReal(x_scale[m])) : scale;
            AddScaled(totals + at, sum[m][p][0], factor.a);
            AddScaled(totals + at + 8, sum[m][p][1], factor.b);
          }
        }
      }
      if (kScales == kBothScales) x_scale += kRows;
    }
  }
};

}  // namespace

// AVX2, FMA, AVX and F16C; ymm registers.
extern const Path avx2_path;
const Path avx2_path = {
    "avx2",
    []() -> const Kernels& { return PanelKernels<Avx2>::kTable; },
    {nullptr, {{7, 0, 1, 5}, {1, 0, 2, 12}, {1, 0, 2, 28}, {1, 0, 2, 29}}, 0x6},
};

}  // namespace tfquant
#endif
