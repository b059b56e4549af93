// The table of a path, from its Isa.
#ifndef TFQUANT_CUSTOM_OPS_CORE_GENERIC_TABLE_H_
#define TFQUANT_CUSTOM_OPS_CORE_GENERIC_TABLE_H_

#include "../kernels.h"
#include "isa.h"

namespace tfquant {
namespace {

template <class Isa>
struct PanelKernels {
  template <int kBits, bool kPacked, int kRows, int kPanels>
  static constexpr void FillInteger(Kernels* t, int size) {
    constexpr int kAs = kPacked ? kBits : Isa::template kStagedAs<kBits>;
    auto& to = t->integer[SourceOf(kBits, !kPacked)];
    to[kNoScales][size] = Isa::template IntegerTile<kAs, kPacked, kNoScales, kRows, kPanels>;
    to[kWeightScales][size] =
        Isa::template IntegerTile<kAs, kPacked, kWeightScales, kRows, kPanels>;
    to[kBothScales][size] = Isa::template IntegerTile<kAs, kPacked, kBothScales, kRows, kPanels>;
  }

  template <int kBits, int kSize>
  static constexpr void FillTiles(Kernels* t) {
    constexpr int kRows = kSize == kGemv ? 1 : 1 << kSize;
    constexpr int kPanels = kSize == kGemv ? Isa::kGemvPanels : Isa::kPanels;
    FillInteger<kBits, true, kRows, kPanels>(t, kSize);
    if constexpr (kSize != kGemv && Isa::template kStages<kBits>) {
      FillInteger<kBits, false, kRows, kPanels>(t, kSize);
    }
    auto& real = t->real[SourceOf(kBits, false)];
    real[0][kSize] = Isa::template RealTile<kBits, false, kRows, kPanels>;
    real[1][kSize] = Isa::template RealTile<kBits, true, kRows, kPanels>;
  }

  template <int kSize>
  static constexpr void FillSize(Kernels* t) {
    if constexpr (kSize <= Isa::kMaxRowSize || kSize == kGemv) {
      FillTiles<8, kSize>(t);
      FillTiles<4, kSize>(t);
      FillTiles<2, kSize>(t);
    }
    if constexpr (kSize <= Isa::kMaxRowSize) {
      constexpr int kRows = 1 << kSize;
      t->staged_real[kSize] = Isa::template StagedRealTile<kRows, Isa::kPanels>;
      t->binary[0][kSize] = Binary<false, kRows>;
      if constexpr (Isa::kStagesBinary) t->binary[1][kSize] = Binary<true, kRows>;
    }
  }

  template <bool kStaged, int kRows>
  static void Binary(const BinaryTileArgs& args) {
    Isa::template BinaryTile<kStaged, kRows>(args.weights, args.depth, args.x, args.sum);
  }

  template <int kBits>
  static constexpr void FillStages(Kernels* t) {
    constexpr Source kSource = SourceOf(kBits, false);
    if constexpr (Isa::template kStages<kBits>) t->stage[kSource] = Isa::template Stage<kBits>;
    t->stage_real[kSource] = Isa::template StageReal<kBits>;
  }

  static constexpr Kernels Make() {
    Kernels t = {};
    t.panels = Isa::kPanels;
    t.gemv_panels = Isa::kGemvPanels;
    t.max_row_size[0] = Isa::kMaxRowSize;
    t.max_row_size[1] = Isa::kMaxGroupedRowSize;
    t.pair_offsets = Isa::kPairOffsets;
    t.wide = Isa::kWide;
    t.binary_stretch = Isa::kBinaryStretch;
    FillSize<0>(&t);
    FillSize<1>(&t);
    FillSize<2>(&t);
    FillSize<3>(&t);
    FillSize<kGemv>(&t);
    FillStages<8>(&t);
    FillStages<4>(&t);
    FillStages<2>(&t);
    t.prepare = Isa::Prepare;
    t.finish = Isa::Finish;
    t.encode_signs = Isa::EncodeSigns;
    if constexpr (Isa::kStagesBinary) t.stage_binary = Isa::StageBinary;
    t.dequantize = Isa::Dequantize;
    return t;
  }

  static constexpr Kernels kTable = Make();
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_GENERIC_TABLE_H_
