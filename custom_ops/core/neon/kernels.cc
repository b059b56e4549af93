// NEON with the dot product extension (Armv8.2: Cortex-A55/A75 and later, Neoverse, Apple). A
// panel's row of 64 bytes is four registers of four columns; sdot multiplies signed bytes, so the
// offset of the weights is removed while unpacking.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "../generic/table.h"

namespace tfquant {
namespace {

struct Neon : GenericIsa<Neon> {
  static constexpr bool kUnsignedWeights = false;
  static constexpr int kGemvPanels = 2;

  struct Sum {
    int32x4_t v[4];
  };
  struct Real {
    float32x4_t v[4];
  };
  struct Row {
    uint8x16_t v[4];
  };

  static Sum Splat(int32_t value) {
    const int32x4_t v = vdupq_n_s32(value);
    return {{v, v, v, v}};
  }
  static Sum LoadSum(const int32_t* from) {
    return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
  }
  static void StoreSum(int32_t* to, const Sum& s) {
    for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, s.v[i]);
  }
  static Real ToReal(const Sum& s) {
    return {{vcvtq_f32_s32(s.v[0]), vcvtq_f32_s32(s.v[1]), vcvtq_f32_s32(s.v[2]),
             vcvtq_f32_s32(s.v[3])}};
  }
  static Real SplatReal(float value) {
    const float32x4_t v = vdupq_n_f32(value);
    return {{v, v, v, v}};
  }
  static Real LoadReal(const float* from) {
    return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
  }
  static void StoreReal(float* to, const Real& r) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, r.v[i]);
  }
  static Real Mul(const Real& x, const Real& y) {
    Real r;
    for (int i = 0; i < 4; ++i) r.v[i] = vmulq_f32(x.v[i], y.v[i]);
    return r;
  }
  static Real Fma(const Real& x, const Real& y, const Real& z) {
    Real r;
    for (int i = 0; i < 4; ++i) r.v[i] = vfmaq_f32(z.v[i], x.v[i], y.v[i]);
    return r;
  }
  static Real HalfScales(const uint8_t* from) {
    Real r;
    for (int i = 0; i < 4; ++i) {
      const float16x4_t half = vreinterpret_f16_u8(vld1_u8(from + 8 * i));
      r.v[i] = vcvt_f32_f16(half);
    }
    return r;
  }
  static Row LoadRow(const uint8_t* from) {
    return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
  }

  // The part-th value of every byte, its offset removed.
  template <int kBits>
  static int8x16_t Part(uint8x16_t row, int part) {
    if (kBits == 8) return vreinterpretq_s8_u8(veorq_u8(row, vdupq_n_u8(128)));
    const uint8x16_t shifted = vshlq_u8(row, vdupq_n_s8(static_cast<int8_t>(-part * kBits)));
    const uint8x16_t value = vandq_u8(shifted, vdupq_n_u8((1 << kBits) - 1));
    return vsubq_s8(vreinterpretq_s8_u8(value), vdupq_n_s8(kBits == 4 ? 8 : 2));
  }

  template <int kBits, bool kPacked, int kRows, int kCount>
  static inline __attribute__((always_inline)) void Dot(const uint8_t* const (&weights)[kCount],
                                                        const int8_t* x,
                                                        Sum (&sum)[kRows][kCount]) {
    constexpr int kParts = kPacked ? 8 / kBits : 1;
    for (int p = 0; p < kCount; ++p) {
      for (int row = 0; row < 8 / kParts; ++row) {
        const Row bytes = LoadRow(weights[p] + row * kRowBytes);
        for (int part = 0; part < kParts; ++part) {
          int8x16_t w[4];
          for (int i = 0; i < 4; ++i) {
            w[i] = kPacked ? Part<kBits>(bytes.v[i], part) : vreinterpretq_s8_u8(bytes.v[i]);
          }
          for (int m = 0; m < kRows; ++m) {
            int32_t bits;
            memcpy(&bits, x + ((row * kParts + part) * kRows + m) * 4, 4);
            const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(bits));
            for (int i = 0; i < 4; ++i) {
              sum[m][p].v[i] = vdotq_s32(sum[m][p].v[i], w[i], four);
            }
          }
        }
      }
    }
  }

  template <int kBits>
  static void Unpack(const uint8_t* block, uint8_t* bytes) {
    for (int row = 0; row < kBits; ++row, block += kRowBytes) {
      const Row packed = LoadRow(block);
      for (int part = 0; part < 8 / kBits; ++part, bytes += kRowBytes) {
        for (int i = 0; i < 4; ++i) {
          vst1q_u8(bytes + 16 * i, vreinterpretq_u8_s8(Part<kBits>(packed.v[i], part)));
        }
      }
    }
  }

  template <int kBits>
  static Real Value(const Row& row, int index) {
    const int32x4_t shift = vdupq_n_s32(-(8 * (index % 4) + kBits * (index / 4)));
    const uint32x4_t mask = vdupq_n_u32((1u << kBits) - 1u);
    Real r;
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t value = vandq_u32(vshlq_u32(vreinterpretq_u32_u8(row.v[i]), shift), mask);
      r.v[i] = vsubq_f32(vcvtq_f32_u32(value), vdupq_n_f32(static_cast<float>(Offset(kBits))));
    }
    return r;
  }

  template <bool, int kRows>
  static void BinaryTile(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    while (depth > 0) {
      const int64_t count = Min(depth, 31);  // 31 counts of at most 8 fit a byte
      uint8x16_t bytes[kRows][4];
      for (int m = 0; m < kRows; ++m) {
        for (int i = 0; i < 4; ++i) bytes[m][i] = vdupq_n_u8(0);
      }
      for (int64_t k = 0; k < count; ++k, weights += kRowBytes, x += kRows) {
        const Row row = LoadRow(weights);
        for (int m = 0; m < kRows; ++m) {
          const uint8x16_t signs = vdupq_n_u8(static_cast<uint8_t>(x[m]));
          for (int i = 0; i < 4; ++i) {
            bytes[m][i] = vaddq_u8(bytes[m][i], vcntq_u8(veorq_u8(row.v[i], signs)));
          }
        }
      }
      for (int m = 0; m < kRows; ++m) {
        for (int i = 0; i < 4; ++i) {
          uint8_t count_of[16];
          vst1q_u8(count_of, bytes[m][i]);
          int32_t* const to = sum + m * kBinaryPanelColumns + i * 16;
          for (int c = 0; c < 16; ++c) to[c] += count_of[c];
        }
      }
      depth -= count;
    }
  }
};

}  // namespace

// And its dot product extension, HWCAP_ASIMDDP.
extern const Path neon_path;
const Path neon_path = {
    "neon",
    []() -> const Kernels& { return PanelKernels<Neon>::kTable; },
    {nullptr, {}, 0, false, 1ul << 20},
};

}  // namespace tfquant
#endif
