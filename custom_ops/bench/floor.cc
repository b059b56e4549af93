// What this machine can do at most: the peak of each class of arithmetic on registers, and the
// bandwidth of reading and of copying a footprint. benchmarks/lowbit_matmul.py compiles this with
// `-march=native` and calls it through ctypes; every function returns seconds for its work.
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define TFQUANT_FLOOR_AMX
#endif

namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Body>
double OnThreads(int threads, const Body& body) {
  std::atomic<int> ready{0};
  std::vector<double> begin(threads), end(threads);
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      begin[t] = Now();
      body(t);
      end[t] = Now();
    });
  }
  for (std::thread& thread : pool) thread.join();
  double longest = 0;
  for (int t = 0; t < threads; ++t) longest = std::max(longest, end[t] - begin[t]);
  return longest;
}

template <int kind>
double Compute(int threads, int64_t rounds) {
  return OnThreads(threads, [&](int t) {
#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BITALG__)
    volatile int seed = t;
    __m512i a = _mm512_set1_epi32(seed), b = _mm512_set1_epi32(seed + 1);
    __m512i sum[16];
    __m512 real[16];
    __m512 half =
        _mm512_set1_ps(0.5f);  // a sum of it with half of itself settles, far from denormals
    for (int i = 0; i < 16; ++i) sum[i] = a, real[i] = half;
    for (int64_t r = 0; r < rounds; ++r) {
      asm volatile("" : "+v"(a), "+v"(b), "+v"(half));
      if (kind == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) real[i] = _mm512_fmadd_ps(real[i], half, half);
      } else if (kind == 3) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          __m512i differ = _mm512_xor_si512(a, sum[(i + 8) % 16]);
          sum[i] = _mm512_add_epi8(sum[i], _mm512_popcnt_epi8(differ));
        }
      } else if (kind == 1) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
      } else {
        __m512i group[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          group[i] = a;
          asm volatile("" : "+v"(group[i]));  // or the compiler sees that they are the same
        }
#pragma GCC unroll 8
        for (int step = 0; step < 8; ++step) {
#pragma GCC unroll 8
          for (int i = 0; i < 8; ++i) group[i] = _mm512_dpbusd_epi32(group[i], a, b);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          real[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(group[i]), half, real[i]);
        }
      }
    }
    __m512i all = _mm512_setzero_si512();
    for (int i = 0; i < 16; ++i) {
      all = _mm512_xor_si512(all, _mm512_xor_si512(sum[i], _mm512_castps_si512(real[i])));
    }
    volatile int sink = _mm512_reduce_add_epi32(all);
    (void)sink;
#elif defined(__AVX2__)
    volatile int seed = t;
    __m256i a = _mm256_set1_epi8(static_cast<char>(seed + 1));
    __m256i b = _mm256_set1_epi8(static_cast<char>(seed + 2));
    const __m256i ones = _mm256_set1_epi16(1), nibble = _mm256_set1_epi8(15);
    __m256i sum[8];
    __m256 real[8];
    __m256 half = _mm256_set1_ps(0.5f);
    for (int i = 0; i < 8; ++i) sum[i] = a, real[i] = half;
    for (int64_t r = 0; r < rounds; ++r) {
      asm volatile("" : "+x"(a), "+x"(b), "+x"(half));
      if (kind == 0) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) real[i % 8] = _mm256_fmadd_ps(real[i % 8], half, half);
      } else if (kind == 1) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const __m256i pairs = _mm256_maddubs_epi16(a, b);
          sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, ones));
          asm("" : "+x"(sum[i]), "+x"(a));
        }
      } else if (kind == 2) {
        __m256i chain[4] = {a, a, a, a};
#pragma GCC unroll 8
        for (int step = 0; step < 8; ++step) {
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            chain[i] = _mm256_add_epi16(chain[i], _mm256_maddubs_epi16(a, b));
            asm("" : "+x"(chain[i]), "+x"(a));
          }
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const __m256 group = _mm256_cvtepi32_ps(_mm256_madd_epi16(chain[i], ones));
          real[i] = _mm256_fmadd_ps(group, half, real[i]);
        }
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          __m256i three = _mm256_shuffle_epi8(b, a);
          asm("" : "+x"(three), "+x"(a));
          three = _mm256_add_epi8(three, _mm256_shuffle_epi8(b, a));
          asm("" : "+x"(three), "+x"(a));
          three = _mm256_add_epi8(three, _mm256_shuffle_epi8(b, a));
          sum[i] = _mm256_add_epi8(sum[i], three);
          const __m256i second = _mm256_and_si256(_mm256_srli_epi16(three, 4), nibble);
          sum[i + 4] = _mm256_add_epi8(sum[i + 4], second);
          asm("" : "+x"(sum[i]), "+x"(sum[i + 4]), "+x"(a));
        }
      }
    }
    __m256i all = ones;
    for (int i = 0; i < 8; ++i) {
      all = _mm256_xor_si256(all, _mm256_xor_si256(sum[i], _mm256_castps_si256(real[i])));
    }
    volatile int sink = _mm256_extract_epi32(all, 0);
    (void)sink;
#else
    volatile float sink = 0;
    for (int64_t r = 0; r < rounds * 16; ++r) sink = sink * 0.5f + static_cast<float>(t);
#endif
  });
}

#if defined(TFQUANT_FLOOR_AMX)
bool MayUseTiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Four tiles of sums from two of x and two of weights.
template <int kind>
double ComputeTiles(int threads, int64_t rounds) {
  return OnThreads(threads, [&](int t) {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = 16;
    if (kind == 5) {
      config.row_bytes[4] = config.row_bytes[5] = 32;
      config.rows[6] = config.rows[7] = 8;
    }
    alignas(64) uint8_t values[1024] = {};
    alignas(64) int32_t sum[2][256];
    _tile_loadconfig(&config);
    _tile_loadd(4, values, 64);
    _tile_loadd(5, values, 64);
    _tile_loadd(6, values, 64);
    _tile_loadd(7, values, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    __m512 real[16];
    for (__m512& r : real) r = _mm512_set1_ps(static_cast<float>(t));
    const __m512 half = _mm512_set1_ps(0.5f);
    for (int64_t r = 0; r < rounds; ++r) {
      if (kind == 4) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      } else if (kind == 6) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      } else {  // a tile is multiplied while the one before is scaled
        const int32_t* before = sum[(r + 1) % 2];
        _tile_zero(0);
        _tile_dpbssd(0, 4, 6);
        _tile_stored(0, sum[r % 2], 64);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(before + 16 * i));
          real[i] = _mm512_fmadd_ps(value, half, real[i]);
        }
      }
    }
    _tile_release();
    __m512 all = real[0];
    for (int i = 1; i < 16; ++i) all = _mm512_add_ps(all, real[i]);
    volatile float sink = _mm512_reduce_add_ps(all);
    (void)sink;
  });
}
#endif

}  // namespace

extern "C" {

// Multiply-adds a thread does in `rounds` rounds of each class.
double tfquant_floor_products(int kind, int64_t rounds) {
#if defined(TFQUANT_FLOOR_AMX)
  if (kind >= 4 && MayUseTiles()) {
    // A float is three products.
    const double each = kind == 4 ? 4 * 16384 : (kind == 5 ? 8192 : 4 * 8192 / 3.0);
    return each * static_cast<double>(rounds);
  }
#endif
  if (kind >= 4) return 0;
#if defined(__AVX512F__)
  // Of a round: 16 instructions on registers; with groups 64 between the conversions.
  const double each = kind == 0 ? 16 : (kind == 3 ? 512 : 64);
  return each * (kind == 2 ? 64 : 16) * static_cast<double>(rounds);
#else
  // Of a round: 16 multiply-adds of 8; 8 products of 32; 4 chains of 8 such; 4 times three nibbles
  // of 32 columns for two rows.
  const double each = kind == 0 ? 16 * 8 : (kind == 1 ? 8 * 32 : (kind == 2 ? 4 * 256 : 4 * 768));
  return each * static_cast<double>(rounds);
#endif
}

// kind 0: float fused multiply-add; 1: u8 x s8 to int32; 2: the same with a conversion and a float
// multiply-add for every eight (groups of 32; with AVX2 weights of 4 bits, added up in 16 bits); 3:
// differing bits, by population count or (AVX2) by a table of nibbles for two rows. By AMX, if
// there are products: 4: s8 x s8 to int32; 5: the same in groups of 32; 6: floats as three
// bfloat16.
double tfquant_floor_compute(int kind, int threads, int64_t rounds) {
  switch (kind) {
#if defined(TFQUANT_FLOOR_AMX)
    case 4:
      return ComputeTiles<4>(threads, rounds);
    case 5:
      return ComputeTiles<5>(threads, rounds);
    case 6:
      return ComputeTiles<6>(threads, rounds);
#endif
    case 0:
      return Compute<0>(threads, rounds);
    case 1:
      return Compute<1>(threads, rounds);
    case 2:
      return Compute<2>(threads, rounds);
    default:
      return Compute<3>(threads, rounds);
  }
}

// Reads `bytes` bytes, cut between the threads, each in four streams.
double tfquant_floor_read(const uint8_t* data, int64_t bytes, int threads, int repeats) {
  const int64_t share = bytes / threads / 1024 * 1024;
  return OnThreads(threads, [&](int t) {
    uint64_t sum[8] = {};
#if defined(__AVX2__)
    __m256i wide = _mm256_setzero_si256(), other = wide;
#endif
    for (int r = 0; r < repeats; ++r) {
      const uint8_t* const from = data + t * share;
      const int64_t stream = share / 4;
      for (int64_t i = 0; i < stream; i += 64) {
#if defined(__AVX2__)
        for (int s = 0; s < 4; ++s) {
          const __m256i* const at = reinterpret_cast<const __m256i*>(from + s * stream + i);
          wide = _mm256_xor_si256(wide, _mm256_loadu_si256(at));
          other = _mm256_xor_si256(other, _mm256_loadu_si256(at + 1));
        }
#else
        for (int s = 0; s < 4; ++s) {
          uint64_t word[8];
          memcpy(word, from + s * stream + i, 64);
          for (int j = 0; j < 8; ++j) sum[j] ^= word[j];
        }
#endif
      }
      asm volatile("" : "+m"(sum));
#if defined(__AVX2__)
      asm volatile("" : "+x"(wide), "+x"(other));
#endif
    }
    volatile uint64_t sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    (void)sink;
  });
}

double tfquant_floor_copy(const uint8_t* from, uint8_t* to, int64_t bytes, int threads) {
  const int64_t share = bytes / threads;
  return OnThreads(threads, [&](int t) {
    memcpy(to + t * share, from + t * share, static_cast<size_t>(share));
  });
}

// Evicts what the caches hold.
uint64_t tfquant_floor_flush(const uint64_t* data, int64_t words) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < words; ++i) sum ^= data[i];
  return sum;
}

}  // extern "C"
