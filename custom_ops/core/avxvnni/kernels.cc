// AVX2 with AVX-VNNI (Alder Lake, Zen 5): vpdpbusd on two registers of eight columns, exact for all
// widths.
#if defined(__x86_64__)
#include "../avx2/pairs.h"

namespace tfquant {
namespace {

struct AvxVnni : Pairs<AvxVnni> {
  static __m256i DotFour(__m256i sum, __m256i w, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sum, w, x);
  }

  template <int kBits, bool kPacked, int kRows, int kCount>
  static inline __attribute__((always_inline)) void Dot(const uint8_t* const (&weights)[kCount],
                                                        const int8_t* x,
                                                        Sum (&sum)[kRows][kCount]) {
    constexpr int kParts = kPacked ? 8 / kBits : 1;
    for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 8
      for (int row = 0; row < 8 / kParts; ++row) {
        const Row bytes = LoadRow(weights[p] + row * kRowBytes);
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const __m256i a = kPacked ? Part<kBits>(bytes.a, part) : bytes.a;
          const __m256i b = kPacked ? Part<kBits>(bytes.b, part) : bytes.b;
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m) {
            const __m256i four = Four(x + ((row * kParts + part) * kRows + m) * 4);
            sum[m][p].a = DotFour(sum[m][p].a, a, four);
            sum[m][p].b = DotFour(sum[m][p].b, b, four);
          }
        }
      }
    }
  }
};

}  // namespace

extern const Path avx2_path;

extern const Path avxvnni_path;
const Path avxvnni_path = {
    "avxvnni",
    []() -> const Kernels& { return PanelKernels<AvxVnni>::kTable; },
    {&avx2_path, {{7, 1, 0, 4}}},
};

}  // namespace tfquant
#endif
