// AVX2 with FMA and F16C. A panel's row of 64 bytes is two registers of eight columns.
//
// Values of at most 4 bits: vpmaddubsw, then 16-bit additions. A lane adds 2 x 8 products of at
// most 15 * 128 over a block of 32, which is 30720 < 2^15: nothing saturates.
// Values of 8 bits: vpmaddubsw would saturate (2 * 255 * 128), so even and odd bytes are widened to
// 16 bits and vpmaddwd adds exact products to 32 bits.
#if defined(__x86_64__)
#include "pairs.h"

namespace tfquant {
namespace {

struct Avx2 : Pairs {
  template <int kBits, bool kPacked, int kRows, int kCount>
  static inline __attribute__((always_inline)) void Dot(const uint8_t* const (&weights)[kCount],
                                                        const int8_t* x,
                                                        Sum (&sum)[kRows][kCount]) {
    constexpr int kParts = kPacked ? 8 / kBits : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int p = 0; p < kCount; ++p) {
      __m256i chain[kRows][2];
      for (int m = 0; m < kRows; ++m) chain[m][0] = chain[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int row = 0; row < 8 / kParts; ++row) {
        const Row bytes = LoadRow(weights[p] + row * kRowBytes);
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const int8_t* const four = x + (row * kParts + part) * kRows * 4;
          if (kBits == 8) {
            const __m256i low = _mm256_set1_epi16(255);
            const __m256i even[2] = {_mm256_and_si256(bytes.a, low),
                                     _mm256_and_si256(bytes.b, low)};
            const __m256i odd[2] = {_mm256_srli_epi16(bytes.a, 8), _mm256_srli_epi16(bytes.b, 8)};
#pragma GCC unroll 4
            for (int m = 0; m < kRows; ++m) {
              const __m256i both = Four(four + m * 4);
              const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8);
              const __m256i x_odd = _mm256_srai_epi16(both, 8);
              sum[m][p].a = _mm256_add_epi32(sum[m][p].a, _mm256_madd_epi16(even[0], x_even));
              sum[m][p].b = _mm256_add_epi32(sum[m][p].b, _mm256_madd_epi16(even[1], x_even));
              sum[m][p].a = _mm256_add_epi32(sum[m][p].a, _mm256_madd_epi16(odd[0], x_odd));
              sum[m][p].b = _mm256_add_epi32(sum[m][p].b, _mm256_madd_epi16(odd[1], x_odd));
            }
          } else {
            const __m256i a = kPacked ? Part<kBits>(bytes.a, part) : bytes.a;
            const __m256i b = kPacked ? Part<kBits>(bytes.b, part) : bytes.b;
#pragma GCC unroll 4
            for (int m = 0; m < kRows; ++m) {
              const __m256i both = Four(four + m * 4);
              chain[m][0] = _mm256_add_epi16(chain[m][0], _mm256_maddubs_epi16(a, both));
              TFQUANT_KEEP(chain[m][0]);
              chain[m][1] = _mm256_add_epi16(chain[m][1], _mm256_maddubs_epi16(b, both));
              TFQUANT_KEEP(chain[m][1]);
            }
          }
        }
      }
      if (kBits != 8) {
        for (int m = 0; m < kRows; ++m) {
          sum[m][p].a = _mm256_add_epi32(sum[m][p].a, _mm256_madd_epi16(chain[m][0], ones));
          sum[m][p].b = _mm256_add_epi32(sum[m][p].b, _mm256_madd_epi16(chain[m][1], ones));
        }
      }
    }
  }
};

}  // namespace

const Kernels& Avx2Kernels() { return PanelKernels<Avx2>::kTable; }

}  // namespace tfquant
#endif
