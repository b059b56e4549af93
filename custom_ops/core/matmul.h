// y[M, N] = fused(x[M, K] * weights[K, N] + bias[N]) on packed weights of 8, 4, 2 or 1 bits.
//
// What it computes: reference_matmul.h. How the weights lie: blocks.h. Which instructions: path.h.
// How the work is cut (matmul.cc): rows of x in blocks of up to 8, quantized once into the order in
// which the kernels read them; panels of columns handed to the threads. K is never split between
// threads, so the result does not depend on their number.
//
// Called by the TensorFlow op and by the C ABI.
#ifndef TFQUANT_CUSTOM_OPS_CORE_MATMUL_H_
#define TFQUANT_CUSTOM_OPS_CORE_MATMUL_H_

#include "args.h"
#include "parallel_for.h"

namespace tfquant {

struct Kernels;

// `args` must have passed CheckMatmul; `kernels` are those of a path, see path.h.
void Matmul(const MatmulArgs& args, const Kernels& kernels, const ParallelFor& parallel_for);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_MATMUL_H_
