// The algorithms of every path, written once over a set of vector operations `Isa`. A path's
// kernels.cc defines its `Isa` in an anonymous namespace, includes this file and asks for
// `PanelKernels<Isa>::kTable`. Meaning: reference_matmul.h. Layouts: blocks.h.
//
// `Isa` provides
//   constants   kUnsignedWeights, kPanels, kGemvPanels, kMaxRowSize, kMaxGroupedRowSize,
//               kBinaryStretch, kSignRows, kOwnTiles, kOwnRealGemv, kStagesIntegers,
//               kStagesBinary, kChains<kBits, kPacked, rows, grouped>
//   Sum         16 x int32:  Splat LoadSum StoreSum ToReal
//   Real        16 x float:  SplatReal LoadReal StoreReal StreamReal Fma Mul HalfScales
//   Dot<kBits, kPacked, rows, panels>(weights, x, sum)   sum += one block of 32 values of k; where
//                                                        kChains > 1, Join<kBits>(sum) makes that
//                                                        many sums of one row the first of them
//   Unpack<kBits>(block, bytes)                          a block as 8 rows of bytes; if
//                                                        kStagesIntegers
//   Value<kBits>(row, index)                             one k of a row, offset removed, as Real
//   BinaryTile<staged, rows>, SignByte, EncodeByte       1-bit weights; StageBinary, if
//                                                        kStagesBinary
//   DequantizeRun, DequantizeColumns, Fence              plain rows
//   DequantizeBook                                       the same of 8 bits and a codebook; columns
//                                                        that it did, or 0
// and, if kOwnTiles, in place of Dot
//   IntegerTile<kBits, kPacked, scales, rows, panels>, OffsetPairs
// which want what Kernels::pair_offsets and Kernels::wide say, and of Unpack too; if kOwnRealGemv
//   RealGemv4<scaled, panels>                            RealTile of one row and 4 bits
//
// Everything here is compiled once for each path with that path's instructions, so nothing may be
// shared between the paths: all of it lives in an anonymous namespace, and no standard template is
// instantiated.
#ifndef TFQUANT_CUSTOM_OPS_CORE_PANEL_KERNELS_H_
#define TFQUANT_CUSTOM_OPS_CORE_PANEL_KERNELS_H_

#include <math.h>
#include <string.h>

#include <cstdint>

#include "blocks.h"
#include "float16.h"
#include "kernels.h"

namespace tfquant {
namespace {

constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

// A processor fetches ahead within a page of memory; into the next tile's weights one line of every
// block shows it the way.
template <int kPanels>
inline void FetchNext(const uint8_t* const (&weights)[kPanels], int64_t next) {
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) __builtin_prefetch(weights[p] + next, 0, 2);
}

template <class Isa, int kBits, bool kPacked, Scales kScales, int kRows, int kPanels>
void IntegerTile(const TileArgs& args) {
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
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      total[m][p] =
          args.first ? Isa::SplatReal(0) : Isa::LoadReal(out + (m * kPanels + p) * kPanelColumns);
    }
  }
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
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      Isa::StoreReal(out + (m * kPanels + p) * kPanelColumns, total[m][p]);
    }
  }
}

// Float activations on packed weights: the group's products are summed, then scaled.
template <class Isa, int kBits, bool kScaled, int kRows, int kPanels>
void RealTile(const TileArgs& args) {
  constexpr int kValues = 32 / kBits;  // values of k in a row of 64 bytes
  using Real = typename Isa::Real;
  const uint8_t* weights[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) weights[p] = args.weights[p];
  const float* x = static_cast<const float*>(args.x);
  float* const out = static_cast<float*>(args.sum);

  Real total[kRows][kPanels];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      total[m][p] =
          args.first ? Isa::SplatReal(0) : Isa::LoadReal(out + (m * kPanels + p) * kPanelColumns);
    }
  }
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
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      Isa::StoreReal(out + (m * kPanels + p) * kPanelColumns, total[m][p]);
    }
  }
}

// Float activations on staged weights: `weights` are floats [k][16], already scaled.
template <class Isa, int kRows, int kPanels>
void StagedRealTile(const TileArgs& args) {
  using Real = typename Isa::Real;
  const float* weights[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) weights[p] = reinterpret_cast<const float*>(args.weights[p]);
  const float* x = static_cast<const float*>(args.x);
  float* const out = static_cast<float*>(args.sum);
  Real total[kRows][kPanels];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      total[m][p] =
          args.first ? Isa::SplatReal(0) : Isa::LoadReal(out + (m * kPanels + p) * kPanelColumns);
    }
  }
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
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      Isa::StoreReal(out + (m * kPanels + p) * kPanelColumns, total[m][p]);
    }
  }
}

template <class Isa, int kBits>
void Stage(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
           uint8_t* bytes, float* scale) {
  for (int64_t b = 0; b < count; b += blocks_per_group) {
    for (int64_t i = 0; i < blocks_per_group && b + i < count; ++i) {
      Isa::template Unpack<kBits>(blocks, bytes);
      blocks += kBits * kRowBytes;
      bytes += (Isa::kOwnTiles && kBits == 8 ? 2 : 1) * 8 * kRowBytes;
    }
    if (scales) {
      Isa::StoreReal(scale, Isa::HalfScales(blocks));
      blocks += sizeof(GroupScales);
      scale += kPanelColumns;
    }
  }
}

template <class Isa, int kBits>
void StageReal(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
               float* values) {
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

// Adding and taking away 1.5 * 2^23 rounds |v| < 2^22 to nearest, ties to even.
inline float Round(float v) { return (v + 12582912.0f) - 12582912.0f; }

// Bits of the largest magnitude; as integers, so that Inf and NaN come out on top.
inline int32_t LargestBits(const float* x, int64_t count) {
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

template <class Isa>
void Prepare(const PrepareArgs& a) {
  if (a.activations == Activations::kFloat) {
    for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
      const int64_t length = Min(a.to.stretch, a.padded_k - at);
      float* const out = static_cast<float*>(a.out) + a.to.At(at, length) + a.to.row;
      for (int64_t k = 0; k < length; ++k) out[k * a.to.rows] = a.x[at + k];
    }
    *a.row_scale = 1;
    return;
  }
  constexpr float kSmallest = 1.17549435e-38f;
  const int32_t row_bits = LargestBits(a.x, a.padded_k);
  const bool finite = row_bits < 0x7f800000;
  const bool by_group = a.activations == Activations::kPerGroup;
  const int64_t stretch = by_group ? a.group_depth : a.padded_k;
  const float not_a_number = BitsToFloat(0x7fc00000u);
  const int64_t groups = a.padded_k / a.group_depth;
  // At least one group: per channel, the one group belongs to the first stretch.
  const int64_t group_stretch = a.to.stretch < a.group_depth ? 1 : a.to.stretch / a.group_depth;
  const auto group_at = [&](int64_t g) {
    const int64_t first = g / group_stretch * group_stretch;
    return a.to.At(first, Min(group_stretch, groups - first)) + (g - first) * a.to.rows + a.to.row;
  };
  *a.row_scale = finite ? 1 : not_a_number;
  for (int64_t at = 0, g = 0; at < a.padded_k; at += stretch, ++g) {
    const float* const x = a.x + at;
    int8_t* const q = a.scratch + at;
    if (!finite) {
      memset(q, 0, static_cast<size_t>(stretch));
      if (by_group) a.group_scale[group_at(g)] = not_a_number;
      continue;
    }
    if (a.activations == Activations::kStatic) {
      *a.row_scale = a.x_scale;
      const float inverse = 1.0f / a.x_scale;
      const float zero = static_cast<float>(a.zero_point);
      for (int64_t i = 0; i < stretch; ++i) {
        float v = x[i] * inverse;
        v = v < -512.0f ? -512.0f : v;
        v = v > 512.0f ? 512.0f : v;
        v = Round(v) + zero;
        v = v < -128.0f ? -128.0f : v;
        v = v > 127.0f ? 127.0f : v;
        q[i] = static_cast<int8_t>(static_cast<int32_t>(v));
      }
      continue;
    }
    const float absmax =
        BitsToFloat(static_cast<uint32_t>(by_group ? LargestBits(x, stretch) : row_bits));
    float scale = absmax / 127.0f;
    if (scale < kSmallest) scale = 0;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < stretch; ++i) {
      q[i] = static_cast<int8_t>(static_cast<int32_t>(Round(x[i] * inverse)));
    }
    if (by_group) {
      a.group_scale[group_at(g)] = scale;
    } else {
      *a.row_scale = scale;
    }
  }
  const bool wide = Isa::kOwnTiles && a.num_bits == 8;
  for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
    const int64_t length = Min(a.to.stretch, a.padded_k - at);
    const int64_t place = a.to.At(at, length) + a.to.row * a.to.unit;
    const int8_t* const q = a.scratch + at;
    if (wide) {
      int16_t* out = static_cast<int16_t*>(a.out) + place;
      for (int64_t k = 0; k < length; k += 4, out += a.to.rows * 4) {
        out[0] = q[k];
        out[1] = q[k + 2];
        out[2] = q[k + 1];
        out[3] = q[k + 3];
      }
    } else {
      int8_t* const out = static_cast<int8_t*>(a.out) + place;
      if (a.to.unit == 4) {
        for (int64_t k = 0; k < length; k += 4) memcpy(out + k * a.to.rows, q + k, 4);
      } else {
        for (int64_t k = 0; k < length; k += kBlockDepth) {
          const int64_t in_unit = k % a.to.unit;
          memcpy(out + (k - in_unit) * a.to.rows + in_unit, q + k, kBlockDepth);
        }
      }
    }
  }
  if (a.offset_sum == nullptr) return;
  if constexpr (Isa::kOwnTiles) {
    if (a.pair_offsets) {
      for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
        const int64_t length = Min(a.to.stretch, a.padded_k - at) / kBlockDepth;
        int32_t* const out = a.offset_sum + a.to.At(at / kBlockDepth, length) + a.to.row;
        for (int64_t b = 0; b < length; ++b) {
          out[b * a.to.rows] =
              Isa::OffsetPairs(a.scratch + at + b * kBlockDepth, Offset(a.num_bits));
        }
      }
      return;
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = 0; i < a.group_depth; ++i) sum += a.scratch[g * a.group_depth + i];
    a.offset_sum[group_at(g)] = -Offset(a.num_bits) * sum;
  }
}

inline float Fuse(float v, Fused fused) {
  switch (fused) {
    case Fused::kNone:
      return v;
    case Fused::kRelu:
      return v < 0 ? 0 : v;
    case Fused::kRelu6:
      return v < 0 ? 0 : (v > 6 ? 6 : v);
    case Fused::kGelu:
      return 0.5f * v * (1 + erff(v * 0.70710678f));
    case Fused::kGeluTanh: {
      const float inner = 0.79788456f * (v + 0.044715f * v * v * v);
      return 0.5f * v * (1 + tanhf(inner));
    }
    case Fused::kSilu:
      return v / (1 + expf(-v));
    case Fused::kSigmoid:
      return 1 / (1 + expf(-v));
    case Fused::kTanh:
      return tanhf(v);
  }
  return v;
}

// Whole registers of the common case; returns the number of columns done.
template <class Isa>
int64_t FinishPlain(const FinishArgs& a) {
  using Real = typename Isa::Real;
  if (a.column_sum || a.fused != Fused::kNone || a.type != DataType::kFloat32) return 0;
  const int64_t whole = a.columns / kPanelColumns * kPanelColumns;
  for (int64_t m = 0; m < a.rows; ++m) {
    const Real row_scale = Isa::SplatReal(a.row_scale ? a.row_scale[m] : 1.0f);
    for (int64_t at = 0; at < whole; at += kPanelColumns) {
      const int64_t from = m * a.stride + at;
      Real v = a.integer ? Isa::ToReal(Isa::LoadSum(static_cast<const int32_t*>(a.sum) + from))
                         : Isa::LoadReal(static_cast<const float*>(a.sum) + from);
      v = Isa::Mul(Isa::Mul(v, row_scale), Isa::LoadReal(a.column_scale + at));
      if (a.bias) v = Isa::Fma(v, Isa::SplatReal(1), Isa::LoadReal(a.bias + at));
      float* const to = static_cast<float*>(a.y) + m * a.y_stride + at;
      if (a.stream && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
        Isa::StreamReal(to, v);
      } else {
        Isa::StoreReal(to, v);
      }
    }
  }
  if (a.stream) Isa::Fence();
  return whole;
}

template <class Isa>
void Finish(const FinishArgs& a) {
  constexpr int64_t kChunk = 64;
  float line[kChunk];
  const int64_t done = FinishPlain<Isa>(a);
  for (int64_t m = 0; m < a.rows; ++m) {
    const float row_scale = a.row_scale ? a.row_scale[m] : 1.0f;
    for (int64_t at = done; at < a.columns; at += kChunk) {
      const int64_t count = Min(kChunk, a.columns - at);
      const float* const column_scale = a.column_scale + at;
      if (a.integer) {
        const int32_t* const sum = static_cast<const int32_t*>(a.sum) + m * a.stride + at;
        if (a.column_sum) {  // exact: a float holds a column's sum, and a double the difference
          const double zero = a.zero_point;
          for (int64_t c = 0; c < count; ++c) {
            const double offset = zero * static_cast<double>(a.column_sum[at + c]);
            line[c] = static_cast<float>(static_cast<double>(sum[c]) - offset);
          }
        } else {
          for (int64_t c = 0; c < count; ++c) line[c] = static_cast<float>(sum[c]);
        }
      } else {
        const float* const sum = static_cast<const float*>(a.sum) + m * a.stride + at;
        const float zero = a.column_sum ? static_cast<float>(a.zero_point) : 0.0f;
        if (a.column_sum) {
          for (int64_t c = 0; c < count; ++c) line[c] = sum[c] - zero * a.column_sum[at + c];
        } else {
          for (int64_t c = 0; c < count; ++c) line[c] = sum[c];
        }
      }
      for (int64_t c = 0; c < count; ++c) line[c] = line[c] * row_scale * column_scale[c];
      if (a.bias) {
        for (int64_t c = 0; c < count; ++c) line[c] += a.bias[at + c];
      }
      if (a.fused == Fused::kRelu) {
        for (int64_t c = 0; c < count; ++c) line[c] = Fuse(line[c], Fused::kRelu);
      } else if (a.fused != Fused::kNone) {
        for (int64_t c = 0; c < count; ++c) line[c] = Fuse(line[c], a.fused);
      }
      const int64_t to = m * a.y_stride + at;
      if (a.type == DataType::kFloat32) {
        memcpy(static_cast<float*>(a.y) + to, line, static_cast<size_t>(count) * 4);
      } else {
        uint16_t* const y = static_cast<uint16_t*>(a.y) + to;
        for (int64_t c = 0; c < count; ++c) y[c] = FloatToBrain(line[c]);
      }
    }
  }
}

// One code for eight signs of each of kSignRows rows, what Isa::BinaryTile wants of them.
inline uint32_t PlainSignByte(const float* x) {
  uint32_t byte = 0;
  for (int j = 0; j < 8; ++j) byte |= static_cast<uint32_t>(x[j] < 0) << j;
  return byte;
}

template <class Isa>
void EncodeSigns(const float* x, int64_t padded_k, const InterleavedRow& to, uint32_t* out) {
  const int64_t codes = padded_k / 8;
  for (int64_t at = 0; at < codes; at += to.stretch) {
    const int64_t length = Min(to.stretch, codes - at);
    uint32_t* const piece = out + to.At(at, length) + to.row / Isa::kSignRows;
    const int in_code = static_cast<int>(to.row % Isa::kSignRows);
    for (int64_t i = 0; i < length; ++i, x += 8) {
      const uint32_t code = Isa::EncodeByte(Isa::SignByte(x), in_code);
      // The rows of a tile are encoded one after the other.
      piece[i * to.rows] = in_code ? piece[i * to.rows] | code : code;
    }
  }
}

template <class Isa, bool kStaged, int kRows>
void BinaryTile(const BinaryTileArgs& args) {
  Isa::template BinaryTile<kStaged, kRows>(args.weights, args.depth, args.x, args.sum);
}

template <int kBits>
inline uint32_t PlainValue(const uint8_t* packed, int64_t i) {
  constexpr int kInByte = 8 / kBits;
  return (packed[i / kInByte] >> (i % kInByte * kBits)) & ((1u << kBits) - 1u);
}

inline void StoreValue(const DequantizeArgs& a, int64_t i, float v) {
  if (a.type == DataType::kFloat32) {
    memcpy(static_cast<float*>(a.out) + i, &v, 4);
  } else {
    static_cast<uint16_t*>(a.out)[i] = FloatToBrain(v);
  }
}

// Values are stored unsigned; the zero point of one that was signed and symmetric is its offset.
template <int kBits>
inline float ZeroPoint(const DequantizeArgs& a, int64_t group) {
  return a.zero_point ? a.zero_point[group] : static_cast<float>(Offset(kBits));
}

// out = scale * (v - zero_point), or scale * codebook[v].
template <class Isa, int kBits>
void DequantizeBits(const DequantizeArgs& a) {
  constexpr int64_t kInByte = 8 / kBits;
  // What a value stands for before its scale; repeated to 16, so that a look-up may take the bits
  // of the next value along.
  float small[16];
  const float* base = a.codebook;
  if (kBits < 8) {
    for (int j = 0; j < 16; ++j) {
      const int v = j & ((1 << kBits) - 1);
      small[j] = a.codebook ? a.codebook[v] : static_cast<float>(v);
    }
    base = small;
  }
  const int64_t done = kBits == 8 && a.codebook ? Isa::DequantizeBook(a) : 0;
  for (int64_t at = 0, g = 0; at < a.columns; at += a.group_size, ++g) {
    int64_t i = at < done ? done : at;
    const int64_t end = Min(at + a.group_size, a.columns);
    if (end - i >= 16 && i % kInByte == 0) {
      const float zero_point = a.codebook ? 0.0f : ZeroPoint<kBits>(a, g);
      i += Isa::template DequantizeRun<kBits>(a, i, end - i, base, a.scale[g], zero_point);
    } else if (a.group_size == 1 && !a.codebook && a.columns - i >= 16) {
      i += Isa::template DequantizeColumns<kBits>(a, a.columns, base);
      at = i - 1;
      g = at;
      continue;
    }
    for (; i < end; ++i) {
      const uint32_t v = PlainValue<kBits>(a.packed, i);
      StoreValue(a, i,
                 a.scale[g] * (a.codebook ? a.codebook[v]
                                          : static_cast<float>(static_cast<int>(v)) -
                                                ZeroPoint<kBits>(a, g)));
    }
  }
}

template <class Isa>
void Dequantize(const DequantizeArgs& args) {
  switch (args.num_bits) {
    case 8:
      DequantizeBits<Isa, 8>(args);
      break;
    case 4:
      DequantizeBits<Isa, 4>(args);
      break;
    case 2:
      DequantizeBits<Isa, 2>(args);
      break;
    default:
      DequantizeBits<Isa, 1>(args);
  }
  if (args.stream) Isa::Fence();
}

// Plain loops for an Isa that has nothing better; the compiler vectorizes them.
template <int kBits>
int64_t PlainRun(const DequantizeArgs& a, int64_t at, int64_t count, const float* base, float scale,
                 float zero_point) {
  constexpr int64_t kInByte = 8 / kBits;
  const int64_t whole = count / kInByte * kInByte;
  const uint8_t* const packed = a.packed + at / kInByte;
  constexpr int64_t kChunk = 64;
  float line[kChunk];
  for (int64_t c = 0; c < whole; c += kChunk) {
    const int64_t length = Min(kChunk, whole - c);
    for (int64_t i = 0; i < length / kInByte; ++i) {
      const uint32_t byte = packed[c / kInByte + i];
      for (int j = 0; j < kInByte; ++j) {
        const uint32_t v = (byte >> (j * kBits)) & ((1u << kBits) - 1u);
        const float value = base ? base[v] : static_cast<float>(static_cast<int>(v));
        line[i * kInByte + j] = scale * (value - zero_point);
      }
    }
    if (a.type == DataType::kFloat32) {
      memcpy(static_cast<float*>(a.out) + at + c, line, static_cast<size_t>(length) * 4);
    } else {
      uint16_t* const out = static_cast<uint16_t*>(a.out) + at + c;
      for (int64_t i = 0; i < length; ++i) out[i] = FloatToBrain(line[i]);
    }
  }
  return whole;
}

// Every column its own scale.
template <int kBits>
int64_t PlainColumns(const DequantizeArgs& a, int64_t count) {
  constexpr int64_t kChunk = 64;
  float line[kChunk];
  const int64_t whole = count / 8 * 8;
  for (int64_t c = 0; c < whole; c += kChunk) {
    const int64_t length = Min(kChunk, whole - c);
    for (int64_t i = 0; i < length; ++i) {
      const int v = static_cast<int>(PlainValue<kBits>(a.packed, c + i));
      line[i] = a.scale[c + i] * (static_cast<float>(v) - ZeroPoint<kBits>(a, c + i));
    }
    if (a.type == DataType::kFloat32) {
      memcpy(static_cast<float*>(a.out) + c, line, static_cast<size_t>(length) * 4);
    } else {
      uint16_t* const out = static_cast<uint16_t*>(a.out) + c;
      for (int64_t i = 0; i < length; ++i) out[i] = FloatToBrain(line[i]);
    }
  }
  return whole;
}

template <class Isa>
struct PanelKernels {
  template <int kBits, bool kPacked, Scales kScales, int kRows, int kPanels>
  static constexpr Tile OneInteger() {
    if constexpr (Isa::kOwnTiles) {
      return Isa::template IntegerTile<kBits, kPacked, kScales, kRows, kPanels>;
    } else {
      return IntegerTile<Isa, kBits, kPacked, kScales, kRows, kPanels>;
    }
  }

  template <int kBits, bool kPacked, int kRows, int kPanels>
  static constexpr void FillInteger(Kernels* t, int size) {
    auto& to = t->integer[SourceOf(kBits, !kPacked)];
    to[kNoScales][size] = OneInteger<kBits, kPacked, kNoScales, kRows, kPanels>();
    to[kWeightScales][size] = OneInteger<kBits, kPacked, kWeightScales, kRows, kPanels>();
    to[kBothScales][size] = OneInteger<kBits, kPacked, kBothScales, kRows, kPanels>();
  }

  template <int kBits, bool kScaled, int kRows, int kPanels>
  static constexpr Tile OneReal() {
    if constexpr (Isa::kOwnRealGemv && kBits == 4 && kRows == 1) {
      return Isa::template RealGemv4<kScaled, kPanels>;
    } else {
      return RealTile<Isa, kBits, kScaled, kRows, kPanels>;
    }
  }

  template <int kBits, int kRows, int kPanels>
  static constexpr void FillReal(Kernels* t, int size) {
    t->real[SourceOf(kBits, false)][0][size] = OneReal<kBits, false, kRows, kPanels>();
    t->real[SourceOf(kBits, false)][1][size] = OneReal<kBits, true, kRows, kPanels>();
  }

  template <int kSize>
  static constexpr void FillSize(Kernels* t) {
    constexpr int kRows = kSize == kGemv ? 1 : 1 << kSize;
    constexpr int kPanels = kSize == kGemv ? Isa::kGemvPanels : Isa::kPanels;
    if constexpr (kSize <= Isa::kMaxRowSize || kSize == kGemv) {
      FillInteger<8, true, kRows, kPanels>(t, kSize);
      FillInteger<4, true, kRows, kPanels>(t, kSize);
      FillInteger<2, true, kRows, kPanels>(t, kSize);
      FillReal<8, kRows, kPanels>(t, kSize);
      FillReal<4, kRows, kPanels>(t, kSize);
      FillReal<2, kRows, kPanels>(t, kSize);
      if constexpr (kSize != kGemv) {
        if constexpr (Isa::kOwnTiles) {
          FillInteger<8, false, kRows, kPanels>(t, kSize);
          FillInteger<2, false, kRows, kPanels>(t, kSize);
        }
        if constexpr (Isa::kStagesIntegers) {
          FillInteger<4, false, kRows, kPanels>(t, kSize);
          for (int s = 0; s < kScaleModes && !Isa::kOwnTiles; ++s) {  // bytes are bytes
            t->integer[kStaged2][s][kSize] = t->integer[kStaged4][s][kSize];
          }
        }
        t->staged_real[kSize] = StagedRealTile<Isa, kRows, kPanels>;
        t->binary[0][kSize] = BinaryTile<Isa, false, kRows>;
        if constexpr (Isa::kStagesBinary) t->binary[1][kSize] = BinaryTile<Isa, true, kRows>;
      }
    }
  }

  static constexpr Kernels Make() {
    Kernels t = {};
    t.panels = Isa::kPanels;
    t.gemv_panels = Isa::kGemvPanels;
    t.max_row_size[0] = Isa::kMaxRowSize;
    t.max_row_size[1] = Isa::kMaxGroupedRowSize;
    t.unsigned_weights = Isa::kUnsignedWeights;
    t.pair_offsets = t.wide = Isa::kOwnTiles;
    t.binary_stretch = Isa::kBinaryStretch;
    FillSize<0>(&t);
    FillSize<1>(&t);
    FillSize<2>(&t);
    FillSize<3>(&t);
    FillSize<kGemv>(&t);
    if constexpr (Isa::kStagesIntegers) {
      if (Isa::kOwnTiles) t.stage[kPacked8] = Stage<Isa, 8>;
      t.stage[kPacked4] = Stage<Isa, 4>;
      t.stage[kPacked2] = Stage<Isa, 2>;
    }
    t.stage_real[kPacked8] = StageReal<Isa, 8>;
    t.stage_real[kPacked4] = StageReal<Isa, 4>;
    t.stage_real[kPacked2] = StageReal<Isa, 2>;
    t.prepare = Prepare<Isa>;
    t.finish = Finish<Isa>;
    t.encode_signs = EncodeSigns<Isa>;
    if constexpr (Isa::kStagesBinary) t.stage_binary = Isa::StageBinary;
    t.dequantize = Dequantize<Isa>;
    return t;
  }

  static constexpr Kernels kTable = Make();
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_PANEL_KERNELS_H_
