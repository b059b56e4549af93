// The settings of a matmul that callers, core and every kernel know by number. Includes nothing and
// has no function, so that NVRTC reads it too.
#ifndef TFQUANT_CUSTOM_OPS_CORE_SETTINGS_H_
#define TFQUANT_CUSTOM_OPS_CORE_SETTINGS_H_

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

// Of x and y, and of dequantized values.
enum class DataType : int { kFloat32 = 0, kBFloat16 = 1 };

// A dynamic scale below the smallest normal float counts as zero.
constexpr float kSmallestScale = 1.17549435e-38f;

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_SETTINGS_H_
