// Without a product: the real weights, plain rows to real values and back.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_PLAIN_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_PLAIN_CUH_

namespace tfquant {

// The real weights [k, n]: a thread a column and 32 values of k.
template <int kBits>
struct UnpackWeights {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    constexpr int kWidth = kBits == 1 ? kBinaryColumns : kPanelWidth;
    const Index chunks = (a.n + kGpuThreads - 1) / kGpuThreads;
    const Index column = BlockIndex() % chunks * kGpuThreads + ThreadIndex();
    const Index block = BlockIndex() / chunks;
    if (column >= a.n) return;
    const bool fits = HeaderFits(a);
    const Index panel = column / kWidth;
    const int in_panel = static_cast<int>(column % kWidth);
    float scale = fits ? a.column_scale[column] : BitsToFloat(0x7fc00000u);
    if (a.group_blocks) {
      const Byte* const at = ScalesAt(a, panel, GroupOf(a, block)) + 2 * in_panel;
      scale *= HalfToFloat(Load<unsigned short>(at));
    }
    const Byte* const at =
        kBits == 1 ? a.panels + panel * a.panel_bytes + block * 4 * kPanelRowBytes + in_panel
                   : BlockAt<kBits>(a, panel, block) + 4 * in_panel;
    for (int i = 0; i < kBlockK; ++i) {
      const Index k = block * kBlockK + i;
      if (k >= a.k) break;
      float q;
      if (kBits == 1) {
        q = at[i / 8 * kPanelRowBytes] >> (i % 8) & 1 ? -1.0f : 1.0f;
      } else {
        constexpr int kSteps = 8 / kBits;
        const int step = i / 4;
        const int byte = at[step / kSteps * kPanelRowBytes + i % 4];
        const int v = byte >> (step % kSteps * kBits) & ((1 << kBits) - 1);
        q = static_cast<float>(v - (1 << (kBits - 1)));
      }
      static_cast<float*>(a.y)[k * a.n + column] = q * scale;
    }
  }
};

// A thread four values of a plain row.
template <int kBits>
struct Dequantize {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index chunks = (a.columns + 4 * kGpuThreads - 1) / (4 * kGpuThreads);
    const Index column = (BlockIndex() % chunks * kGpuThreads + ThreadIndex()) * 4;
    const Index row = BlockIndex() / chunks;
    if (column >= a.columns) return;
    const int count = a.columns - column < 4 ? static_cast<int>(a.columns - column) : 4;
    const Byte* const at = a.packed + row * a.row_bytes + column / (8 / kBits);
    unsigned v;  // from the lowest bits up
    if (kBits == 8) {
      v = 0;
      for (int i = 0; i < count; ++i) v |= static_cast<unsigned>(at[i]) << (8 * i);
    } else if (kBits == 4) {
      v = at[0] | (count > 2 ? static_cast<unsigned>(at[1]) << 8 : 0u);
    } else {
      v = static_cast<unsigned>(at[0]) >> (kBits == 1 ? column % 8 : 0);
    }
    const Index scales = row / a.row_group * a.scales_in_row;
    Index group = a.column_group >= a.columns ? 0 : column / a.column_group;
    Index in_group = column - group * a.column_group;
    float out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) {
        const unsigned value = (v >> (kBits * i)) & ((1u << kBits) - 1u);
        const float zero =
            a.zero_points ? a.zero_points[scales + group] : static_cast<float>(1 << (kBits - 1));
        out[i] = a.scale[scales + group] *
                 (a.codebook ? a.codebook[value] : static_cast<float>(value) - zero);
        if (++in_group == a.column_group) {
          in_group = 0;
          ++group;
        }
      }
    }
    const Index to = row * a.columns + column;
    if (a.y_vector) {
      *reinterpret_cast<Floats4*>(static_cast<float*>(a.y) +
                                  to) = {{out[0], out[1], out[2], out[3]}};
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) StoreReal(a.y, to + i, out[i], a.brain);
    }
  }
};

// A thread a packed byte.
template <int kBits>
struct QuantizePack {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index chunks = (a.row_bytes + kGpuThreads - 1) / kGpuThreads;
    const Index at = BlockIndex() % chunks * kGpuThreads + ThreadIndex();
    const Index row = BlockIndex() / chunks;
    if (at >= a.row_bytes) return;
    constexpr int kInByte = 8 / kBits;
    constexpr float kHighest = static_cast<float>((1 << kBits) - 1);
    unsigned byte = 0;
    for (int i = 0; i < kInByte; ++i) {
      const Index column = at * kInByte + i;
      if (column >= a.columns) break;
      const Index group = row / a.row_group * a.scales_in_row + column / a.column_group;
      const float zero =
          a.zero_points ? a.zero_points[group] : static_cast<float>(1 << (kBits - 1));
      const float real = static_cast<const float*>(a.x)[row * a.columns + column] / a.scale[group];
      float q = real != real ? zero : rintf(real) + zero;
      q = q < 0.0f ? 0.0f : (q > kHighest ? kHighest : q);
      byte |= static_cast<unsigned>(q) << (i * kBits);
    }
    a.packed[row * a.row_bytes + at] = static_cast<Byte>(byte);
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_PLAIN_CUH_
