// Packed weights: where a block lies, and its values as bytes or brain floats. Formats:
// ../../blocks.h.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_WEIGHTS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_WEIGHTS_CUH_

namespace tfquant {

// The group that a block lies in. Groups have 1, 2 or 4 blocks, so half of that is the logarithm.
TFQUANT_DEVICE Index GroupOf(const GpuArguments& a, Index block) {
  return block >> (a.group_blocks >> 1);
}
TFQUANT_DEVICE bool EndsGroup(const GpuArguments& a, Index block) {
  return ((block + 1) & (a.group_blocks - 1)) == 0;
}

// Start of 32 values of k of a panel.
template <int kBits>
TFQUANT_DEVICE const Byte* BlockAt(const GpuArguments& a, Index panel, Index block) {
  const Byte* const at = a.panels + panel * a.panel_bytes + block * (kBits * kPanelRowBytes);
  return a.group_blocks == 0 ? at : at + GroupOf(a, block) * kScaleBytes;
}

TFQUANT_DEVICE const Byte* ScalesAt(const GpuArguments& a, Index panel, Index group) {
  return a.panels + panel * a.panel_bytes + (group + 1) * a.group_bytes - kScaleBytes;
}

// The stored value has q + 2^(bits-1); flipping its highest bit makes it q in two's complement, and
// in the highest bits of a byte that is q * 2^(8 - bits). Sums are too large by that power of two,
// and fit an int32 all the same: such a byte is one of -128 .. 127.
template <int kBits>
TFQUANT_DEVICE unsigned SignedBytes(unsigned word, int shift) {
  constexpr unsigned kHighest = 0x80808080u;
  constexpr unsigned kMask = kBits == 8 ? 0xffffffffu : (kBits == 4 ? 0xf0f0f0f0u : 0xc0c0c0c0u);
  return ((word << (8 - kBits - shift)) ^ kHighest) & kMask;
}

template <int kBits>
TFQUANT_DEVICE unsigned UnsignedBytes(unsigned word, int shift) {
  constexpr unsigned kMask = kBits == 8 ? 0xffffffffu : (kBits == 4 ? 0x0f0f0f0fu : 0x03030303u);
  return (word >> shift) & kMask;
}

// Bytes 2 * half and 2 * half + 1, stored values, as two brain floats q. 0x4300 is 128, and its low
// seven bits count ones: 128 + v, minus 128 and the offset. With 8 bits 128 + v % 128, minus 128
// or, for the lower half of the values, 256.
template <int kBits>
TFQUANT_DEVICE unsigned BrainPair(unsigned bytes, int half) {
  const unsigned pair = ByteSelect(bytes, 0, half ? 0x4342u : 0x4140u);
  if (kBits == 8) {
    return AddBrainPairs((pair & 0x007f007fu) | 0x43004300u, (~pair & 0x00800080u) | 0xc300c300u);
  }
  constexpr unsigned kOffset = kBits == 4 ? 8u : 2u;
  return AddBrainPairs(pair | 0x43004300u, 0xc300c300u | kOffset << 16 | kOffset);
}

// What a lane reads of a block: the words of columns 2g and 2g + 1 with steps 2t and 2t + 1.
template <int kBits>
struct RawWeights {
  Words2 rows[kBits == 8 ? 2 : 1];

  // Byte within the block of the i-th row that the lane reads.
  static TFQUANT_DEVICE int At(int lane, int i) {
    const int g = lane / 4, t = lane % 4;
    const int row = kBits == 8 ? 2 * t + i : (kBits == 4 ? t : t / 2);
    return row * kPanelRowBytes + 8 * g;
  }
  // Step 2t + i of column 2g + j.
  TFQUANT_DEVICE unsigned Word(int j, int i) const { return rows[kBits == 8 ? i : 0].word[j]; }
  static TFQUANT_DEVICE int Shift(int lane, int i) {
    return kBits == 8 ? 0 : (kBits == 4 ? 4 * i : 4 * (lane % 2) + 2 * i);
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_WEIGHTS_CUH_
