// Tensor-core matmul of some rows.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_SKINNY_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_SKINNY_CUH_

namespace tfquant {

// A block owns 16 * kTiles rows and a few panels; its warps share k, four blocks at a time, and
// meet in shared memory.
template <class Form, bool kGrouped, int kTiles>
struct Skinny {
  static constexpr int kBits = Form::kWeightBits;
  static constexpr int kPanels = kTiles == 1 ? kOneTilePanels : kMoreTilesPanels;
  static constexpr int kBlocks = 4;  // a multiple of every group

  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    constexpr int kValues = kPanels * 8;  // of a lane, in a tile
    // Integers of a channel are added as integers; floats, in the order of the warps.
    typedef typename Choose<kGrouped, float, typename Form::Sum>::Type Value;
    TFQUANT_SHARED Value shared[kWarps][kValues][kLanes];
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    const Index row_tiles = a.padded_m / (16 * kTiles);
    const Index first_row = BlockIndex() % row_tiles * (16 * kTiles);
    const Index first_panel = BlockIndex() / row_tiles * kPanels;
    const Index last_panel = (a.n - 1) / kPanelWidth;
    const Index blocks = a.padded_k / kBlockK, row_bytes = a.padded_k * Form::kValueBytes;
    WarpSums<Form, kGrouped, kTiles, kPanels> sums;
    sums.Clear();
    for (Index first = warp * kBlocks; first < blocks; first += kWarps * kBlocks) {
      RawWeights<kBits> raw[kBlocks][kPanels];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        if (first + b >= blocks) break;
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          const Index panel = first_panel + p < last_panel ? first_panel + p : last_panel;
          const Byte* const at = BlockAt<kBits>(a, panel, first + b);
          for (int i = 0; i < (kBits == 8 ? 2 : 1); ++i) {
            raw[b][p].rows[i] = Load<Words2>(at + raw[b][p].At(lane, i));
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        const Index block = first + b;
        if (block >= blocks) break;
        typename Form::Columns columns[kPanels][2];
#pragma unroll
        for (int p = 0; p < kPanels; ++p) {
          columns[p][0] = Form::Unpack(raw[b][p], 0, lane);
          columns[p][1] = Form::Unpack(raw[b][p], 1, lane);
        }
#pragma unroll
        for (int part = 0; part < Form::kParts; ++part) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const Byte* const at =
                a.rows + (part * a.padded_m + first_row + 16 * tile + lane / 4) * row_bytes +
                block * kBlockK * Form::kValueBytes + lane % 4 * Form::kLaneBytes;
            const typename Form::Rows rows = Form::LoadRows(at, at + 8 * row_bytes);
#pragma unroll
            for (int p = 0; p < kPanels; ++p) {
              Form::MultiplyAdd(sums.sum[tile][p][0], rows, columns[p][0]);
              Form::MultiplyAdd(sums.sum[tile][p][1], rows, columns[p][1]);
            }
          }
        }
        if (kGrouped && EndsGroup(a, block)) {
          const Index group = GroupOf(a, block);
          const Byte* scales[kPanels];
          for (int p = 0; p < kPanels; ++p) {
            scales[p] =
                ScalesAt(a, first_panel + p < last_panel ? first_panel + p : last_panel, group);
          }
          sums.EndGroup(a, group, first_row + lane / 4, scales, lane);
        }
      }
    }

    const bool fits = HeaderFits(a);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int p = i / 8, j = i / 4 % 2, e = i % 4;
        if (kGrouped) {
          shared[warp][i][lane] = static_cast<Value>(sums.total[kGrouped ? tile : 0][p][j][e]);
        } else {
          shared[warp][i][lane] = static_cast<Value>(sums.sum[tile][p][j][e]);
        }
      }
      Barrier();
      // Item `at` is four neighbours of y: panel p, row half, lane.
      for (int at = ThreadIndex(); at < kPanels * 2 * kLanes; at += kGpuThreads) {
        const int of = at % kLanes, high = at / kLanes % 2, p = at / kLanes / 2;
        float y[4];
        for (int i = 0; i < 4; ++i) {
          const int value = p * 8 + i % 2 * 4 + 2 * high + i / 2;
          Value sum = 0;
          for (int w = 0; w < kWarps; ++w) sum += shared[w][value][of];
          y[i] = kGrouped ? static_cast<float>(sum)
                          : Form::ToFloat(static_cast<typename Form::Sum>(sum));
        }
        StoreFour(a, fits, y, first_row + 16 * tile + of / 4 + 8 * high,
                  (first_panel + p) * kPanelWidth + of % 4 * 4);
      }
      Barrier();
    }
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_SKINNY_CUH_
