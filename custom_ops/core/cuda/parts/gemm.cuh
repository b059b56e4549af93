// Tensor-core matmul of many rows.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_GEMM_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_GEMM_CUH_

namespace tfquant {

// Where byte `at` of a stage of shared memory is kept. Pairs of 16 bytes trade places within a line
// of 128, so that the lanes of a half-warp, which read 32 bytes of each of four lines or of two
// rows in each of two, meet all 32 banks.
TFQUANT_DEVICE int Swizzle(int at) { return at ^ (at >> 7 & 3) << 5; }

// A block owns kRows rows of x and 8 panels; its 8 warps own 2 x 4 pieces of that. Rows of x,
// packed weights and scales of the next stretches of k travel to shared memory while this one is
// multiplied; a stretch is 64 bytes of a row of x.
template <class Form, bool kGrouped>
struct Gemm {
  static constexpr int kBits = Form::kWeightBits;
  static constexpr int kRows = Form::kParts == 1 ? kGemmRows : kSplitGemmRows;
  static constexpr int kTiles = kRows / 32;  // of 16 rows, a warp
  static constexpr int kPanels = 2;          // a warp
  static constexpr int kBlockPanels = kGemmColumns / kPanelWidth;
  static constexpr int kStretchBytes = 64;
  static constexpr int kBlocks = kStretchBytes / Form::kValueBytes / kBlockK;  // of a stretch
  static constexpr int kBlockBytes = kBits * kPanelRowBytes;
  static constexpr int kRowsSize = Form::kParts * kRows * kStretchBytes;
  static constexpr int kWeightsSize = kBlockPanels * kBlocks * kBlockBytes;
  static constexpr int kScalesSize = kGrouped ? kBlockPanels * kBlocks * kScaleBytes : 0;
  static constexpr int kStageSize = kRowsSize + kWeightsSize + kScalesSize;
  static constexpr int kSharedSize = 48 * 1024;
  static constexpr int kStages = 3 * kStageSize <= kSharedSize ? 3 : 2;
  static_assert(kStages * kStageSize <= kSharedSize, "static shared memory");

  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    alignas(128) TFQUANT_SHARED Byte shared[kStages * kStageSize];
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    const Index row_tiles = a.padded_m / kRows;
    const Index first_row = BlockIndex() % row_tiles * kRows;
    const Index first_panel = BlockIndex() / row_tiles * kBlockPanels;
    const Index blocks = a.padded_k / kBlockK;
    const Index stretches = (blocks + kBlocks - 1) / kBlocks;
    const int warp_row = warp % 2 * 16 * kTiles, warp_panel = warp / 2 * kPanels;
    const Index lane_row = first_row + warp_row + lane / 4;

    WarpSums<Form, kGrouped, kTiles, kPanels> sums;
    sums.Clear();
    for (int i = 0; i < kStages - 1; ++i) {
      if (i < stretches) Fetch(a, shared + i * kStageSize, first_row, first_panel, i, blocks);
      CommitCopies();
    }
    for (Index s = 0; s < stretches; ++s) {
      WaitCopies<kStages - 2>();
      Barrier();  // the stretch is there for all, and all are done with the one before it
      const Index next = s + kStages - 1;
      if (next < stretches) {
        Fetch(a, shared + next % kStages * kStageSize, first_row, first_panel, next, blocks);
      }
      CommitCopies();
      const Byte* const stage = shared + s % kStages * kStageSize;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const Index block = s * kBlocks + b;
        if (block >= blocks) break;
        typename Form::Columns columns[kPanels][2];
        const Byte* scales[kPanels];
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          const int slot = (warp_panel + p) * kBlocks + b;
          RawWeights<kBits> raw;
          for (int i = 0; i < (kBits == 8 ? 2 : 1); ++i) {
            raw.rows[i] =
                Load<Words2>(stage + kRowsSize + Swizzle(slot * kBlockBytes + raw.At(lane, i)));
          }
          columns[p][0] = Form::Unpack(raw, 0, lane);
          columns[p][1] = Form::Unpack(raw, 1, lane);
          scales[p] = stage + kRowsSize + kWeightsSize + slot * kScaleBytes;
        }
#pragma unroll
        for (int part = 0; part < Form::kParts; ++part) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const int row = part * kRows + warp_row + 16 * tile + lane / 4;
            const int at = b * kBlockK * Form::kValueBytes + lane % 4 * Form::kLaneBytes;
            const typename Form::Rows rows =
                Form::LoadRows(stage + Swizzle(row * kStretchBytes + at),
                               stage + Swizzle((row + 8) * kStretchBytes + at));
#pragma unroll
            for (int p = 0; p < kPanels; ++p) {
              Form::MultiplyAdd(sums.sum[tile][p][0], rows, columns[p][0]);
              Form::MultiplyAdd(sums.sum[tile][p][1], rows, columns[p][1]);
            }
          }
        }
        if (kGrouped && EndsGroup(a, block)) {
          sums.EndGroup(a, GroupOf(a, block), lane_row, scales, lane);
        }
      }
    }

    const bool fits = HeaderFits(a);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          float y[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int j = i % 2, e = 2 * high + i / 2;
            y[i] = kGrouped ? sums.total[kGrouped ? tile : 0][p][j][e]
                            : Form::ToFloat(sums.sum[tile][p][j][e]);
          }
          const Index column = (first_panel + warp_panel + p) * kPanelWidth + lane % 4 * 4;
          StoreFour(a, fits, y, lane_row + 16 * tile + 8 * high, column);
        }
      }
    }
  }

 private:
  // Starts the copies of a stretch. Panels beyond the last repeat it; what they give is not stored.
  static TFQUANT_DEVICE void Fetch(const GpuArguments& a, Byte* stage, Index first_row,
                                   Index first_panel, Index stretch, Index blocks) {
    const Index row_bytes = a.padded_k * Form::kValueBytes;
    for (int i = ThreadIndex(); i < kRowsSize / 16; i += kGpuThreads) {
      const int row = i / (kStretchBytes / 16) % kRows;
      const int part = i / (kStretchBytes / 16) / kRows;
      const Index at = stretch * kStretchBytes + i % (kStretchBytes / 16) * 16;
      if (at < row_bytes) {
        CopyAsync(stage + Swizzle(16 * i),
                  a.rows + (part * a.padded_m + first_row + row) * row_bytes + at);
      }
    }
    const Index last_panel = (a.n - 1) / kPanelWidth;
    for (int i = ThreadIndex(); i < kWeightsSize / 16; i += kGpuThreads) {
      const int slot = i / (kBlockBytes / 16);
      const Index panel = first_panel + slot / kBlocks, block = stretch * kBlocks + slot % kBlocks;
      if (block < blocks) {
        CopyAsync(stage + kRowsSize + Swizzle(16 * i),
                  BlockAt<kBits>(a, panel < last_panel ? panel : last_panel, block) +
                      i % (kBlockBytes / 16) * 16);
      }
    }
    for (int i = ThreadIndex(); i < kScalesSize / 16; i += kGpuThreads) {
      const int slot = i / 2;
      const Index panel = first_panel + slot / kBlocks, block = stretch * kBlocks + slot % kBlocks;
      if (block < blocks) {
        CopyAsync(
            stage + kRowsSize + kWeightsSize + 16 * i,
            ScalesAt(a, panel < last_panel ? panel : last_panel, GroupOf(a, block)) + i % 2 * 16);
      }
    }
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_GEMM_CUH_
