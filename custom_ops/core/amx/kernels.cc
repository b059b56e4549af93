// AMX: one instruction multiplies 16 rows of x by 16 columns, over 64 (or 32) values of k. A block
// of signed bytes is what it wants of the weights, as it lies; of x it wants rows of 64 (or 32)
// consecutive values. All that is not a matrix tile is the path avx512's. Meaning of the
// instructions: Intel 64 and IA-32 Architectures Software Developer's Manual,
// "TDPBSSD/TDPBSUD/..." and "TDPBF16PS".
#include "../kernels.h"

#include "../float16.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

namespace tfquant {

extern const Path avx512_path;

namespace {

constexpr int kTileRows = 16, kTilePanels = 2;

// The compiler does not know that loading a tile or a configuration reads memory.
inline void Settle() { __asm__ volatile("" ::: "memory"); }

// Registers 0 to 3 are sums or more of x, 4 and 5 hold x, 6 and 7 weights.
void Begin(int64_t unit_bytes) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = kRowBytes;
    config.rows[i] = kTileRows;
  }
  config.row_bytes[4] = config.row_bytes[5] = static_cast<uint16_t>(unit_bytes);
  config.rows[6] = config.rows[7] = static_cast<uint8_t>(unit_bytes / 4);
  Settle();
  _tile_loadconfig(&config);
}

// Tiles in use slow a change of threads.
void End() { _tile_release(); }

// The sums of 16 or 32 rows and two panels: [rows][2 * 16], of 4 bytes each.
constexpr int64_t kSumStride = kTilePanels * kRowBytes, kLowSums = kTileRows * kSumStride;

template <int kHalves>
inline void LoadSums(bool zero, const void* sums) {
  const uint8_t* const from = static_cast<const uint8_t*>(sums);
  if (zero) {
    _tile_zero(0);
    _tile_zero(1);
    if (kHalves == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, from, kSumStride);
    _tile_loadd(1, from + kRowBytes, kSumStride);
    if (kHalves == 2) {
      _tile_loadd(2, from + kLowSums, kSumStride);
      _tile_loadd(3, from + kLowSums + kRowBytes, kSumStride);
    }
  }
}

template <int kHalves>
inline void StoreSums(void* sums) {
  uint8_t* const to = static_cast<uint8_t*>(sums);
  _tile_stored(0, to, kSumStride);
  _tile_stored(1, to + kRowBytes, kSumStride);
  if (kHalves == 2) {
    _tile_stored(2, to + kLowSums, kSumStride);
    _tile_stored(3, to + kLowSums + kRowBytes, kSumStride);
  }
}

// No group scales: integer sums of 16 or 32 rows and two panels stay in tiles. Packed weights are
// unsigned, staged ones signed.
template <int kHalves, bool kPacked>
void ChannelTile(const TileArgs& a) {
  const int64_t unit = a.unit, half = kTileRows * unit, depth = a.blocks * kBlockDepth;
  const int8_t* x = static_cast<const int8_t*>(a.x);
  const uint8_t* left = a.weights[0];
  const uint8_t* right = a.weights[1];
  if (kPacked && a.first) {
    __m512i* const sum = static_cast<__m512i*>(a.sum);
    for (int m = 0; m < kHalves * kTileRows; ++m) {
      const __m512i offset = _mm512_set1_epi32(a.offset_sum[m]);
      for (int p = 0; p < kTilePanels; ++p) {
        _mm512_storeu_si512(sum + m * kTilePanels + p, offset);
      }
    }
  }
  Settle();
  LoadSums<kHalves>(!kPacked && a.first, a.sum);
  for (int64_t k = 0; k < depth; k += unit) {
    _tile_loadd(4, x, unit);
    _tile_loadd(6, left, kRowBytes);
    _tile_loadd(7, right, kRowBytes);
    if (kHalves == 2) _tile_loadd(5, x + half, unit);
    if (kPacked) {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      if (kHalves == 2) {
        _tile_dpbsud(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
      }
    } else {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      if (kHalves == 2) {
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
    x += kHalves * half;
    left += unit * kPanelColumns;
    right += unit * kPanelColumns;
  }
  StoreSums<kHalves>(a.sum);
}

// The same of floats: a row's parts are added from the smallest on.
template <int kHalves>
void ChannelRealTile(const TileArgs& a) {
  constexpr int64_t kHalf = kTileRows * kRowBytes, kPart = kHalves * kHalf;
  const uint8_t* x = static_cast<const uint8_t*>(a.x);
  const uint8_t* left = a.weights[0];
  const uint8_t* right = a.weights[1];
  Settle();
  LoadSums<kHalves>(a.first, a.sum);
  for (int64_t b = 0; b < a.blocks; ++b) {
    _tile_loadd(6, left, kRowBytes);
    _tile_loadd(7, right, kRowBytes);
    for (int64_t part = kFloatParts - 1; part >= 0; --part) {
      _tile_loadd(4, x + part * kPart, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (kHalves == 2) {
        _tile_loadd(5, x + part * kPart + kHalf, kRowBytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    x += kFloatParts * kPart;
    left += kTileRows * kRowBytes;
    right += kTileRows * kRowBytes;
  }
  StoreSums<kHalves>(a.sum);
}

// The groups of 16 rows and a panel.
struct Groups {
  const uint8_t* x;
  const uint8_t* weights;
  int64_t steps;         // units of k in a group
  int64_t unit_bytes;    // of a row of x
  int64_t part_bytes;    // of x, from one part of a float to the next
  int64_t x_bytes;       // of x, from one unit to the next
  int64_t weight_bytes;  // likewise
};

// The sums of one group to memory. There are two, so that one tile is multiplied while the other
// is stored; the number of a tile must be a literal.
template <bool kReal>
inline void MultiplyEven(const Groups& g, int64_t group, void* to) {
  const uint8_t* x = g.x + group * g.steps * g.x_bytes;
  const uint8_t* weights = g.weights + group * g.steps * g.weight_bytes;
  _tile_zero(0);
  for (int64_t i = 0; i < g.steps; ++i, x += g.x_bytes, weights += g.weight_bytes) {
    _tile_loadd(6, weights, kRowBytes);
    if (kReal) {
      _tile_loadd(2, x + 2 * g.part_bytes, g.unit_bytes);
      _tile_dpbf16ps(0, 2, 6);
      _tile_loadd(3, x + g.part_bytes, g.unit_bytes);
      _tile_dpbf16ps(0, 3, 6);
      _tile_loadd(4, x, g.unit_bytes);
      _tile_dpbf16ps(0, 4, 6);
    } else {
      _tile_loadd(4, x, g.unit_bytes);
      _tile_dpbssd(0, 4, 6);
    }
  }
  _tile_stored(0, to, kRowBytes);
}

template <bool kReal>
inline void MultiplyOdd(const Groups& g, int64_t group, void* to) {
  const uint8_t* x = g.x + group * g.steps * g.x_bytes;
  const uint8_t* weights = g.weights + group * g.steps * g.weight_bytes;
  _tile_zero(1);
  for (int64_t i = 0; i < g.steps; ++i, x += g.x_bytes, weights += g.weight_bytes) {
    _tile_loadd(7, weights, kRowBytes);
    if (kReal) {
      _tile_loadd(2, x + 2 * g.part_bytes, g.unit_bytes);
      _tile_dpbf16ps(1, 2, 7);
      _tile_loadd(3, x + g.part_bytes, g.unit_bytes);
      _tile_dpbf16ps(1, 3, 7);
      _tile_loadd(5, x, g.unit_bytes);
      _tile_dpbf16ps(1, 5, 7);
    } else {
      _tile_loadd(5, x, g.unit_bytes);
      _tile_dpbssd(1, 5, 7);
    }
  }
  _tile_stored(1, to, kRowBytes);
}

// x: floats, integers, or integers with a scale for each group.
enum class GroupX { kReal, kInteger, kScaled };

template <GroupX kX>
inline __attribute__((always_inline)) void Accumulate(const void* sum, __m512 scale,
                                                      const float* x_scale,
                                                      __m512 (&total)[kTileRows]) {
#pragma GCC unroll 16
  for (int m = 0; m < kTileRows; ++m) {
    const __m512i bits = _mm512_load_si512(static_cast<const __m512i*>(sum) + m);
    const __m512 real = kX == GroupX::kReal ? _mm512_castsi512_ps(bits) : _mm512_cvtepi32_ps(bits);
    const __m512 factor =
        kX == GroupX::kScaled ? _mm512_mul_ps(scale, _mm512_set1_ps(x_scale[m])) : scale;
    total[m] = _mm512_fmadd_ps(real, factor, total[m]);
  }
}

// With group scales a group's sums leave their tile, are scaled and added to 16 registers.
template <GroupX kX, int kHalves>
void GroupTile(const TileArgs& a) {
  constexpr bool kReal = kX == GroupX::kReal, kScaled = kX == GroupX::kScaled;
  constexpr int64_t kRows = kHalves * kTileRows, kStride = kTilePanels * kPanelColumns;
  alignas(64) uint8_t sum[2][kTileRows * kRowBytes];
  Groups g;
  g.unit_bytes = kReal ? 2 * a.unit : a.unit;
  g.steps = a.blocks_per_group * kBlockDepth / a.unit;
  g.part_bytes = kRows * g.unit_bytes;
  g.x_bytes = (kReal ? kFloatParts : 1) * g.part_bytes;
  g.weight_bytes = g.unit_bytes * kPanelColumns;
  const int64_t groups = a.blocks / a.blocks_per_group;
  Settle();
  for (int half = 0; half < kHalves; ++half) {
    g.x = static_cast<const uint8_t*>(a.x) + half * kTileRows * g.unit_bytes;
    const float* const x_scale = kScaled ? a.x_scale + half * kTileRows : nullptr;
    for (int panel = 0; panel < kTilePanels; ++panel) {
      g.weights = a.weights[panel];
      const float* const scale = a.scale[panel];
      float* const out =
          static_cast<float*>(a.sum) + half * kTileRows * kStride + panel * kPanelColumns;
      __m512 total[kTileRows];
#pragma GCC unroll 16
      for (int m = 0; m < kTileRows; ++m) {
        total[m] = a.first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + m * kStride);
      }
      const auto add = [&](int64_t group) __attribute__((always_inline)) {
        Accumulate<kX>(sum[group % 2], _mm512_loadu_ps(scale + group * kPanelColumns),
                       kScaled ? x_scale + group * kRows : nullptr, total);
      };
      MultiplyEven<kReal>(g, 0, sum[0]);
      int64_t group = 1;
      for (; group + 1 < groups; group += 2) {
        MultiplyOdd<kReal>(g, group, sum[1]);
        add(group - 1);
        MultiplyEven<kReal>(g, group + 1, sum[0]);
        add(group);
      }
      if (group < groups) {
        MultiplyOdd<kReal>(g, group, sum[1]);
        add(group - 1);
        add(group);
      } else {
        add(group - 1);
      }
#pragma GCC unroll 16
      for (int m = 0; m < kTileRows; ++m) _mm512_storeu_ps(out + m * kStride, total[m]);
    }
  }
}

// Calls `store` with each row of a block as signed bytes; group scales become floats.
template <int kBits, class Store>
inline __attribute__((always_inline)) void StageRows(const uint8_t* blocks, int64_t count,
                                                     int64_t blocks_per_group, bool scales,
                                                     float* scale, const Store& store) {
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1));
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(Offset(kBits)));
  for (int64_t b = 0; b < count; b += blocks_per_group) {
    const int64_t rows = (blocks_per_group < count - b ? blocks_per_group : count - b) * kBits;
    for (int64_t row = 0; row < rows; ++row, blocks += kRowBytes) {
      const __m512i packed = _mm512_loadu_si512(blocks);
#pragma GCC unroll 4
      for (int part = 0; part < 8 / kBits; ++part) {
        const __m512i shifted = _mm512_srli_epi16(packed, static_cast<unsigned>(part * kBits));
        const __m512i value = kBits == 8 ? packed : _mm512_and_si512(shifted, mask);
        store(_mm512_sub_epi8(value, offset));
      }
    }
    if (scales) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(blocks));
      _mm512_storeu_ps(scale, _mm512_cvtph_ps(half));
      blocks += sizeof(GroupScales);
      scale += kPanelColumns;
    }
  }
}

template <int kBits>
void StageSigned(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
                 uint8_t* bytes, float* scale) {
  StageRows<kBits>(blocks, count, blocks_per_group, scales, scale, [&](__m512i value) {
    _mm512_storeu_si512(bytes, value);
    bytes += kRowBytes;
  });
}

// 16 dwords of four signed bytes, as two rows of pairs of bfloat16.
inline void StoreBrains(__m512i bytes, uint8_t* to) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const auto brain = [](__m512i value) { return _mm512_castps_si512(_mm512_cvtepi32_ps(value)); };
#pragma GCC unroll 2
  for (int pair = 0; pair < 2; ++pair) {
    const auto up = [&](int byte) { return static_cast<unsigned>(24 - 8 * (2 * pair + byte)); };
    const __m512i first = brain(_mm512_srai_epi32(_mm512_slli_epi32(bytes, up(0)), 24));
    const __m512i second = brain(_mm512_srai_epi32(_mm512_slli_epi32(bytes, up(1)), 24));
    const __m512i both =
        _mm512_or_si512(_mm512_srli_epi32(first, 16), _mm512_and_si512(second, high));
    _mm512_storeu_si512(to + pair * kRowBytes, both);
  }
}

// The same of values in [-16, 16): a look-up reads the low five bits of a word only.
inline void StoreSmallBrains(__m512i bytes, __m512i table, uint8_t* to) {
  constexpr __mmask32 kOdd = 0xaaaaaaaa;
  const __m512i first = _mm512_mask_mov_epi16(bytes, kOdd, _mm512_slli_epi32(bytes, 8));
  const __m512i second =
      _mm512_mask_mov_epi16(_mm512_srli_epi32(bytes, 16), kOdd, _mm512_srli_epi32(bytes, 8));
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(first, table));
  _mm512_storeu_si512(to + kRowBytes, _mm512_permutexvar_epi16(second, table));
}

// Integers of up to 8 bits are exact in bfloat16.
template <int kBits>
void StageBrain(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
                uint8_t* brains, float* scale) {
  uint16_t brain[32];
  for (int i = 0; i < 32; ++i) brain[i] = FloatToBrain(static_cast<float>(i < 16 ? i : i - 32));
  const __m512i table = _mm512_loadu_si512(brain);
  StageRows<kBits>(blocks, count, blocks_per_group, scales, scale, [&](__m512i bytes) {
    if (kBits == 8) {
      StoreBrains(bytes, brains);
    } else {
      StoreSmallBrains(bytes, table, brains);
    }
    brains += 2 * kRowBytes;
  });
}

// A row times a power of two, so that none of the parts that matter is too small for a bfloat16,
// which AMX would take for zero. Cutting bits off leaves an exact rest each time.
void PrepareParts(const PrepareArgs& a) {
  int32_t largest = 0;
  for (int64_t i = 0; i < a.padded_k; ++i) {
    int32_t bits;
    memcpy(&bits, a.x + i, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  const bool finite = largest < 0x7f800000;
  int exponent = finite ? (largest >> 23) - 127 : 0;
  exponent = exponent < -126 ? -126 : (exponent > 126 ? 126 : exponent);
  *a.row_scale = BitsToFloat(static_cast<uint32_t>(127 + exponent) << 23);
  const __m512 factor = _mm512_set1_ps(BitsToFloat(static_cast<uint32_t>(127 - exponent) << 23));
  const __m512i top = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const auto cut = [&](__m512 v) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), top));
  };
  const auto store = [](uint16_t* to, __m512 v) {
    const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(v), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(bits));
  };
  const int64_t rows = a.to.rows / kFloatParts;
  for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
    const int64_t length = a.to.stretch < a.padded_k - at ? a.to.stretch : a.padded_k - at;
    uint16_t* const out = static_cast<uint16_t*>(a.out) + a.to.At(at, length);
    for (int64_t k = 0; k < length; k += 16) {
      const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(a.x + at + k), factor);
      const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
      const __mmask16 infinite =
          _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(3.4028235e38f), _CMP_GT_OQ);
      const __mmask16 plain = static_cast<__mmask16>(number & ~infinite);
      // A NaN must not lose the bits that make it one.
      const __m512 whole = _mm512_mask_mov_ps(_mm512_set1_ps(BitsToFloat(0x7fc00000)), number, x);
      const __m512 first = cut(whole);
      const __m512 rest = _mm512_maskz_sub_ps(plain, whole, first);
      const __m512 second = cut(rest), third = _mm512_maskz_sub_ps(plain, rest, second);
      const int64_t unit = k / a.to.unit * a.to.unit;
      uint16_t* const to = out + unit * a.to.rows + a.to.row * a.to.unit + (k - unit);
      store(to, first);
      store(to + rows * a.to.unit, second);
      store(to + 2 * rows * a.to.unit, third);
    }
  }
}

Kernels Make() {
  Kernels t = avx512_path.kernels();
  t.matrix_begin = Begin;
  t.matrix_end = End;
  t.matrix[kNoScales][0] = ChannelTile<1, false>;
  t.matrix[kNoScales][1] = ChannelTile<2, false>;
  t.matrix[kWeightScales][0] = GroupTile<GroupX::kInteger, 1>;
  t.matrix[kWeightScales][1] = GroupTile<GroupX::kInteger, 2>;
  t.matrix[kBothScales][0] = GroupTile<GroupX::kScaled, 1>;
  t.matrix[kBothScales][1] = GroupTile<GroupX::kScaled, 2>;
  t.matrix_packed8[0] = ChannelTile<1, true>;
  t.matrix_packed8[1] = ChannelTile<2, true>;
  t.matrix_real[0][0] = ChannelRealTile<1>;
  t.matrix_real[0][1] = ChannelRealTile<2>;
  t.matrix_real[1][0] = GroupTile<GroupX::kReal, 1>;
  t.matrix_real[1][1] = GroupTile<GroupX::kReal, 2>;
  t.stage_signed[kPacked8] = StageSigned<8>;
  t.stage_signed[kPacked4] = StageSigned<4>;
  t.stage_signed[kPacked2] = StageSigned<2>;
  t.stage_brain[kPacked8] = StageBrain<8>;
  t.stage_brain[kPacked4] = StageBrain<4>;
  t.stage_brain[kPacked2] = StageBrain<2>;
  t.prepare_parts = PrepareParts;
  return t;
}

}  // namespace

// Tiles, of bfloat16 and of int8.
extern const Path amx_path;
const Path amx_path = {
    "amx",
    []() -> const Kernels& {
      static const Kernels table = Make();
      return table;
    },
    {&avx512_path, {{7, 0, 3, 22}, {7, 0, 3, 24}, {7, 0, 3, 25}}, 0, true},
};

}  // namespace tfquant
#endif
