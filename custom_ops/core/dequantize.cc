#include "dequantize.h"

#include <algorithm>
#include <cmath>

#include "pack.h"

namespace tfquant {

std::string CheckPlainNumbers(const PlainArgs& args) {
  const int bits = args.num_bits;
  if (bits != 8 && bits != 4 && bits != 2 && bits != 1) {
    return "`num_bits` must be 8, 4, 2 or 1. Received: num_bits=" + std::to_string(bits) + ".";
  }
  const std::string error = CheckType(args.type);
  if (!error.empty()) return error;
  constexpr int64_t kMost = int64_t{1} << 60;
  if (args.columns > kMost || args.rows > kMost / std::max<int64_t>(args.columns, 1)) {
    return "`rows` times `columns` must be between 0 and 2^60. Received: rows=" +
           std::to_string(args.rows) + ", columns=" + std::to_string(args.columns) + ".";
  }
  if (args.row_group < 1 || args.column_group < 1) {
    return "Group sizes must be at least 1. Received: row_group=" + std::to_string(args.row_group) +
           ", column_group=" + std::to_string(args.column_group) + ".";
  }
  return "";
}

std::string CheckPlainSizes(const PlainArgs& args) {
  const std::string error = CheckPlainNumbers(args);
  if (!error.empty()) return error;
  const int bits = args.num_bits;
  if (args.rows < 0 || args.columns < 0) {
    return "`rows` and `columns` must not be negative. Received: rows=" +
           std::to_string(args.rows) + ", columns=" + std::to_string(args.columns) + ".";
  }
  const int64_t bytes = args.rows * PlainRowBytes(args.columns, bits);
  if (args.packed_bytes != bytes) {
    return "`packed` must hold " + std::to_string(bytes) +
           " bytes for rows=" + std::to_string(args.rows) +
           ", columns=" + std::to_string(args.columns) + ", num_bits=" + std::to_string(bits) +
           ". Received: " + std::to_string(args.packed_bytes) + " bytes.";
  }
  const int64_t scales =
      CeilDivide(args.rows, args.row_group) * CeilDivide(args.columns, args.column_group);
  if (args.scales != scales) {
    return "`scale` must hold " + std::to_string(scales) +
           " values for rows=" + std::to_string(args.rows) +
           ", columns=" + std::to_string(args.columns) +
           ", row_group=" + std::to_string(args.row_group) +
           ", column_group=" + std::to_string(args.column_group) +
           ". Received: " + std::to_string(args.scales) + " values.";
  }
  return "";
}

std::string CheckPlain(const PlainArgs& args) {
  const std::string error = CheckPlainSizes(args);
  if (!error.empty()) return error;
  if (args.scales > 0 && args.scale == nullptr) return "`scale` must not be null.";
  for (int64_t i = 0; i < args.scales; ++i) {
    if (!(std::isfinite(args.scale[i]) && args.scale[i] > 0)) {
      return "`scale` must be positive and finite. Received: " + std::to_string(args.scale[i]) +
             ".";
    }
    if (args.zero_point &&
        !(args.zero_point[i] >= 0 && args.zero_point[i] < (1 << args.num_bits))) {
      return "`zero_point` must lie in [0, " + std::to_string((1 << args.num_bits) - 1) +
             "]. Received: " + std::to_string(args.zero_point[i]) + ".";
    }
  }
  return "";
}

void DequantizePlain(const PlainArgs& args, const Kernels& kernels,
                     const ParallelFor& parallel_for) {
  const int64_t row_bytes = PlainRowBytes(args.columns, args.num_bits);
  const int64_t in_row = CeilDivide(args.columns, args.column_group);
  const int64_t size = args.type == DataType::kFloat32 ? 4 : 2;
  const int64_t cost = std::max<int64_t>(1, args.columns / 4);
  const bool stream = args.rows * args.columns * size >= kStreamBytes;
  parallel_for(args.rows, cost, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first_scale = r / args.row_group * in_row;
      DequantizeArgs row = {};
      row.packed = args.packed + r * row_bytes;
      row.num_bits = args.num_bits;
      row.columns = args.columns;
      row.group_size = args.column_group;
      row.scale = args.scale + first_scale;
      row.zero_point = args.zero_point ? args.zero_point + first_scale : nullptr;
      row.codebook = args.codebook;
      row.type = args.type;
      row.out = static_cast<uint8_t*>(args.real) + r * args.columns * size;
      row.stream = stream;
      kernels.dequantize(row);
    }
  });
}

void QuantizePlain(const PlainArgs& args, const float* x, uint8_t* packed,
                   const ParallelFor& parallel_for) {
  const int64_t row_bytes = PlainRowBytes(args.columns, args.num_bits);
  const int64_t in_row = CeilDivide(args.columns, args.column_group);
  const int64_t in_byte = 8 / args.num_bits;
  const float qmax = static_cast<float>((1 << args.num_bits) - 1);
  const float symmetric = static_cast<float>(1 << (args.num_bits - 1));
  parallel_for(args.rows, std::max<int64_t>(1, args.columns * 4), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* const scale = args.scale + r / args.row_group * in_row;
      const float* const zero_point =
          args.zero_point ? args.zero_point + r / args.row_group * in_row : nullptr;
      for (int64_t b = 0; b < row_bytes; ++b) {
        int byte = 0;
        for (int64_t j = 0; j < in_byte && b * in_byte + j < args.columns; ++j) {
          const int64_t c = b * in_byte + j, g = c / args.column_group;
          const float zero = zero_point ? zero_point[g] : symmetric;
          const float real = x[r * args.columns + c] / scale[g];
          const float q = std::isnan(real) ? zero : std::nearbyint(real) + zero;
          byte |= static_cast<int>(std::min(std::max(q, 0.0f), qmax)) << (j * args.num_bits);
        }
        packed[r * row_bytes + b] = static_cast<uint8_t>(byte);
      }
    }
  });
}

}  // namespace tfquant
