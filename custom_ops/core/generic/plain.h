// Plain rows (blocks.h, format 3) to real values. Meaning: dequantize.h.
#ifndef TFQUANT_CUSTOM_OPS_CORE_GENERIC_PLAIN_H_
#define TFQUANT_CUSTOM_OPS_CORE_GENERIC_PLAIN_H_

#include <string.h>

#include <cstdint>

#include "../blocks.h"
#include "../float16.h"
#include "../kernels.h"

namespace tfquant {
namespace {

template <int kBits>
inline uint32_t PlainValue(const uint8_t* packed, int64_t i) {
  constexpr int kInByte = 8 / kBits;
  return (packed[i / kInByte] >> (i % kInByte * kBits)) & ((1u << kBits) - 1u);
}

inline void StoreValue(const DequantizeArgs& a, int64_t i, float v) {
  if (a.type == DataType::kFloat32) {
    memcpy(static_cast<float*>(a.out) + i, &v, 4);
  } else {
    static_cast<uint16_t*>(a.out)[i] = FloatToBrain(v);
  }
}

// Values are stored unsigned; the zero point of one that was signed and symmetric is its offset.
template <int kBits>
inline float ZeroPoint(const DequantizeArgs& a, int64_t group) {
  return a.zero_point ? a.zero_point[group] : static_cast<float>(Offset(kBits));
}

template <class Isa>
struct GenericPlain {
  static void Dequantize(const DequantizeArgs& args) {
    switch (args.num_bits) {
      case 8:
        DequantizeBits<8>(args);
        break;
      case 4:
        DequantizeBits<4>(args);
        break;
      case 2:
        DequantizeBits<2>(args);
        break;
      default:
        DequantizeBits<1>(args);
    }
    if (args.stream) Isa::Fence();
  }

  // out = scale * (v - zero_point), or scale * codebook[v].
  template <int kBits>
  static void DequantizeBits(const DequantizeArgs& a) {
    constexpr int64_t kInByte = 8 / kBits;
    // What a value stands for before its scale; repeated to 16, so that a look-up may take the bits
    // of the next value along.
    float small[16];
    const float* base = a.codebook;
    if (kBits < 8) {
      for (int j = 0; j < 16; ++j) {
        const int v = j & ((1 << kBits) - 1);
        small[j] = a.codebook ? a.codebook[v] : static_cast<float>(v);
      }
      base = small;
    }
    const int64_t done = kBits == 8 && a.codebook ? Isa::DequantizeBook(a) : 0;
    for (int64_t at = 0, g = 0; at < a.columns; at += a.group_size, ++g) {
      int64_t i = at < done ? done : at;
      const int64_t end = Min(at + a.group_size, a.columns);
      if (end - i >= 16 && i % kInByte == 0) {
        const float zero_point = a.codebook ? 0.0f : ZeroPoint<kBits>(a, g);
        i += Isa::template DequantizeRun<kBits>(a, i, end - i, base, a.scale[g], zero_point);
      } else if (a.group_size == 1 && !a.codebook && a.columns - i >= 16) {
        i += Isa::template DequantizeColumns<kBits>(a, a.columns, base);
        at = i - 1;
        g = at;
        continue;
      }
      for (; i < end; ++i) {
        const uint32_t v = PlainValue<kBits>(a.packed, i);
        StoreValue(a, i,
                   a.scale[g] * (a.codebook ? a.codebook[v]
                                            : static_cast<float>(static_cast<int>(v)) -
                                                  ZeroPoint<kBits>(a, g)));
      }
    }
  }

  // Columns at .. at + count - 1, which share a scale; returns how many it did. Plain loops, which
  // the compiler vectorizes.
  template <int kBits>
  static int64_t DequantizeRun(const DequantizeArgs& a, int64_t at, int64_t count,
                               const float* base, float scale, float zero_point) {
    constexpr int64_t kInByte = 8 / kBits;
    const int64_t whole = count / kInByte * kInByte;
    const uint8_t* const packed = a.packed + at / kInByte;
    constexpr int64_t kChunk = 64;
    float line[kChunk];
    for (int64_t c = 0; c < whole; c += kChunk) {
      const int64_t length = Min(kChunk, whole - c);
      for (int64_t i = 0; i < length / kInByte; ++i) {
        const uint32_t byte = packed[c / kInByte + i];
        for (int j = 0; j < kInByte; ++j) {
          const uint32_t v = (byte >> (j * kBits)) & ((1u << kBits) - 1u);
          const float value = base ? base[v] : static_cast<float>(static_cast<int>(v));
          line[i * kInByte + j] = scale * (value - zero_point);
        }
      }
      if (a.type == DataType::kFloat32) {
        memcpy(static_cast<float*>(a.out) + at + c, line, static_cast<size_t>(length) * 4);
      } else {
        uint16_t* const out = static_cast<uint16_t*>(a.out) + at + c;
        for (int64_t i = 0; i < length; ++i) out[i] = FloatToBrain(line[i]);
      }
    }
    return whole;
  }

  // The same of all columns, each with a scale of its own.
  template <int kBits>
  static int64_t DequantizeColumns(const DequantizeArgs& a, int64_t count, const float*) {
    constexpr int64_t kChunk = 64;
    float line[kChunk];
    const int64_t whole = count / 8 * 8;
    for (int64_t c = 0; c < whole; c += kChunk) {
      const int64_t length = Min(kChunk, whole - c);
      for (int64_t i = 0; i < length; ++i) {
        const int v = static_cast<int>(PlainValue<kBits>(a.packed, c + i));
        line[i] = a.scale[c + i] * (static_cast<float>(v) - ZeroPoint<kBits>(a, c + i));
      }
      if (a.type == DataType::kFloat32) {
        memcpy(static_cast<float*>(a.out) + c, line, static_cast<size_t>(length) * 4);
      } else {
        uint16_t* const out = static_cast<uint16_t*>(a.out) + c;
        for (int64_t i = 0; i < length; ++i) out[i] = FloatToBrain(line[i]);
      }
    }
    return whole;
  }

  // The same of 8 bits and a codebook.
  static int64_t DequantizeBook(const DequantizeArgs&) { return 0; }
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_GENERIC_PLAIN_H_
