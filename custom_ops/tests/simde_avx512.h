// AVX512-VNNI, AVX-VNNI and AMX by SIMDe (Debian's libsimde-dev), on a processor with no more than
// AVX2: the files of those paths are compiled with `-include` of this one and -DTFQUANT_SIMDE, see
// prove.py. SIMDe's portable functions take the names of the intrinsics. Those it lacks are made of
// halves here, from Intel's description of each.
#ifndef TFQUANT_CUSTOM_OPS_TESTS_SIMDE_AVX512_H_
#define TFQUANT_CUSTOM_OPS_TESTS_SIMDE_AVX512_H_

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <string.h>

#include <cmath>

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

inline __m512i ShiftedRight(__m512i from, unsigned count) {
  Lanes<int32_t> in;
  in.whole = from;
  for (int32_t& lane : in.lane) lane >>= count;
  return in.whole;
}

inline __m512 Halves(__m256i from) {
  Lanes<float> out;
  _mm256_storeu_ps(out.lane, _mm256_cvtph_ps(_mm256_castsi256_si128(from)));
  _mm256_storeu_ps(out.lane + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(from, 1)));
  return out.real;
}

// AMX: eight tiles of a thread, of 16 rows of 64 bytes; the configuration says how many of them an
// instruction uses, see "TDPBSSD" and "TDPBF16PS" in Intel's manual.
struct Tile {
  alignas(64) uint8_t bytes[16][64];
};
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
inline thread_local Tile tiles[8];
inline thread_local TileConfig tile_config;

inline void TileLoadConfig(const void* from) { memcpy(&tile_config, from, sizeof(tile_config)); }

inline void TileZero(int to) { memset(&tiles[to], 0, sizeof(Tile)); }

inline void TileLoad(int to, const void* from, int64_t stride) {
  TileZero(to);
  for (int r = 0; r < tile_config.rows[to]; ++r) {
    memcpy(tiles[to].bytes[r], static_cast<const uint8_t*>(from) + r * stride,
           tile_config.row_bytes[to]);
  }
}

inline void TileStore(int of, void* to, int64_t stride) {
  for (int r = 0; r < tile_config.rows[of]; ++r) {
    memcpy(static_cast<uint8_t*>(to) + r * stride, tiles[of].bytes[r], tile_config.row_bytes[of]);
  }
}

template <class B>
inline void TileIntegers(int to, int a, int b) {
  for (int m = 0; m < tile_config.rows[to]; ++m) {
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      memcpy(&sum, &tiles[to].bytes[m][4 * n], 4);
      for (int k = 0; k < tile_config.row_bytes[a]; ++k) {
        sum += static_cast<int8_t>(tiles[a].bytes[m][k]) *
               static_cast<B>(tiles[b].bytes[k / 4][4 * n + k % 4]);
      }
      memcpy(&tiles[to].bytes[m][4 * n], &sum, 4);
    }
  }
}

inline float TileBrain(const uint8_t* from) {
  const uint32_t bits = static_cast<uint32_t>(from[0]) << 16 | static_cast<uint32_t>(from[1]) << 24;
  float value;
  memcpy(&value, &bits, 4);
  return value != 0 && std::fabs(value) < 1.17549435e-38f ? 0.0f : value;
}

inline void TileBrains(int to, int a, int b) {
  for (int m = 0; m < tile_config.rows[to]; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum, part[2] = {0, 0};  // even and odd k
      memcpy(&sum, &tiles[to].bytes[m][4 * n], 4);
      for (int k = 0; k < tile_config.row_bytes[a] / 2; ++k) {
        part[k % 2] = std::fma(TileBrain(&tiles[a].bytes[m][2 * k]),
                               TileBrain(&tiles[b].bytes[k / 2][4 * n + k % 2 * 2]), part[k % 2]);
      }
      sum = sum + (part[0] + part[1]);
      memcpy(&tiles[to].bytes[m][4 * n], &sum, 4);
    }
  }
}

}  // namespace tfquant_simde

// GCC's header defines them as macros whether or not the compiler may use AMX.
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) tfquant_simde::TileLoadConfig(from)
#define _tile_release() static_cast<void>(0)
#define _tile_zero(to) tfquant_simde::TileZero(to)
#define _tile_loadd(to, from, stride) tfquant_simde::TileLoad(to, from, stride)
#define _tile_stored(of, to, stride) tfquant_simde::TileStore(of, to, stride)
#define _tile_dpbssd(to, a, b) tfquant_simde::TileIntegers<int8_t>(to, a, b)
#define _tile_dpbsud(to, a, b) tfquant_simde::TileIntegers<uint8_t>(to, a, b)
#define _tile_dpbf16ps(to, a, b) tfquant_simde::TileBrains(to, a, b)

#define _mm512_cvtepi32_ps(v) tfquant_simde::Floats(v)
#define _mm512_cvtepu8_epi32(v) tfquant_simde::Widened(v)
#define _mm512_cvtepi32_epi16(v) tfquant_simde::Narrowed(v)
#define _mm512_cvtph_ps(v) tfquant_simde::Halves(v)
#define _mm512_srai_epi32(v, count) tfquant_simde::ShiftedRight(v, count)
#define _mm512_stream_ps(to, v) _mm512_store_ps(to, v)
#define _mm256_dpbusd_avx_epi32(sum, a, b) _mm256_dpbusd_epi32(sum, a, b)

#endif  // TFQUANT_CUSTOM_OPS_TESTS_SIMDE_AVX512_H_
