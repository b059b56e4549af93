// Plain low-bit rows (blocks.h, format 3) <-> real values.
//
//     affine     x = scale * (v - zero_point)             v unsigned, as stored
//     codebook   x = scale * codebook[v]
//     quantize   v = clip(rne(x / scale) + zero_point, 0, 2^num_bits - 1)
//
// Scales are a matrix of ceil(rows / row_group) x ceil(columns / column_group): per tensor, per
// row, per column and per group along either axis are all choices of the two group sizes. Without
// zero points the values were signed and symmetric: zero_point = 2^(num_bits-1).
#ifndef TFQUANT_CUSTOM_OPS_CORE_DEQUANTIZE_H_
#define TFQUANT_CUSTOM_OPS_CORE_DEQUANTIZE_H_

#include <cstdint>
#include <string>

#include "kernels.h"

namespace tfquant {

struct PlainArgs {
  int num_bits = 8;
  int64_t rows = 0, columns = 0;
  int64_t row_group = 1, column_group = 1;
  const uint8_t* packed = nullptr;  // dequantize: input; rows * PlainRowBytes(columns) bytes
  int64_t packed_bytes = 0;
  const float* scale = nullptr;
  int64_t scales = 0;                 // how many were given
  const float* zero_point = nullptr;  // as many, or null
  const float* codebook = nullptr;    // 2^num_bits values, or null
  DataType type = DataType::kFloat32;
  void* real = nullptr;  // dequantize: output, [rows, columns]
};

inline int64_t CeilDivide(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// What is wrong with the arguments, in words, or "". CheckPlainNumbers looks at what is known
// before there are arrays (rows and columns are -1 where they are not), CheckPlainSizes at how many
// bytes and scales were given too, CheckPlain at every scale too.
std::string CheckPlainNumbers(const PlainArgs& args);
std::string CheckPlainSizes(const PlainArgs& args);
std::string CheckPlain(const PlainArgs& args);

void DequantizePlain(const PlainArgs& args, const Kernels& kernels,
                     const ParallelFor& parallel_for);

// The other way: from `x` (float32) to `packed`. NaN becomes the zero point.
void QuantizePlain(const PlainArgs& args, const float* x, uint8_t* packed,
                   const ParallelFor& parallel_for);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_DEQUANTIZE_H_
