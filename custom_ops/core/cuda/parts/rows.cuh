// Rows of x made ready: integers and scales, brain parts, or signs. A block a row.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_ROWS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_ROWS_CUH_

namespace tfquant {

// The largest value among the threads of a block, for all of them. `shared` has kWarps words.
TFQUANT_DEVICE unsigned LargestOfBlock(unsigned value, unsigned* shared) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const unsigned other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  Barrier();
  if (ThreadIndex() % kLanes == 0) shared[ThreadIndex() / kLanes] = value;
  Barrier();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) value = shared[i] > value ? shared[i] : value;
  return value;
}

// A scale below the smallest normal float counts as zero.
TFQUANT_DEVICE float ScaleOf(unsigned largest_bits) {
  const float scale = BitsToFloat(largest_bits) / 127.0f;
  return scale < kSmallestScale ? 0.0f : scale;
}

// A block a row: integers and scales of one row of x, by a.activations. Rows beyond m are zeros.
struct QuantizeRows {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    TFQUANT_SHARED unsigned shared[kWarps];
    const Index row = BlockIndex();
    signed char* const q = reinterpret_cast<signed char*>(a.rows) + row * a.padded_k;
    if (row >= a.m) {
      for (Index i = ThreadIndex(); i < a.padded_k; i += kGpuThreads) q[i] = 0;
      return;
    }
    unsigned largest = 0;
    for (Index i = ThreadIndex(); i < a.k; i += kGpuThreads) {
      const unsigned bits = FloatBits(LoadReal(a.x, row * a.k + i, a.brain)) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    largest = LargestOfBlock(largest, shared);
    const bool finite = largest < 0x7f800000u;
    if (a.activations == Activations::kPerGroup) {
      Groups(a, row, q);
    } else {
      const float scale =
          a.activations == Activations::kStatic ? a.x_scale : ScaleOf(finite ? largest : 0);
      const float inverse = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
      for (Index i = ThreadIndex(); i < a.padded_k; i += kGpuThreads) {
        q[i] = i < a.k && finite ? Quantize(a, row, i, inverse) : 0;
      }
      if (ThreadIndex() == 0) a.row_scale[row] = finite ? scale : BitsToFloat(0x7fc00000u);
      return;
    }
    if (ThreadIndex() == 0) a.row_scale[row] = finite ? 1.0f : BitsToFloat(0x7fc00000u);
  }

 private:
  static TFQUANT_DEVICE signed char Quantize(const GpuArguments& a, Index row, Index i,
                                             float inverse) {
    float steps = Multiply(LoadReal(a.x, row * a.k + i, a.brain), inverse);
    if (a.activations != Activations::kStatic) return static_cast<signed char>(RoundToInt(steps));
    steps = steps < -512.0f ? -512.0f : (steps > 512.0f ? 512.0f : steps);
    const int value = RoundToInt(steps) + a.zero_point;
    return static_cast<signed char>(value < -128 ? -128 : (value > 127 ? 127 : value));
  }

  // A warp a group.
  static TFQUANT_DEVICE void Groups(const GpuArguments& a, Index row, signed char* q) {
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    const int depth = a.group_blocks * kBlockK;
    for (Index group = warp; group < a.groups; group += kWarps) {
      const Index begin = group * depth;
      unsigned largest = 0;
      for (Index i = begin + lane; i < begin + depth && i < a.k; i += kLanes) {
        const unsigned bits = FloatBits(LoadReal(a.x, row * a.k + i, a.brain)) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
      for (int mask = kLanes / 2; mask > 0; mask /= 2) {
        const unsigned other = ShuffleXor(largest, mask);
        largest = other > largest ? other : largest;
      }
      const bool finite = largest < 0x7f800000u;
      const float scale = ScaleOf(finite ? largest : 0);
      const float inverse = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
      for (Index i = begin + lane; i < begin + depth; i += kLanes) {
        q[i] = i < a.k && finite ? Quantize(a, row, i, inverse) : 0;
      }
      if (lane == 0) a.group_scale[row * a.groups + group] = scale;
    }
  }
};

// A block a row: x as the sum of `kParts` brain floats. Three hold the 24 bits of a float32: each
// part is what is left, cut off after 8 bits, so the differences are exact and nothing overflows.
template <int kParts>
struct SplitRows {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index row = BlockIndex();
    unsigned short* const out = reinterpret_cast<unsigned short*>(a.rows) + row * a.padded_k;
    for (Index i = ThreadIndex(); i < a.padded_k; i += kGpuThreads) {
      float left = row < a.m && i < a.k ? LoadReal(a.x, row * a.k + i, a.brain) : 0.0f;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        unsigned bits = FloatBits(left);
        // The cut must not make an infinity of a NaN whose high bits are clear.
        if ((bits & 0x7fffffffu) > 0x7f800000u) bits |= 0x400000u;
        const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
        const unsigned cut = bits & 0xffff0000u;
        out[part * a.padded_m * a.padded_k + i] = static_cast<unsigned short>(cut >> 16);
        left = finite ? left - BitsToFloat(cut) : 0.0f;
      }
    }
  }
};

// A block a row: one bit a value, set where x < 0.
struct EncodeSigns {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index row = BlockIndex();
    unsigned* const out = reinterpret_cast<unsigned*>(a.rows) + row * a.sign_words;
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    for (Index word = warp; word < a.sign_words; word += kWarps) {
      const Index i = word * 32 + lane;
      const bool negative = row < a.m && i < a.k && LoadReal(a.x, row * a.k + i, a.brain) < 0.0f;
      const unsigned bits = Ballot(negative);
      if (lane == 0) out[word] = bits;
    }
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_ROWS_CUH_
