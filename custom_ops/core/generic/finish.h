// The end of a stripe of y: scales, zero point, bias, the fused function, the type.
#ifndef TFQUANT_CUSTOM_OPS_CORE_GENERIC_FINISH_H_
#define TFQUANT_CUSTOM_OPS_CORE_GENERIC_FINISH_H_

#include <math.h>
#include <string.h>

#include <cstdint>

#include "../blocks.h"
#include "../float16.h"
#include "../kernels.h"

namespace tfquant {
namespace {

inline float Fuse(float v, Fused fused) {
  switch (fused) {
    case Fused::kNone:
      return v;
    case Fused::kRelu:
      return v < 0 ? 0 : v;
    case Fused::kRelu6:
      return v < 0 ? 0 : (v > 6 ? 6 : v);
    case Fused::kGelu:
      return 0.5f * v * (1 + erff(v * 0.70710678f));
    case Fused::kGeluTanh: {
      const float inner = 0.79788456f * (v + 0.044715f * v * v * v);
      return 0.5f * v * (1 + tanhf(inner));
    }
    case Fused::kSilu:
      return v / (1 + expf(-v));
    case Fused::kSigmoid:
      return 1 / (1 + expf(-v));
    case Fused::kTanh:
      return tanhf(v);
  }
  return v;
}

template <class Isa>
struct GenericFinish {
  // Whole registers of the common case; returns the number of columns done.
  static int64_t FinishPlain(const FinishArgs& a) {
    using Real = typename Isa::Real;
    if (a.column_sum || a.fused != Fused::kNone || a.type != DataType::kFloat32) return 0;
    const int64_t whole = a.columns / kPanelColumns * kPanelColumns;
    for (int64_t m = 0; m < a.rows; ++m) {
      const Real row_scale = Isa::SplatReal(a.row_scale ? a.row_scale[m] : 1.0f);
      for (int64_t at = 0; at < whole; at += kPanelColumns) {
        const int64_t from = m * a.stride + at;
        Real v = a.integer ? Isa::ToReal(Isa::LoadSum(static_cast<const int32_t*>(a.sum) + from))
                           : Isa::LoadReal(static_cast<const float*>(a.sum) + from);
        v = Isa::Mul(Isa::Mul(v, row_scale), Isa::LoadReal(a.column_scale + at));
        if (a.bias) v = Isa::Fma(v, Isa::SplatReal(1), Isa::LoadReal(a.bias + at));
        float* const to = static_cast<float*>(a.y) + m * a.y_stride + at;
        if (a.stream && reinterpret_cast<uintptr_t>(to) % 64 == 0) {
          Isa::StreamReal(to, v);
        } else {
          Isa::StoreReal(to, v);
        }
      }
    }
    if (a.stream) Isa::Fence();
    return whole;
  }

  static void Finish(const FinishArgs& a) {
    constexpr int64_t kChunk = 64;
    float line[kChunk];
    const int64_t done = FinishPlain(a);
    for (int64_t m = 0; m < a.rows; ++m) {
      const float row_scale = a.row_scale ? a.row_scale[m] : 1.0f;
      for (int64_t at = done; at < a.columns; at += kChunk) {
        const int64_t count = Min(kChunk, a.columns - at);
        const float* const column_scale = a.column_scale + at;
        if (a.integer) {
          const int32_t* const sum = static_cast<const int32_t*>(a.sum) + m * a.stride + at;
          if (a.column_sum) {  // exact: a float holds a column's sum, and a double the difference
            const double zero = a.zero_point;
            for (int64_t c = 0; c < count; ++c) {
              const double offset = zero * static_cast<double>(a.column_sum[at + c]);
              line[c] = static_cast<float>(static_cast<double>(sum[c]) - offset);
            }
          } else {
            for (int64_t c = 0; c < count; ++c) line[c] = static_cast<float>(sum[c]);
          }
        } else {
          const float* const sum = static_cast<const float*>(a.sum) + m * a.stride + at;
          const float zero = a.column_sum ? static_cast<float>(a.zero_point) : 0.0f;
          if (a.column_sum) {
            for (int64_t c = 0; c < count; ++c) line[c] = sum[c] - zero * a.column_sum[at + c];
          } else {
            for (int64_t c = 0; c < count; ++c) line[c] = sum[c];
          }
        }
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] * row_scale * column_scale[c];
        if (a.bias) {
          for (int64_t c = 0; c < count; ++c) line[c] += a.bias[at + c];
        }
        if (a.fused == Fused::kRelu) {
          for (int64_t c = 0; c < count; ++c) line[c] = Fuse(line[c], Fused::kRelu);
        } else if (a.fused != Fused::kNone) {
          for (int64_t c = 0; c < count; ++c) line[c] = Fuse(line[c], a.fused);
        }
        const int64_t to = m * a.y_stride + at;
        if (a.type == DataType::kFloat32) {
          memcpy(static_cast<float*>(a.y) + to, line, static_cast<size_t>(count) * 4);
        } else {
          uint16_t* const y = static_cast<uint16_t*>(a.y) + to;
          for (int64_t c = 0; c < count; ++c) y[c] = FloatToBrain(line[c]);
        }
      }
    }
  }

  // Past the caches, where an Isa can; and the order of such stores before what the thread says
  // next.
  template <class Real>
  static void StreamReal(float* to, const Real& real) {
    Isa::StoreReal(to, real);
  }
  static void Fence() {}
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_GENERIC_FINISH_H_
