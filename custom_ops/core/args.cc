#include "args.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pack.h"

namespace tfquant {
namespace {

std::string CheckType(DataType type) {
  if (type == DataType::kFloat32 || type == DataType::kBFloat16) return "";
  return "`type` must be 0 (float32) or 1 (bfloat16). Received: type=" +
         std::to_string(static_cast<int>(type)) + ".";
}

}  // namespace

std::string CheckSettings(const MatmulArgs& args) {
  PackedLayout layout;
  std::string error = CheckType(args.type);
  if (!error.empty()) return error;
  error = MakeLayout(args.layout.num_bits, args.layout.group_size, args.layout.k, args.layout.n,
                     &layout);
  if (!error.empty()) return error;
  const int mode = static_cast<int>(args.activations), fused = static_cast<int>(args.fused);
  if (mode < 0 || mode > static_cast<int>(Activations::kStatic)) {
    return "`activations` must be 0 to 3. Received: activations=" + std::to_string(mode) + ".";
  }
  if (fused < 0 || fused >= kFusedCount) {
    return "`fused` must be 0 to " + std::to_string(kFusedCount - 1) +
           ". Received: fused=" + std::to_string(fused) + ".";
  }
  if (args.activations == Activations::kPerGroup && layout.group_size == 0) {
    return "Activations can have a scale per group only if the weights have groups. Received: "
           "group_size=0.";
  }
  if (args.activations == Activations::kStatic && layout.num_bits != 1) {
    // Below the smallest normal number 1 / x_scale could be infinite.
    if (!(std::isfinite(args.x_scale) && args.x_scale >= std::numeric_limits<float>::min())) {
      return "`x_scale` must be positive and finite. Received: x_scale=" +
             std::to_string(args.x_scale) + ".";
    }
    if (args.zero_point < -128 || args.zero_point > 127) {
      return "`zero_point` must lie in [-128, 127]. Received: zero_point=" +
             std::to_string(args.zero_point) + ".";
    }
  }
  return "";
}

std::string CheckMatmul(const MatmulArgs& args) {
  const std::string error = CheckSettings(args);
  if (!error.empty()) return error;
  const PackedLayout& layout = args.layout;
  constexpr int64_t kMost = int64_t{1} << 60;
  if (args.m < 0 || args.m > kMost / layout.padded_k() || args.m > kMost / layout.padded_n()) {
    return "`x` has a number of rows that overflows. Received: m=" + std::to_string(args.m) + ".";
  }
  if (args.weights == nullptr || (args.m > 0 && (args.x == nullptr || args.y == nullptr))) {
    return "`x`, `weights` and `y` must not be null.";
  }
  return CheckPacked(args.weights, args.weights_bytes, layout);
}

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

}  // namespace tfquant
