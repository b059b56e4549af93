// The instructions that kernels.cuh is made of, for nvcc and NVRTC; includes nothing. The emulator
// (../../tests/emulated_gpu.cc) has the same functions in C++, so kernels.cuh runs on a CPU too.
//
// A fragment is what one lane of a warp holds of a small matrix (PTX ISA, "Matrix Fragments for
// mma"). With g = lane / 4 and t = lane % 4, and a 32-bit register holding 4 int8, 2 bfloat16 or 32
// bits that follow each other along k, counted in registers:
//
//     a[0] row g, k-register t        a[1] row g + 8, t
//     a[2] row g, k-register t + 4    a[3] row g + 8, t + 4
//     b[0] column g, k-register t     b[1] column g, t + 4
//     c[0], c[1] row g, columns 2t and 2t + 1      c[2], c[3] row g + 8
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_INTRINSICS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_INTRINSICS_CUH_

#define TFQUANT_DEVICE __device__ __forceinline__
#define TFQUANT_SHARED __shared__

namespace tfquant {

TFQUANT_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
TFQUANT_DEVICE long long BlockIndex() { return blockIdx.x; }
TFQUANT_DEVICE void Barrier() { __syncthreads(); }

TFQUANT_DEVICE unsigned FloatBits(float value) { return __float_as_uint(value); }
TFQUANT_DEVICE float BitsToFloat(unsigned bits) { return __uint_as_float(bits); }

TFQUANT_DEVICE float HalfToFloat(unsigned short half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

// Rounded to the nearest, ties to even. A product that is not contracted with what follows.
TFQUANT_DEVICE int RoundToInt(float value) { return __float2int_rn(value); }
TFQUANT_DEVICE float Multiply(float a, float b) { return __fmul_rn(a, b); }

TFQUANT_DEVICE int CountBits(unsigned value) { return __popc(value); }

// Byte i of the result is byte (selector >> 4i) % 8 of a (0 to 3) and b (4 to 7).
TFQUANT_DEVICE unsigned ByteSelect(unsigned a, unsigned b, unsigned selector) {
  return __byte_perm(a, b, selector);
}

// sum + the product of four signed bytes with four.
TFQUANT_DEVICE int DotBytes(unsigned a, unsigned b, int sum) {
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
}

template <class T>
TFQUANT_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Bit i: what lane i says.
TFQUANT_DEVICE unsigned Ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

// 16 bytes from global to shared memory, both on a multiple of 16. They have arrived when, of the
// groups of copies that CommitCopies() closed, all but the last `kPending` have been waited for.
TFQUANT_DEVICE void CopyAsync(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

TFQUANT_DEVICE void CommitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
TFQUANT_DEVICE void WaitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Sums of two bfloat16 pairs; kernels.cuh asks for exact ones only.
TFQUANT_DEVICE unsigned AddBrainPairs(unsigned a, unsigned b) {
#if __CUDA_ARCH__ >= 800
  unsigned sum;  // 1 * a + b
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
#else
  const float low = BitsToFloat(a << 16) + BitsToFloat(b << 16);
  const float high = BitsToFloat(a & 0xffff0000u) + BitsToFloat(b & 0xffff0000u);
  return (FloatBits(low) >> 16) | (FloatBits(high) & 0xffff0000u);
#endif
}

// c += a . b: 16 x 32 by 32 x 8 signed bytes.
TFQUANT_DEVICE void MultiplyBytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                   : "+r"(c[2 * i]), "+r"(c[2 * i + 1])
                   : "r"(a[2 * half + i]), "r"(b[half]));
    }
  }
#endif
}

#if __CUDA_ARCH__ < 800
struct FourFloats {
  float value[4];
};

// No instruction multiplies bfloat16 before sm_80: the lanes trade their registers. Not inlined, or
// a kernel takes minutes to compile.
static __device__ __noinline__ FourFloats MultiplyBrainsByLanes(FourFloats c, unsigned a0,
                                                                unsigned a1, unsigned a2,
                                                                unsigned a3, unsigned b0,
                                                                unsigned b1) {
  const int g = ThreadIndex() % 32 / 4, t = ThreadIndex() % 4;
  const unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned x = __shfl_sync(0xffffffffu, a[2 * half + i / 2], 4 * g + lane);
        const unsigned w = __shfl_sync(0xffffffffu, b[half], 4 * (2 * t + i % 2) + lane);
        c.value[i] += BitsToFloat(x << 16) * BitsToFloat(w << 16);
        c.value[i] += BitsToFloat(x & 0xffff0000u) * BitsToFloat(w & 0xffff0000u);
      }
    }
  }
  return c;
}
#endif

// c += a . b: 16 x 16 by 16 x 8 bfloat16.
TFQUANT_DEVICE void MultiplyBrains(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  const FourFloats sum =
      MultiplyBrainsByLanes({{c[0], c[1], c[2], c[3]}}, a[0], a[1], a[2], a[3], b[0], b[1]);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] = sum.value[i];
#endif
}

// c += the number of differing bits: 16 x 256 by 256 x 8 bits.
TFQUANT_DEVICE void CountDifferences(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      asm volatile(
          "mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%0,%1}, {%2}, {%3}, {%0,%1};"
          : "+r"(c[2 * i]), "+r"(c[2 * i + 1])
          : "r"(a[2 * half + i]), "r"(b[half]));
    }
  }
#endif
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_INTRINSICS_CUH_
