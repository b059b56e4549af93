// What a path fills in: everything that it may do in its own way, and how it is done otherwise.
// After google/highway's generic_ops: an `Isa` is a struct of vector operations that derives from
// GenericIsa<Isa> and hides what it does better, so a trick touches the file of the path that has
// it. table.h makes the path's table.
//
// `Isa` must have
//   Sum         16 x int32:  Splat LoadSum StoreSum ToReal
//   Real        16 x float:  SplatReal LoadReal StoreReal Fma Mul HalfScales
//   Row         64 bytes:    LoadRow
//   Value<kBits>(row, index)                             one k of a row, offset removed, as Real
//   BinaryTile<staged, rows>(weights, depth, x, sum)     1-bit weights, see BinaryTileArgs
//   Dot<kBits, kPacked, rows, panels>(weights, x, sum)   sum += one block of 32 values of k; not
//                                                        with an IntegerTile of its own
//   Unpack<kBits>(block, bytes)                          a block as 8 rows of bytes, where kStages
//
// Everything here is compiled once for each path with that path's instructions, so nothing may be
// shared between the paths: all of it lives in an anonymous namespace, and no standard template is
// instantiated.
#ifndef TFQUANT_CUSTOM_OPS_CORE_GENERIC_ISA_H_
#define TFQUANT_CUSTOM_OPS_CORE_GENERIC_ISA_H_

#include "finish.h"
#include "plain.h"
#include "rows.h"
#include "tiles.h"

namespace tfquant {
namespace {

template <class Isa>
struct GenericIsa : GenericTiles<Isa>, GenericRows<Isa>, GenericFinish<Isa>, GenericPlain<Isa> {
  // Panels of a tile, and of one of a single row; log2 of the most rows of a tile, without and with
  // group scales. Registers are what bounds them.
  static constexpr int kPanels = 1, kGemvPanels = 1;
  static constexpr int kMaxRowSize = 2, kMaxGroupedRowSize = 2;

  // Whether Dot multiplies the weights as they are stored; their offset is then undone by
  // TileArgs::offset_sum.
  static constexpr bool kUnsignedWeights = true;

  // Sums that a single row takes turns with; where there are more than one, Join<kBits>(sum) makes
  // them the first of them.
  template <int kBits, bool kPacked, int kRows, bool kGrouped>
  static constexpr int kChains = 1;

  // Of Kernels. With kPairOffsets, OffsetPairs(q, offset) makes one of 32 values.
  static constexpr bool kPairOffsets = false, kWide = false;

  // Whether weights are unpacked before many tiles; bytes are bytes already. And the width whose
  // tiles multiply them.
  template <int kBits>
  static constexpr bool kStages = kBits < 8;
  template <int kBits>
  static constexpr int kStagedAs = kBits == 2 ? 4 : kBits;

  // 1-bit weights: rows of a stretch, rows of x in a code, whether StageBinary(rows, depth,
  // nibbles) splits weights before many tiles.
  static constexpr int kBinaryStretch = 256, kSignRows = 1;
  static constexpr bool kStagesBinary = false;
};

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_GENERIC_ISA_H_
