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

#include "args.h"
#include "parallel_for.h"

namespace tfquant {

struct Kernels;

// `args` must have passed CheckPlain.
void DequantizePlain(const PlainArgs& args, const Kernels& kernels,
                     const ParallelFor& parallel_for);

// The other way: from `x` (float32) to `packed`. NaN becomes the zero point.
void QuantizePlain(const PlainArgs& args, const float* x, uint8_t* packed,
                   const ParallelFor& parallel_for);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_DEQUANTIZE_H_
