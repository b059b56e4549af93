// Tiles: some rows of x times a few panels of weights, over a stretch of K; and staging, which
// unpacks weights once for many tiles. What a tile reads and writes: TileArgs.
#ifndef TFQUANT_CUSTOM_OPS_CORE_GENERIC_TILES_H_
#define TFQUANT_CUSTOM_OPS_CORE_GENERIC_TILES_H_

#include <cstdint>

#include "../blocks.h"
#include "../kernels.h"

namespace tfquant {
namespace {

// A processor fetches ahead within a page of memory; into the next tile's weights one line of every
// block shows it the way.
template <int kPanels>
inline void FetchNext(const uint8_t* const (&weights)[kPanels], int64_t next) {
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) __builtin_prefetch(weights[p] + next, 0, 2);
}

template <class Isa>
struct GenericTiles {
  // Integer activations, on packed weights or on staged bytes.
  template <int kBits, bool kPacked, Scales kScales, int kRows, int kPanels>
  static void IntegerTile(const TileArgs& args) {
    using Sum = typename Isa::Sum;
    using Real = typename Isa::Real;
    const uint8_t* weights[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
    const int8_t* x = static_cast<const int8_t*>(args.x);
    constexpr int64_t kBytes = kPacked ? kBits * kRowBytes : 8 * kRowBytes;
    constexpr int kChains = Isa::template kChains<kBits, kPacked, kRows, kScales != kNoScales>;
    static_assert(kChains == 1 || kRows == 1, "");

    if (kScales == kNoScales) {
      int32_t* const out = static_cast<int32_t*>(args.sum);
      Sum sum[kRows * kChains][kPanels];
#pragma GCC unroll 8
      for (int m = 0; m < kRows * kChains; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          if (m >= kRows) {
            sum[m][p] = Isa::Splat(0);
          } else {
            sum[m][p] = args.first ? Isa::Splat(Isa::kUnsignedWeights ? args.offset_sum[m] : 0)
                                   : Isa::LoadSum(out + (m * kPanels + p) * kPanelColumns);
          }
        }
      }
      for (int64_t b = 0; b < args.blocks; ++b, x += kBlockDepth * kRows) {
        if (kRows == 1) FetchNext(weights, args.next);
        Isa::template Dot<kBits, kPacked, kRows, kPanels>(weights, x, sum);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) weights[p] += kBytes;
      }
      if constexpr (kChains > 1) Isa::template Join<kBits>(sum);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          Isa::StoreSum(out + (m * kPanels + p) * kPanelColumns, sum[m][p]);
        }
      }
      return;
    }

    float* const out = static_cast<float*>(args.sum);
    Real total[kRows][kPanels];
    LoadTotals(args.first, out, total);
    const int32_t* offset_sum = args.offset_sum;
    const float* x_scale = args.x_scale;
    const int64_t groups = args.blocks / args.blocks_per_group;
    for (int64_t g = 0; g < groups; ++g, offset_sum += kRows) {
      Sum sum[kRows * kChains][kPanels];
#pragma GCC unroll 8
      for (int m = 0; m < kRows * kChains; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          sum[m][p] = Isa::Splat(Isa::kUnsignedWeights && m < kRows ? offset_sum[m] : 0);
        }
      }
      int64_t b = args.blocks_per_group;
      do {
        if (kRows == 1) FetchNext(weights, args.next);
        Isa::template Dot<kBits, kPacked, kRows, kPanels>(weights, x, sum);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) weights[p] += kBytes;
        x += kBlockDepth * kRows;
      } while (--b > 0);
      if constexpr (kChains > 1) Isa::template Join<kBits>(sum);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        Real scale;
        if (kPacked) {
          scale = Isa::HalfScales(weights[p]);
          weights[p] += sizeof(GroupScales);
        } else {
          scale = Isa::LoadReal(args.scale[p] + g * kPanelColumns);
        }
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          const Real factor =
              kScales == kBothScales ? Isa::Mul(scale, Isa::SplatReal(x_scale[m])) : scale;
          total[m][p] = Isa::Fma(Isa::ToReal(sum[m][p]), factor, total[m][p]);
        }
      }
      if (kScales == kBothScales) x_scale += kRows;
    }
    StoreTotals(total, out);
  }

  // Float activations on packed weights: the group's products are summed, then scaled.
  template <int kBits, bool kScaled, int kRows, int kPanels>
  static void RealTile(const TileArgs& args) {
    constexpr int kValues = 32 / kBits;  // values of k in a row of 64 bytes
    using Real = typename Isa::Real;
    const uint8_t* weights[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
    const float* x = static_cast<const float*>(args.x);
    float* const out = static_cast<float*>(args.sum);

    Real total[kRows][kPanels];
    LoadTotals(args.first, out, total);
    const int64_t groups = args.blocks / args.blocks_per_group;
    for (int64_t g = 0; g < groups; ++g) {
      Real part[kRows][kPanels];
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) part[m][p] = kScaled ? Isa::SplatReal(0) : total[m][p];
      }
      for (int64_t r = 0; r < args.blocks_per_group * kBits; ++r) {
        typename Isa::Row row[kPanels];
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) row[p] = Isa::LoadRow(weights[p] + r * kRowBytes);
#pragma GCC unroll 16
        for (int i = 0; i < kValues; ++i, x += kRows) {
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) {
            const Real value = Isa::template Value<kBits>(row[p], i);
#pragma GCC unroll 8
            for (int m = 0; m < kRows; ++m) {
              part[m][p] = Isa::Fma(value, Isa::SplatReal(x[m]), part[m][p]);
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        weights[p] += args.blocks_per_group * kBits * kRowBytes;
        if (kScaled) {
          const Real scale = Isa::HalfScales(weights[p]);
          weights[p] += sizeof(GroupScales);
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) total[m][p] = Isa::Fma(part[m][p], scale, total[m][p]);
        } else {
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) total[m][p] = part[m][p];
        }
      }
    }
    StoreTotals(total, out);
  }

  // Float activations on staged weights: `weights` are floats [k][16], already scaled.
  template <int kRows, int kPanels>
  static void StagedRealTile(const TileArgs& args) {
    using Real = typename Isa::Real;
    const float* weights[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) weights[p] = reinterpret_cast<const float*>(args.weights[p]);
    const float* x = static_cast<const float*>(args.x);
    float* const out = static_cast<float*>(args.sum);
    Real total[kRows][kPanels];
    LoadTotals(args.first, out, total);
    const int64_t depth = args.blocks * kBlockDepth;
    for (int64_t k = 0; k < depth; ++k, x += kRows) {
      Real value[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) value[p] = Isa::LoadReal(weights[p] + k * kPanelColumns);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const Real one = Isa::SplatReal(x[m]);
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) total[m][p] = Isa::Fma(value[p], one, total[m][p]);
      }
    }
    StoreTotals(total, out);
  }

  // What the tiles of the depth before this one left, zero for the first.
  template <class Real, int kRows, int kPanels>
  __attribute__((always_inline)) static void LoadTotals(bool first, const float* out,
                                                        Real (&total)[kRows][kPanels]) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        total[m][p] =
            first ? Isa::SplatReal(0) : Isa::LoadReal(out + (m * kPanels + p) * kPanelColumns);
      }
    }
  }

  template <class Real, int kRows, int kPanels>
  __attribute__((always_inline)) static void StoreTotals(const Real (&total)[kRows][kPanels],
                                                         float* out) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        Isa::StoreReal(out + (m * kPanels + p) * kPanelColumns, total[m][p]);
      }
    }
  }

  template <int kBits>
  static void Stage(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
                    uint8_t* bytes, float* scale) {
    for (int64_t b = 0; b < count; b += blocks_per_group) {
      for (int64_t i = 0; i < blocks_per_group && b + i < count; ++i) {
        Isa::template Unpack<kBits>(blocks, bytes);
        blocks += kBits * kRowBytes;
        bytes += (Isa::kWide && kBits == 8 ? 2 : 1) * 8 * kRowBytes;
      }
      if (scales) {
        Isa::StoreReal(scale, Isa::HalfScales(blocks));
        blocks += sizeof(GroupScales);
        scale += kPanelColumns;
      }
    }
  }

  template <int kBits>
  static void StageReal(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
                        uint8_t* bytes, float*) {
    float* values = reinterpret_cast<float*>(bytes);
    for (int64_t b = 0; b < count; b += blocks_per_group) {
      const int64_t rows = Min(blocks_per_group, count - b) * kBits;
      const typename Isa::Real scale =
          scales ? Isa::HalfScales(blocks + rows * kRowBytes) : Isa::SplatReal(1);
      for (int64_t r = 0; r < rows; ++r, blocks += kRowBytes) {
        const typename Isa::Row row = Isa::LoadRow(blocks);
#pragma GCC unroll 16
        for (int i = 0; i < 32 / kBits; ++i, values += kPanelColumns) {
          Isa::StoreReal(values, Isa::Mul(Isa::template Value<kBits>(row, i), scale));
        }
      }
      if (scales) blocks += sizeof(GroupScales);
    }
  }
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_GENERIC_TILES_H_
