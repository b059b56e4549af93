// The path that runs everywhere: plain C++ on arrays of 16, which compilers vectorize as they can.
#include "../generic/table.h"

namespace tfquant {
namespace {

struct Portable : GenericIsa<Portable> {
  struct Sum {
    int32_t v[16];
  };
  struct Real {
    float v[16];
  };
  struct Row {
    uint32_t v[16];
  };

  static Sum Splat(int32_t value) {
    Sum s;
    for (int i = 0; i < 16; ++i) s.v[i] = value;
    return s;
  }
  static Sum LoadSum(const int32_t* from) {
    Sum s;
    memcpy(s.v, from, sizeof(s.v));
    return s;
  }
  static void StoreSum(int32_t* to, const Sum& s) { memcpy(to, s.v, sizeof(s.v)); }
  static Real ToReal(const Sum& s) {
    Real r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(s.v[i]);
    return r;
  }

  static Real SplatReal(float value) {
    Real r;
    for (int i = 0; i < 16; ++i) r.v[i] = value;
    return r;
  }
  static Real LoadReal(const float* from) {
    Real r;
    memcpy(r.v, from, sizeof(r.v));
    return r;
  }
  static void StoreReal(float* to, const Real& r) { memcpy(to, r.v, sizeof(r.v)); }
  static Real Mul(const Real& a, const Real& b) {
    Real r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] * b.v[i];
    return r;
  }
  static Real Fma(const Real& a, const Real& b, const Real& c) {
    Real r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] * b.v[i] + c.v[i];
    return r;
  }
  static Real HalfScales(const uint8_t* from) {
    Real r;
    for (int i = 0; i < 16; ++i) {
      uint16_t half;
      memcpy(&half, from + 2 * i, sizeof(half));
      r.v[i] = HalfToFloat(half);
    }
    return r;
  }

  template <int kBits, bool kPacked, int kRows, int kCount>
  static void Dot(const uint8_t* const (&weights)[kCount], const int8_t* x,
                  Sum (&sum)[kRows][kCount]) {
    uint8_t bytes[8 * kRowBytes];
    for (int p = 0; p < kCount; ++p) {
      const uint8_t* row = weights[p];
      if (kPacked && kBits < 8) {
        Unpack<kBits>(row, bytes);
        row = bytes;
      }
      for (int step = 0; step < 8; ++step, row += kRowBytes) {
        for (int m = 0; m < kRows; ++m) {
          const int8_t* const four = x + (step * kRows + m) * 4;
          for (int c = 0; c < 16; ++c) {
            sum[m][p].v[c] += row[4 * c] * four[0] + row[4 * c + 1] * four[1] +
                              row[4 * c + 2] * four[2] + row[4 * c + 3] * four[3];
          }
        }
      }
    }
  }

  template <int kBits>
  static void Unpack(const uint8_t* block, uint8_t* bytes) {
    for (int row = 0; row < kBits; ++row, block += kRowBytes) {
      for (int shift = 0; shift < 8; shift += kBits, bytes += kRowBytes) {
        for (int i = 0; i < kRowBytes; ++i) {
          bytes[i] = static_cast<uint8_t>((block[i] >> shift) & ((1 << kBits) - 1));
        }
      }
    }
  }

  static Row LoadRow(const uint8_t* from) {
    Row r;
    for (int i = 0; i < 16; ++i) {
      r.v[i] = from[4 * i] | from[4 * i + 1] << 8 | from[4 * i + 2] << 16 |
               static_cast<uint32_t>(from[4 * i + 3]) << 24;
    }
    return r;
  }
  template <int kBits>
  static Real Value(const Row& row, int index) {
    const int shift = 8 * (index % 4) + kBits * (index / 4);
    Real r;
    for (int i = 0; i < 16; ++i) {
      const int v = static_cast<int>((row.v[i] >> shift) & ((1u << kBits) - 1u));
      r.v[i] = static_cast<float>(v - Offset(kBits));
    }
    return r;
  }

  template <bool, int kRows>
  static void BinaryTile(const uint8_t* weights, int64_t depth, const uint32_t* x, int32_t* sum) {
    for (int64_t k = 0; k < depth; ++k, weights += kRowBytes, x += kRows) {
      for (int m = 0; m < kRows; ++m) {
        for (int c = 0; c < kRowBytes; ++c) {
          // Population count of a byte in three steps: pairs, nibbles, byte.
          uint32_t v = (weights[c] ^ x[m]) & 0xffu;
          v = v - ((v >> 1) & 0x55u);
          v = (v & 0x33u) + ((v >> 2) & 0x33u);
          sum[m * kBinaryPanelColumns + c] += static_cast<int32_t>((v + (v >> 4)) & 0x0fu);
        }
      }
    }
  }
};

}  // namespace

extern const Path portable_path;
const Path portable_path = {
    "portable",
    []() -> const Kernels& { return PanelKernels<Portable>::kTable; },
    {},
};

}  // namespace tfquant
