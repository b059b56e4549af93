#include "prepared_rows.h"

#include <algorithm>
#include <cstring>

#include "float16.h"

namespace tfquant {
namespace {

constexpr int64_t kIntegerBlocks = 64;  // stretch of K of a tile: 2048 values, staged in 32 KB
constexpr int64_t kRealBlocks = 4;      // 128 values, staged in 16 KB of floats
constexpr int64_t kMatrixBlocks = 16;   // of integers, for a matrix unit
static_assert(kIntegerBlocks % 4 == 0 && kMatrixBlocks % 4 == 0 && kRealBlocks % 4 == 0,
              "whole groups of 128");
constexpr int64_t kMatrixRows = 9;  // a matrix unit pays from so many rows on

// The last one may reach beyond m.
std::vector<RowBlock> CutRows(int64_t m, int min_size, int max_size) {
  std::vector<RowBlock> blocks;
  for (int64_t row = 0; row < m;) {
    int size = max_size;
    while (size > min_size && (int64_t{1} << size) > m - row) --size;
    blocks.push_back({row, size});
    row += int64_t{1} << size;
  }
  return blocks;
}

// Group sums beside totals fill the registers, so such tiles of integers have fewer rows.
int MaxRowSize(const MatmulArgs& args, const Kernels& kernels) {
  const bool real = args.activations == Activations::kFloat;
  return kernels.max_row_size[args.layout.group_size != 0 && !real];
}

// Whether `m` rows go through the tiles of a matrix unit.
bool UsesMatrix(const MatmulArgs& args, const Kernels& kernels, int64_t m) {
  return kernels.matrix_begin != nullptr && !args.layout.binary() && m >= kMatrixRows;
}

// What one instruction of a matrix unit takes of K.
int64_t MatrixUnit(const MatmulArgs& args) {
  const int64_t depth = args.layout.group_depth();
  if (args.activations == Activations::kFloat) return kBlockDepth;
  return depth % (2 * kBlockDepth) == 0 ? 2 * kBlockDepth : kBlockDepth;
}

RowForm FormOf(const MatmulArgs& args, bool matrix) {
  if (args.layout.binary()) return RowForm::kSigns;
  if (args.activations != Activations::kFloat) return RowForm::kInteger;
  return matrix ? RowForm::kParts : RowForm::kReal;
}

int64_t ValueBytes(RowForm form, bool wide) {
  switch (form) {
    case RowForm::kInteger:
      return wide ? 2 : 1;
    case RowForm::kParts:
      return 2;
    default:
      return 4;
  }
}

// Values of k, or codes, that a tile covers; a single tile reads one piece.
int64_t StretchOf(const PreparedRows& p, const Kernels& kernels, int64_t padded_k) {
  if (p.blocks.size() == 1 && !p.matrix) return padded_k;
  switch (p.form) {
    case RowForm::kSigns:
      return kernels.binary_stretch;
    case RowForm::kInteger:
      return kBlockDepth * (p.matrix ? kMatrixBlocks : kIntegerBlocks);
    default:
      return kBlockDepth * kRealBlocks;
  }
}

// Which tiles, and in which order they read.
void Arrange(const MatmulArgs& args, const Kernels& kernels, PreparedRows* p) {
  const PackedLayout& layout = args.layout;
  p->matrix = UsesMatrix(args, kernels, p->rows);
  p->form = FormOf(args, p->matrix);
  p->blocks = p->matrix ? CutRows(p->rows, kMatrixSize, kMatrixSize + kMatrixSizes - 1)
                        : CutRows(p->rows, 0, MaxRowSize(args, kernels));
  p->m = p->blocks.back().row + p->blocks.back().rows();
  p->unit = p->matrix ? MatrixUnit(args) : (p->form == RowForm::kInteger ? 4 : 1);
  p->value_bytes = ValueBytes(p->form, kernels.wide && layout.num_bits == 8);
  p->stretch = StretchOf(*p, kernels, layout.padded_k());
  p->pair_offsets = kernels.pair_offsets && layout.num_bits < 8 && layout.group_size != 0;
}

void Allocate(const PackedLayout& layout, PreparedRows* p) {
  const int64_t padded = layout.padded_k();
  const int64_t values = p->form == RowForm::kSigns ? padded / 8 : padded;
  const bool integer = p->form == RowForm::kInteger;
  p->x = p->x_memory.Get<uint8_t>(p->m * values * p->value_bytes * p->parts());
  p->row_scale = p->row_scale_memory.Get<float>(p->m);
  p->offset_sum =
      integer ? p->offset_sum_memory.Get<int32_t>(p->m * padded / kBlockDepth) : nullptr;
  p->group_scale = integer ? p->group_scale_memory.Get<float>(p->m * layout.groups()) : nullptr;
}

// Row `m` of x as padded_k floats: in place where it can be, otherwise copied to `scratch`.
const float* FloatRow(const MatmulArgs& args, int64_t m, Scratch* scratch) {
  const int64_t k = args.layout.k, padded = args.layout.padded_k();
  if (args.type == DataType::kFloat32) {
    const float* const x = static_cast<const float*>(args.x) + m * k;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % alignof(float) == 0;
    if (k == padded && aligned) return x;
    float* const row = scratch->Get<float>(padded);
    std::memcpy(row, x, static_cast<size_t>(k) * sizeof(float));
    std::fill(row + k, row + padded, 0.0f);
    return row;
  }
  const uint8_t* const x = static_cast<const uint8_t*>(args.x) + m * k * 2;
  float* const row = scratch->Get<float>(padded);
  for (int64_t i = 0; i < k; ++i) {
    uint16_t brain;
    std::memcpy(&brain, x + 2 * i, sizeof(brain));
    row[i] = BrainToFloat(brain);
  }
  std::fill(row + k, row + padded, 0.0f);
  return row;
}

const float* ZeroRow(int64_t padded, Scratch* scratch) {
  float* const row = scratch->Get<float>(padded);
  std::fill(row, row + padded, 0.0f);
  return row;
}

// Row `row` of a block, `x`, to its place.
void PrepareRow(const MatmulArgs& args, const Kernels& kernels, const PreparedRows& p,
                const RowBlock& block, int64_t row, const float* x, Scratch* scratch) {
  const PackedLayout& layout = args.layout;
  const InterleavedRow to = p.Place(block, row);
  if (p.form == RowForm::kSigns) {
    return kernels.encode_signs(x, layout.padded_k(), to, reinterpret_cast<uint32_t*>(p.x));
  }
  PrepareArgs prepare = {};
  prepare.x = x;
  prepare.padded_k = layout.padded_k();
  prepare.group_depth = layout.group_depth();
  prepare.activations = args.activations;
  prepare.x_scale = args.x_scale;
  prepare.zero_point = args.zero_point;
  prepare.num_bits = layout.num_bits;
  prepare.pair_offsets = p.pair_offsets;
  prepare.to = to;
  prepare.out = p.x;
  prepare.row_scale = p.row_scale + block.row + row;
  if (p.form == RowForm::kInteger) {
    prepare.offset_sum = !p.matrix || MatrixReadsPacked(layout) ? p.offset_sum : nullptr;
    prepare.group_scale = p.group_scale;
    prepare.scratch = scratch->Get<int8_t>(layout.padded_k());
  }
  (p.form == RowForm::kParts ? kernels.prepare_parts : kernels.prepare)(prepare);
}

}  // namespace

bool MatrixReadsPacked(const PackedLayout& layout) {
  return layout.num_bits == 8 && layout.group_size == 0;
}

void PrepareRows(const MatmulArgs& args, const Kernels& kernels, int64_t first, int64_t rows,
                 const ParallelFor& parallel_for, PreparedRows* p) {
  const int64_t padded = args.layout.padded_k();
  p->rows = rows;
  Arrange(args, kernels, p);
  Allocate(args.layout, p);
  const int64_t cost = std::max<int64_t>(1, (padded << kernels.max_row_size[0]) / 2);
  parallel_for(static_cast<int64_t>(p->blocks.size()), cost, [&](int64_t begin, int64_t end) {
    static thread_local Scratch row_scratch, byte_scratch;
    for (int64_t b = begin; b < end; ++b) {
      const RowBlock& block = p->blocks[static_cast<size_t>(b)];
      for (int64_t r = 0; r < block.rows(); ++r) {
        const float* const x = block.row + r < rows
                                   ? FloatRow(args, first + block.row + r, &row_scratch)
                                   : ZeroRow(padded, &row_scratch);
        PrepareRow(args, kernels, *p, block, r, x, &byte_scratch);
      }
    }
  });
}

}  // namespace tfquant
