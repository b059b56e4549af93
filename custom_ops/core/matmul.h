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

#include <cstdint>
#include <functional>
#include <string>

#include "blocks.h"

namespace tfquant {

// What becomes of the activations before they meet the weights. Ignored by 1-bit weights.
enum class Activations : int { kFloat = 0, kPerRow = 1, kPerGroup = 2, kStatic = 3 };

enum class Fused : int {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kGelu = 3,
  kGeluTanh = 4,
  kSilu = 5,
  kSigmoid = 6,
  kTanh = 7
};
constexpr int kFusedCount = 8;

enum class DataType : int { kFloat32 = 0, kBFloat16 = 1 };

struct MatmulArgs {
  DataType type = DataType::kFloat32;  // of x and y
  int64_t m = 0;
  const void* x = nullptr;  // [m, layout.k]
  PackedLayout layout;
  const uint8_t* weights = nullptr;  // layout.bytes(), any alignment
  int64_t weights_bytes = 0;
  Activations activations = Activations::kPerRow;
  float x_scale = 1.0f;         // kStatic
  int zero_point = 0;           // kStatic, in [-128, 127]
  const float* bias = nullptr;  // [layout.n] or null
  Fused fused = Fused::kNone;
  void* y = nullptr;  // [m, layout.n]
};

// Calls body(begin, end) on ranges that cover [0, count), in any order, on any threads;
// `cost` is the time of one item in nanoseconds, roughly.
using ParallelFor = std::function<void(int64_t count, int64_t cost,
                                       const std::function<void(int64_t, int64_t)>& body)>;

// Runs everything on the calling thread.
void SerialFor(int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body);

// What is wrong with the arguments, in words, or "". CheckSettings looks at the numbers alone, so a
// shape function can say the same before there are tensors.
std::string CheckType(DataType type);
std::string CheckSettings(const MatmulArgs& args);
std::string CheckMatmul(const MatmulArgs& args);

// `args` must have passed CheckMatmul; `kernels` are those of a path, see path.h.
struct Kernels;
void Matmul(const MatmulArgs& args, const Kernels& kernels, const ParallelFor& parallel_for);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_MATMUL_H_
