// The meaning of every matmul kernel, in loops. Integer parts are exact; float parts are in double,
// so a kernel differs from this by its own float rounding only (bounds: custom_ops/README.md).
//
//   1. integers of the activations, by `Activations` mode; `row` is x[m, :], rne rounds to nearest
//      even, absmax is over the row (kPerRow) or over each group of the row (kPerGroup):
//        scale = f32(absmax / 127);   q = rne(f32(x * f32(1 / scale))), which lies in [-127, 127]
//        kStatic: q = clip(rne(f32(x * f32(1 / x_scale))) + zero_point, -128, 127)
//      A scale below the smallest normal float counts as zero, and so do the integers under it.
//      Inf or NaN anywhere in x[m, :] makes the whole row y[m, :] NaN.
//      kFloat has no integers: x is used as it is.
//   2. sum[m, n, g] = sum over k in group g of (q[m, k] - zero_point) * w[k, n]
//   3. y[m, n] = sum over g of sum[m, n, g] * x_scale[m, g] * w_scale[g, n]  + bias[n]
//   4. the fused activation
//
// 1-bit weights: y[m, n] = w_scale[n] * sum over k of sign(x[m, k]) * w[k, n] + bias[n], where
// sign(x) is -1 for x < 0 and +1 otherwise (zeros, -0.0 and NaN count as +1).
#ifndef TFQUANT_CUSTOM_OPS_CORE_REFERENCE_MATMUL_H_
#define TFQUANT_CUSTOM_OPS_CORE_REFERENCE_MATMUL_H_

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "settings.h"

namespace tfquant {

inline double ReferenceFuse(double v, Fused fused) {
  switch (fused) {
    case Fused::kNone:
      return v;
    case Fused::kRelu:
      return std::isnan(v) ? v : std::max(v, 0.0);
    case Fused::kRelu6:
      return std::isnan(v) ? v : std::min(std::max(v, 0.0), 6.0);
    case Fused::kGelu:
      return 0.5 * v * (1 + std::erf(v * 0.70710678118654752));
    case Fused::kGeluTanh:
      return 0.5 * v * (1 + std::tanh(0.79788456080286536 * (v + 0.044715 * v * v * v)));
    case Fused::kSilu:
      return v / (1 + std::exp(-v));
    case Fused::kSigmoid:
      return 1 / (1 + std::exp(-v));
    case Fused::kTanh:
      return std::tanh(v);
  }
  return v;
}

// Quantizes `count` values that share one scale; returns the scale.
inline float ReferenceQuantize(const float* x, int64_t count, int8_t* q) {
  float absmax = 0;
  for (int64_t i = 0; i < count; ++i) absmax = std::max(absmax, std::fabs(x[i]));
  const float scale = absmax / 127.0f;
  static_assert(kSmallestScale == FLT_MIN, "");
  if (scale < kSmallestScale) {
    std::fill(q, q + count, int8_t{0});
    return 0;
  }
  const float inverse = 1.0f / scale;
  for (int64_t i = 0; i < count; ++i) q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  return scale;
}

// x[m, k], w[k, n], w_scale[groups, n], y[m, n]; `groups` of `group_size` (0: one group).
inline void ReferenceMatmul(const float* x, const int8_t* w, const float* w_scale, int64_t m,
                            int64_t k, int64_t n, int num_bits, int64_t group_size,
                            Activations activations, float x_scale, int zero_point,
                            const float* bias, Fused fused, double* y) {
  const int64_t depth = group_size ? group_size : k;
  const int64_t groups = (k + depth - 1) / depth;
  std::vector<int8_t> q(static_cast<size_t>(k));
  std::vector<double> scale(static_cast<size_t>(groups));
  for (int64_t r = 0; r < m; ++r, x += k, y += n) {
    const bool finite = std::all_of(x, x + k, [](float v) { return std::isfinite(v); });
    const int zero = activations == Activations::kStatic ? zero_point : 0;
    for (int64_t g = 0; g < groups && finite && num_bits != 1; ++g) {
      const int64_t at = g * depth, count = std::min(depth, k - at);
      if (activations == Activations::kPerGroup) {
        scale[g] = ReferenceQuantize(x + at, count, &q[at]);
      } else if (activations == Activations::kPerRow) {
        scale[g] = g ? scale[0] : ReferenceQuantize(x, k, q.data());
      } else if (activations == Activations::kStatic) {
        const float inverse = 1.0f / x_scale;
        scale[g] = x_scale;
        for (int64_t i = at; i < at + count; ++i) {
          const float rounded = std::nearbyint(std::min(std::max(x[i] * inverse, -512.f), 512.f));
          q[i] = static_cast<int8_t>(std::clamp(static_cast<int>(rounded) + zero, -128, 127));
        }
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      double total = 0;
      for (int64_t g = 0; g < groups; ++g) {
        int64_t sum = 0;
        double real = 0;
        for (int64_t i = g * depth; i < std::min(k, (g + 1) * depth); ++i) {
          if (num_bits == 1) {
            sum += (x[i] < 0 ? -1 : 1) * w[i * n + c];
          } else if (activations == Activations::kFloat) {
            real += static_cast<double>(x[i]) * w[i * n + c];
          } else {
            sum += (q[i] - zero) * w[i * n + c];
          }
        }
        const double part = num_bits == 1                        ? static_cast<double>(sum)
                            : activations == Activations::kFloat ? real
                                                                 : sum * scale[g];
        total += part * w_scale[g * n + c];
      }
      if (!finite && num_bits != 1 && activations != Activations::kFloat) total = NAN;
      y[c] = ReferenceFuse(total + (bias ? bias[c] : 0.0f), fused);
    }
  }
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_REFERENCE_MATMUL_H_
