// What the kernels are made of: types, and values of x and y as they lie in memory.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_VALUES_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_VALUES_CUH_

namespace tfquant {

typedef unsigned char Byte;
typedef long long Index;

constexpr int kLanes = 32;
constexpr int kWarps = kGpuThreads / kLanes;

struct alignas(8) Words2 {
  unsigned word[2];
};
struct alignas(16) Words4 {
  unsigned word[4];
};
struct alignas(16) Floats4 {
  float value[4];
};

template <bool kFirst, class A, class B>
struct Choose {
  typedef A Type;
};
template <class A, class B>
struct Choose<false, A, B> {
  typedef B Type;
};

template <class T>
TFQUANT_DEVICE T Load(const void* at) {
  return *static_cast<const T*>(at);
}

// One value of x, float32 or bfloat16.
TFQUANT_DEVICE float LoadReal(const void* x, Index i, bool brain) {
  if (!brain) return static_cast<const float*>(x)[i];
  return BitsToFloat(static_cast<unsigned>(static_cast<const unsigned short*>(x)[i]) << 16);
}

TFQUANT_DEVICE void StoreReal(void* y, Index i, float value, bool brain) {
  if (!brain) {
    static_cast<float*>(y)[i] = value;
    return;
  }
  const unsigned bits = FloatBits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const unsigned rounded = nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  static_cast<unsigned short*>(y)[i] = static_cast<unsigned short>(rounded >> 16);
}

TFQUANT_DEVICE float HalfOf(unsigned word, int i) {
  return HalfToFloat(static_cast<unsigned short>(word >> (16 * i)));
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_VALUES_CUH_
