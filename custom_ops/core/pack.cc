#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "float16.h"

namespace tfquant {
namespace {

// Byte and shift of value (k, n) within its panel.
struct Place {
  int64_t byte;
  int shift;
};

Place PlaceOf(const PackedLayout& layout, int64_t k, int64_t column) {
  if (layout.binary()) return {k / 8 * kBinaryPanelColumns + column, static_cast<int>(k % 8)};
  const int64_t group = k / layout.group_depth();
  const int64_t in_group = k % layout.group_depth();
  const int64_t block = in_group / kBlockDepth;
  const int64_t step = in_group % kBlockDepth / 4;
  const int64_t steps_in_row = 8 / layout.num_bits;
  const int64_t byte = group * layout.group_bytes() + block * layout.block_bytes() +
                       step / steps_in_row * kRowBytes + column * 4 + in_group % 4;
  return {byte, static_cast<int>(step % steps_in_row) * layout.num_bits};
}

int64_t ScaleByte(const PackedLayout& layout, int64_t group, int64_t column) {
  return (group + 1) * layout.group_bytes() - static_cast<int64_t>(sizeof(GroupScales)) +
         column * 2;
}

void StoreFloat(uint8_t* at, float value) { std::memcpy(at, &value, sizeof(value)); }

float LoadFloat(const uint8_t* at) {
  float value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

float LoadHalf(const uint8_t* at) {
  uint16_t half;
  std::memcpy(&half, at, sizeof(half));
  return HalfToFloat(half);
}

}  // namespace

std::string MakeLayout(int num_bits, int64_t group_size, int64_t k, int64_t n,
                       PackedLayout* layout) {
  if (num_bits != 8 && num_bits != 4 && num_bits != 2 && num_bits != 1) {
    return "`num_bits` must be 8, 4, 2 or 1. Received: num_bits=" + std::to_string(num_bits) + ".";
  }
  if (group_size != 0 && group_size != 32 && group_size != 64 && group_size != 128) {
    return "`group_size` must be 32, 64, 128 or 0 (per channel). Received: group_size=" +
           std::to_string(group_size) + ".";
  }
  if (num_bits == 1 && group_size != 0) {
    return "1-bit weights have one scale per channel: `group_size` must be 0. Received: "
           "group_size=" +
           std::to_string(group_size) + ".";
  }
  if (k < 1 || n < 1 || k >= std::numeric_limits<int32_t>::max() || n > kMaxColumns) {
    return "The weights must have 1 to 2^31 rows and columns. Received: k=" + std::to_string(k) +
           ", n=" + std::to_string(n) + ".";
  }
  if (group_size == 0 && num_bits != 1 && k > kMaxDepth) {
    return "Per-channel weights may have at most " + std::to_string(kMaxDepth) +
           " rows, or the int32 accumulator could overflow; use a group size. Received: k=" +
           std::to_string(k) + ".";
  }
  *layout = PackedLayout{num_bits, group_size, k, n};
  return "";
}

std::string CheckPackedBytes(int64_t bytes, const PackedLayout& layout) {
  if (bytes != layout.bytes()) {
    return "`weights` must hold " + std::to_string(layout.bytes()) +
           " bytes for k=" + std::to_string(layout.k) + ", n=" + std::to_string(layout.n) +
           ", num_bits=" + std::to_string(layout.num_bits) +
           ", group_size=" + std::to_string(layout.group_size) +
           ". Received: " + std::to_string(bytes) + " bytes.";
  }
  return "";
}

std::string CheckPacked(const uint8_t* data, int64_t bytes, const PackedLayout& layout) {
  const std::string error = CheckPackedBytes(bytes, layout);
  if (!error.empty()) return error;
  PackedHeader header;
  std::memcpy(&header, data, sizeof(header));
  if (header.magic != kPackedMagic || header.num_bits != layout.num_bits ||
      header.group_size != layout.group_size || header.k != layout.k || header.n != layout.n) {
    return "`weights` must be packed with k=" + std::to_string(layout.k) +
           ", n=" + std::to_string(layout.n) + ", num_bits=" + std::to_string(layout.num_bits) +
           ", group_size=" + std::to_string(layout.group_size) +
           ". Received: a buffer whose header says otherwise.";
  }
  return "";
}

std::string PackMatmul(const int8_t* q, const float* scale, const PackedLayout& layout,
                       uint8_t* out) {
  const int64_t k = layout.k, n = layout.n, groups = layout.groups();
  for (int64_t i = 0; i < groups * n; ++i) {
    if (!(std::isfinite(scale[i]) && scale[i] > 0)) {
      return "`scale` must be positive and finite. Received: " + std::to_string(scale[i]) + ".";
    }
  }
  const int bits = layout.num_bits;
  const int low = bits == 1 ? -1 : -Offset(bits), high = bits == 1 ? 1 : Offset(bits) - 1;
  for (int64_t i = 0; i < k * n; ++i) {
    if (q[i] < low || q[i] > high || (bits == 1 && q[i] == 0)) {
      return (bits == 1 ? std::string("1-bit values must be -1 or 1.")
                        : "Values must lie in [" + std::to_string(low) + ", " +
                              std::to_string(high) + "].") +
             " Received: " + std::to_string(q[i]) + ".";
    }
  }

  std::memset(out, 0, static_cast<size_t>(layout.bytes()));
  const PackedHeader header = {kPackedMagic, bits, layout.group_size, k, n, {}};
  std::memcpy(out, &header, sizeof(header));
  uint8_t* const column_scale = out + layout.column_scale_offset();

  if (layout.binary()) {
    for (int64_t c = 0; c < n; ++c) {
      uint8_t* const panel =
          out + layout.panels_offset() + c / kBinaryPanelColumns * layout.panel_bytes();
      for (int64_t i = 0; i < k; ++i) {
        const Place place = PlaceOf(layout, i, c % kBinaryPanelColumns);
        if (q[i * n + c] < 0) panel[place.byte] |= static_cast<uint8_t>(1u << place.shift);
      }
      StoreFloat(column_scale + c * 4, scale[c]);
    }
    return "";
  }

  uint8_t* const column_sum = out + layout.column_sum_offset();
  for (int64_t c = 0; c < layout.padded_n(); ++c) {
    uint8_t* const panel = out + layout.panels_offset() + c / kPanelColumns * layout.panel_bytes();
    const int64_t column = c % kPanelColumns;
    float factor = c < n ? scale[c] : 0.0f;
    if (layout.group_size && c < n) {
      // The power of two that brings the column's largest scale into [1, 2).
      float largest = 0;
      for (int64_t g = 0; g < groups; ++g) largest = std::max(largest, scale[g * n + c]);
      factor = std::ldexp(1.0f, std::max(std::ilogb(largest), -126));
    }
    double sum = 0;
    for (int64_t g = 0; g < groups; ++g) {
      float group_scale = 1.0f;
      if (layout.group_size) {
        const uint16_t half = c < n ? FloatToHalf(scale[g * n + c] / factor) : 0;
        std::memcpy(panel + ScaleByte(layout, g, column), &half, sizeof(half));
        group_scale = HalfToFloat(half);
      }
      int64_t group_sum = 0;
      for (int64_t i = g * layout.group_depth(); i < (g + 1) * layout.group_depth(); ++i) {
        const int value = i < k && c < n ? q[i * n + c] : 0;
        group_sum += value;
        const Place place = PlaceOf(layout, i, column);
        panel[place.byte] |= static_cast<uint8_t>((value + Offset(bits)) << place.shift);
      }
      sum += static_cast<double>(group_scale) * static_cast<double>(group_sum);
    }
    StoreFloat(column_scale + c * 4, factor);
    StoreFloat(column_sum + c * 4, static_cast<float>(sum));
  }
  return "";
}

void UnpackMatmul(const uint8_t* data, const PackedLayout& layout, int8_t* q, float* scale) {
  const int64_t columns = layout.panel_columns();
  const int mask = (1 << layout.num_bits) - 1;
  for (int64_t c = 0; c < layout.n; ++c) {
    const uint8_t* const panel = data + layout.panels_offset() + c / columns * layout.panel_bytes();
    for (int64_t i = 0; q && i < layout.k; ++i) {
      const Place place = PlaceOf(layout, i, c % columns);
      const int value = (panel[place.byte] >> place.shift) & mask;
      q[i * layout.n + c] =
          static_cast<int8_t>(layout.binary() ? 1 - 2 * value : value - Offset(layout.num_bits));
    }
    const float factor = LoadFloat(data + layout.column_scale_offset() + c * 4);
    for (int64_t g = 0; scale && g < layout.groups(); ++g) {
      scale[g * layout.n + c] =
          layout.group_size ? LoadHalf(panel + ScaleByte(layout, g, c % columns)) * factor : factor;
    }
  }
}

void DequantizeMatmul(const uint8_t* data, const PackedLayout& layout, float* weight) {
  const int64_t n = layout.n, depth = layout.group_depth();
  std::vector<int8_t> q(static_cast<size_t>(layout.k * n));
  std::vector<float> scale(static_cast<size_t>(layout.groups() * n));
  UnpackMatmul(data, layout, q.data(), scale.data());
  for (int64_t i = 0; i < layout.k; ++i) {
    for (int64_t c = 0; c < n; ++c) {
      weight[i * n + c] = static_cast<float>(q[i * n + c]) * scale[i / depth * n + c];
    }
  }
}

void PackPlain(const uint8_t* v, int64_t rows, int64_t columns, int num_bits, uint8_t* out) {
  const int64_t in_byte = 8 / num_bits, row_bytes = PlainRowBytes(columns, num_bits);
  const int mask = (1 << num_bits) - 1;
  for (int64_t r = 0; r < rows; ++r, v += columns, out += row_bytes) {
    for (int64_t i = 0; i < row_bytes; ++i) {
      int byte = 0;
      for (int64_t j = 0; j < in_byte && i * in_byte + j < columns; ++j) {
        byte |= (v[i * in_byte + j] & mask) << (j * num_bits);
      }
      out[i] = static_cast<uint8_t>(byte);
    }
  }
}

void UnpackPlain(const uint8_t* data, int64_t rows, int64_t columns, int num_bits, uint8_t* v) {
  const int64_t in_byte = 8 / num_bits, row_bytes = PlainRowBytes(columns, num_bits);
  const int mask = (1 << num_bits) - 1;
  for (int64_t r = 0; r < rows; ++r, v += columns, data += row_bytes) {
    for (int64_t c = 0; c < columns; ++c) {
      v[c] = static_cast<uint8_t>((data[c / in_byte] >> (c % in_byte * num_bits)) & mask);
    }
  }
}

}  // namespace tfquant
