// Rows of x on their way to the tiles: cut into blocks of 1 to 32 rows, each of which a tile
// multiplies, quantized (or cut into bfloat16 parts, or into signs), and laid in the order in which
// the tiles read them. Called by matmul.cc, once for every pass over the weights.
#ifndef TFQUANT_CUSTOM_OPS_CORE_PREPARED_ROWS_H_
#define TFQUANT_CUSTOM_OPS_CORE_PREPARED_ROWS_H_

#include <cstdint>
#include <vector>

#include "args.h"
#include "kernels.h"
#include "parallel_for.h"
#include "scratch.h"

namespace tfquant {

// Rows row .. row + 2^size - 1 of a pass.
struct RowBlock {
  int64_t row;
  int size;
  int64_t rows() const { return int64_t{1} << size; }
};

// What the tiles of a call read.
enum class RowForm {
  kInteger,  // bytes, or int16 where Kernels::wide says so
  kReal,     // floats
  kParts,    // kFloatParts bfloat16 a float, for a matrix unit
  kSigns     // codes of eight signs
};

struct PreparedRows {
  int64_t rows = 0;  // of x
  int64_t m = 0;     // of all tiles, no fewer
  std::vector<RowBlock> blocks;
  RowForm form = RowForm::kInteger;
  bool matrix = false;        // the tiles are those of a matrix unit
  int64_t unit = 0;           // TileArgs::unit
  int64_t value_bytes = 0;    // of a value, or code, for the tiles; and of a weight that is staged
  int64_t stretch = 0;        // values of k, or codes, that a tile covers
  bool pair_offsets = false;  // see Kernels
  uint8_t* x = nullptr;
  int32_t* offset_sum = nullptr;  // integers only
  float* group_scale = nullptr;   // likewise
  float* row_scale = nullptr;     // not of signs

  int64_t parts() const { return form == RowForm::kParts ? kFloatParts : 1; }
  InterleavedRow Place(const RowBlock& block, int64_t row) const {
    return {m * parts(), block.row * parts(), block.rows() * parts(), row, stretch, unit};
  }

  Scratch x_memory, offset_sum_memory, group_scale_memory, row_scale_memory;
};

// Whether a matrix unit multiplies integers with weights as they are packed.
bool MatrixReadsPacked(const PackedLayout& layout);

// Rows first .. first + rows - 1 of x.
void PrepareRows(const MatmulArgs& args, const Kernels& kernels, int64_t first, int64_t rows,
                 const ParallelFor& parallel_for, PreparedRows* prepared);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_PREPARED_ROWS_H_
