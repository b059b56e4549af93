// AVX512-VNNI and AVX-VNNI by SIMDe (Debian's libsimde-dev), on a processor with no more than AVX2:
// the files of those paths are compiled with `-include` of this one and -DTFQUANT_SIMDE, see
// prove.py. SIMDe's portable functions take the names of the intrinsics. Those it lacks are made of
// halves here, from Intel's description of each.
#ifndef TFQUANT_CUSTOM_OPS_TESTS_SIMDE_AVX512_H_
#define TFQUANT_CUSTOM_OPS_TESTS_SIMDE_AVX512_H_

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

namespace tfquant_simde {

template <class T>
union Lanes {
  __m512i whole;
  __m512 real;
  T lane[64 / sizeof(T)];
};

inline __m512 Floats(__m512i from) {
  Lanes<int32_t> in;
  in.whole = from;
  Lanes<float> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<float>(in.lane[i]);
  return out.real;
}

inline __m512i Widened(__m128i from) {
  uint8_t bytes[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), from);
  Lanes<int32_t> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = bytes[i];
  return out.whole;
}

inline __m256i Narrowed(__m512i from) {
  Lanes<int32_t> in;
  in.whole = from;
  int16_t words[16];
  for (int i = 0; i < 16; ++i) words[i] = static_cast<int16_t>(in.lane[i]);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
}

inline __m512 Halves(__m256i from) {
  Lanes<float> out;
  _mm256_storeu_ps(out.lane, _mm256_cvtph_ps(_mm256_castsi256_si128(from)));
  _mm256_storeu_ps(out.lane + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(from, 1)));
  return out.real;
}

}  // namespace tfquant_simde

#define _mm512_cvtepi32_ps(v) tfquant_simde::Floats(v)
#define _mm512_cvtepu8_epi32(v) tfquant_simde::Widened(v)
#define _mm512_cvtepi32_epi16(v) tfquant_simde::Narrowed(v)
#define _mm512_cvtph_ps(v) tfquant_simde::Halves(v)
#define _mm512_stream_ps(to, v) _mm512_store_ps(to, v)
#define _mm256_dpbusd_avx_epi32(sum, a, b) _mm256_dpbusd_epi32(sum, a, b)

#endif  // TFQUANT_CUSTOM_OPS_TESTS_SIMDE_AVX512_H_
