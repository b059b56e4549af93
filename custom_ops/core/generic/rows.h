// Rows of x on their way to the tiles: integers and scales, or signs. Meaning: reference_matmul.h;
// the order in which they lie: InterleavedRow.
#ifndef TFQUANT_CUSTOM_OPS_CORE_GENERIC_ROWS_H_
#define TFQUANT_CUSTOM_OPS_CORE_GENERIC_ROWS_H_

#include <string.h>

#include <cstdint>

#include "../blocks.h"
#include "../float16.h"
#include "../kernels.h"

namespace tfquant {
namespace {

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

// Where the sums and scales of group `g` of a row go, by PrepareArgs::to. Per channel, the one
// group belongs to the first stretch.
inline int64_t GroupAt(const PrepareArgs& a, int64_t g) {
  const int64_t in_stretch = a.to.stretch < a.group_depth ? 1 : a.to.stretch / a.group_depth;
  const int64_t first = g / in_stretch * in_stretch;
  const int64_t length = Min(in_stretch, a.padded_k / a.group_depth - first);
  return a.to.At(first, length) + (g - first) * a.to.rows + a.to.row;
}

// By the row's or group's largest magnitude; returns the scale.
inline float QuantizeDynamic(const float* x, int64_t count, int32_t largest_bits, int8_t* q) {
  float scale = BitsToFloat(static_cast<uint32_t>(largest_bits)) / 127.0f;
  if (scale < kSmallestScale) scale = 0;
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    q[i] = static_cast<int8_t>(static_cast<int32_t>(Round(x[i] * inverse)));
  }
  return scale;
}

inline void QuantizeStatic(const float* x, int64_t count, float scale, int zero_point, int8_t* q) {
  const float inverse = 1.0f / scale;
  const float zero = static_cast<float>(zero_point);
  for (int64_t i = 0; i < count; ++i) {
    float v = x[i] * inverse;
    v = v < -512.0f ? -512.0f : v;
    v = v > 512.0f ? 512.0f : v;
    v = Round(v) + zero;
    v = v < -128.0f ? -128.0f : v;
    v = v > 127.0f ? 127.0f : v;
    q[i] = static_cast<int8_t>(static_cast<int32_t>(v));
  }
}

// The row's integers, in their order, to `scratch`; its scales to their places.
inline void QuantizeRow(const PrepareArgs& a) {
  const float not_a_number = BitsToFloat(0x7fc00000u);
  const int32_t row_bits = LargestBits(a.x, a.padded_k);
  const bool by_group = a.activations == Activations::kPerGroup;
  const int64_t groups = a.padded_k / a.group_depth;
  if (row_bits >= 0x7f800000) {
    memset(a.scratch, 0, static_cast<size_t>(a.padded_k));
    *a.row_scale = not_a_number;
    for (int64_t g = 0; by_group && g < groups; ++g) a.group_scale[GroupAt(a, g)] = not_a_number;
  } else if (a.activations == Activations::kStatic) {
    QuantizeStatic(a.x, a.padded_k, a.x_scale, a.zero_point, a.scratch);
    *a.row_scale = a.x_scale;
  } else if (by_group) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = g * a.group_depth;
      const int32_t bits = LargestBits(a.x + at, a.group_depth);
      a.group_scale[GroupAt(a, g)] = QuantizeDynamic(a.x + at, a.group_depth, bits, a.scratch + at);
    }
    *a.row_scale = 1;
  } else {
    *a.row_scale = QuantizeDynamic(a.x, a.padded_k, row_bits, a.scratch);
  }
}

inline void InterleaveFloats(const PrepareArgs& a) {
  for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
    const int64_t length = Min(a.to.stretch, a.padded_k - at);
    float* const out = static_cast<float*>(a.out) + a.to.At(at, length) + a.to.row;
    for (int64_t k = 0; k < length; ++k) out[k * a.to.rows] = a.x[at + k];
  }
}

// Bytes, in units of four or of an instruction of a matrix unit.
inline void InterleaveBytes(const PrepareArgs& a) {
  for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
    const int64_t length = Min(a.to.stretch, a.padded_k - at);
    const int8_t* const q = a.scratch + at;
    int8_t* const out = static_cast<int8_t*>(a.out) + a.to.At(at, length) + a.to.row * a.to.unit;
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

// See Kernels::wide.
inline void InterleaveWide(const PrepareArgs& a) {
  for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
    const int64_t length = Min(a.to.stretch, a.padded_k - at);
    const int8_t* const q = a.scratch + at;
    int16_t* out = static_cast<int16_t*>(a.out) + a.to.At(at, length) + a.to.row * a.to.unit;
    for (int64_t k = 0; k < length; k += 4, out += a.to.rows * 4) {
      out[0] = q[k];
      out[1] = q[k + 2];
      out[2] = q[k + 1];
      out[3] = q[k + 3];
    }
  }
}

// Minus the weights' offset times the sum of x, for each group.
inline void OffsetSums(const PrepareArgs& a) {
  for (int64_t g = 0; g < a.padded_k / a.group_depth; ++g) {
    int32_t sum = 0;
    for (int64_t i = 0; i < a.group_depth; ++i) sum += a.scratch[g * a.group_depth + i];
    a.offset_sum[GroupAt(a, g)] = -Offset(a.num_bits) * sum;
  }
}

template <class Isa>
struct GenericRows {
  static void Prepare(const PrepareArgs& a) {
    if (a.activations == Activations::kFloat) {
      *a.row_scale = 1;
      return InterleaveFloats(a);
    }
    QuantizeRow(a);
    Isa::kWide&& a.num_bits == 8 ? InterleaveWide(a) : InterleaveBytes(a);
    if (a.offset_sum == nullptr) return;
    if constexpr (Isa::kPairOffsets) {
      if (a.pair_offsets) return PairOffsets(a);
    }
    OffsetSums(a);
  }

  // See Kernels::pair_offsets.
  static void PairOffsets(const PrepareArgs& a) {
    for (int64_t at = 0; at < a.padded_k; at += a.to.stretch) {
      const int64_t length = Min(a.to.stretch, a.padded_k - at) / kBlockDepth;
      int32_t* const out = a.offset_sum + a.to.At(at / kBlockDepth, length) + a.to.row;
      for (int64_t b = 0; b < length; ++b) {
        const int8_t* const q = a.scratch + at + b * kBlockDepth;
        out[b * a.to.rows] = Isa::OffsetPairs(q, Offset(a.num_bits));
      }
    }
  }

  // Bit j: whether x[j] < 0. Neither -0 nor a NaN is.
  static uint32_t SignByte(const float* x) {
    uint32_t byte = 0;
    for (int j = 0; j < 8; ++j) byte |= static_cast<uint32_t>(x[j] < 0) << j;
    return byte;
  }

  // What Isa::BinaryTile wants of the signs of one row among the kSignRows that share a code.
  static uint32_t EncodeByte(uint32_t byte, int) { return byte; }

  static void EncodeSigns(const float* x, int64_t padded_k, const InterleavedRow& to,
                          uint32_t* out) {
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
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_GENERIC_ROWS_H_
