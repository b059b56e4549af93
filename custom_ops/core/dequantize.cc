#include "dequantize.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "pack.h"

namespace tfquant {

void DequantizePlain(const PlainArgs& args, const Kernels& kernels,
                     const ParallelFor& parallel_for) {
  const int64_t row_bytes = PlainRowBytes(args.columns, args.num_bits);
  const int64_t in_row = CeilDivide(args.columns, args.column_group);
  const int64_t size = BytesOf(args.type);
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
