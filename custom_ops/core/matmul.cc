#include "matmul.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "float16.h"
#include "kernels.h"

namespace tfquant {
namespace {

constexpr int64_t kPassRows = 1024;      // rows of x that are quantized at a time
constexpr int64_t kStripeRows = 128;     // rows whose quantized x stays in the second-level cache
constexpr int64_t kIntegerBlocks = 64;   // stretch of K of a tile: 2048 values, staged in 32 KB
constexpr int64_t kRealBlocks = 4;       // 128 values, staged in 16 KB of floats
constexpr int64_t kDirectRealRows = 16;  // up to these, float tiles read the packed weights
constexpr size_t kStagedTiles = 3;       // unpacking to the cache first pays from so many tiles on
// The same of matrix tiles, which pay from kMatrixRows on.
constexpr int64_t kMatrixRows = 9;
constexpr int64_t kMatrixStripeRows = 256, kMatrixRealStripeRows = 64;
constexpr int64_t kMatrixBlocks = 16;
static_assert(kIntegerBlocks % 4 == 0 && kMatrixBlocks % 4 == 0 && kRealBlocks % 4 == 0,
              "whole groups of 128");
static_assert(kPassRows % kMatrixStripeRows == 0 && kPassRows % kStripeRows == 0, "");

// Uninitialized memory on a cache line, kept by its thread for the next call.
class Scratch {
 public:
  template <class T>
  T* Get(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
    if (bytes > size_) {
      memory_.reset(new uint8_t[bytes]);
      size_ = bytes;
    }
    const uintptr_t at = (reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  size_t size_ = 0;
};

// Rows row .. row + 2^size - 1 of a pass.
struct RowBlock {
  int64_t row;
  int size;
  int64_t rows() const { return int64_t{1} << size; }
};

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

bool MatrixReadsPacked(const PackedLayout& layout) {
  return layout.num_bits == 8 && layout.group_size == 0;
}

// What one instruction of a matrix unit takes of K.
int64_t MatrixUnit(const MatmulArgs& args) {
  const int64_t depth = args.layout.group_depth();
  if (args.activations == Activations::kFloat) return kBlockDepth;
  return depth % (2 * kBlockDepth) == 0 ? 2 * kBlockDepth : kBlockDepth;
}

// Of a value of x on its way to the tiles.
int64_t ValueBytes(const MatmulArgs& args, const Kernels& kernels, bool matrix) {
  if (args.activations == Activations::kFloat) return matrix ? 2 : 4;
  return kernels.wide && args.layout.num_bits == 8 ? 2 : 1;
}

bool PairOffsets(const PackedLayout& layout, const Kernels& kernels) {
  return kernels.pair_offsets && layout.num_bits < 8 && layout.group_size != 0;
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

// Some rows of x, in the order in which the tiles read them.
struct Prepared {
  int64_t rows = 0;     // of x
  int64_t m = 0;        // of all tiles, no fewer
  bool matrix = false;  // the tiles are those of a matrix unit
  int64_t unit = 0, parts = 1;
  std::vector<RowBlock> blocks;
  Scratch x, offset_sum, group_scale, row_scale;
  uint8_t* x_at = nullptr;
  int32_t* offset_sum_at = nullptr;
  float* group_scale_at = nullptr;
  float* row_scale_at = nullptr;
  int64_t stretch = 0;  // in int8 values, floats or codes of eight signs

  InterleavedRow Place(const RowBlock& block, int64_t row) const {
    return {m * parts, block.row * parts, block.rows() * parts, row, stretch, unit};
  }
};

void PrepareRows(const MatmulArgs& args, const Kernels& kernels, int64_t first, int64_t rows,
                 const ParallelFor& parallel_for, Prepared* p) {
  const PackedLayout& layout = args.layout;
  const int64_t padded = layout.padded_k(), groups = layout.groups();
  const bool binary = layout.binary();
  const bool real = args.activations == Activations::kFloat && !binary;
  p->rows = rows;
  p->matrix = UsesMatrix(args, kernels, rows);
  if (p->matrix) {
    p->blocks = CutRows(rows, kMatrixSize, kMatrixSize + kMatrixSizes - 1);
    p->unit = MatrixUnit(args);
    p->stretch = kBlockDepth * (real ? kRealBlocks : kMatrixBlocks);
  } else {
    p->blocks = CutRows(rows, 0, MaxRowSize(args, kernels));
    p->unit = real || binary ? 1 : 4;
    p->stretch =
        binary ? kernels.binary_stretch : kBlockDepth * (real ? kRealBlocks : kIntegerBlocks);
    // A single tile reads one piece.
    if (p->blocks.size() == 1) p->stretch = padded;
  }
  const int64_t m = p->blocks.back().row + p->blocks.back().rows();
  p->m = m;
  p->parts = p->matrix && real ? kFloatParts : 1;
  const int64_t row_bytes =
      binary ? padded / 8 * 4 : padded * ValueBytes(args, kernels, p->matrix) * p->parts;
  p->x_at = p->x.Get<uint8_t>(m * row_bytes);
  p->row_scale_at = p->row_scale.Get<float>(m);
  if (!binary && !real) {
    p->offset_sum_at = p->offset_sum.Get<int32_t>(m * padded / kBlockDepth);
    p->group_scale_at = p->group_scale.Get<float>(m * groups);
  }
  const bool wants_offsets = !p->matrix || MatrixReadsPacked(layout);
  const int64_t cost = std::max<int64_t>(1, (padded << kernels.max_row_size[0]) / 2);
  parallel_for(static_cast<int64_t>(p->blocks.size()), cost, [&](int64_t begin, int64_t end) {
    static thread_local Scratch row_scratch, byte_scratch;
    for (int64_t b = begin; b < end; ++b) {
      const RowBlock& block = p->blocks[static_cast<size_t>(b)];
      for (int64_t r = 0; r < block.rows(); ++r) {
        const float* const x = block.row + r < rows
                                   ? FloatRow(args, first + block.row + r, &row_scratch)
                                   : ZeroRow(padded, &row_scratch);
        if (binary) {
          kernels.encode_signs(x, padded, p->Place(block, r), reinterpret_cast<uint32_t*>(p->x_at));
          continue;
        }
        PrepareArgs prepare = {};
        prepare.x = x;
        prepare.padded_k = padded;
        prepare.group_depth = layout.group_depth();
        prepare.activations = args.activations;
        prepare.x_scale = args.x_scale;
        prepare.zero_point = args.zero_point;
        prepare.num_bits = layout.num_bits;
        prepare.pair_offsets = PairOffsets(layout, kernels);
        prepare.to = p->Place(block, r);
        prepare.out = p->x_at;
        prepare.row_scale = p->row_scale_at + block.row + r;
        if (!real) {
          prepare.offset_sum = wants_offsets ? p->offset_sum_at : nullptr;
          prepare.group_scale = p->group_scale_at;
          prepare.scratch = byte_scratch.Get<int8_t>(padded);
        }
        (p->parts > 1 ? kernels.prepare_parts : kernels.prepare)(prepare);
      }
    }
  });
}

const float* FloatsAt(const uint8_t* weights, int64_t offset, int64_t count, Scratch* scratch) {
  const uint8_t* const at = weights + offset;
  if (reinterpret_cast<uintptr_t>(at) % alignof(float) == 0) {
    return reinterpret_cast<const float*>(at);
  }
  float* const copy = scratch->Get<float>(count);
  std::memcpy(copy, at, static_cast<size_t>(count) * sizeof(float));
  return copy;
}

// What PackedLayout works out by divisions, once for all units.
struct Sizes {
  explicit Sizes(const PackedLayout& layout)
      : panels(layout.panels()),
        panel_bytes(layout.panel_bytes()),
        blocks(layout.padded_k() / kBlockDepth),
        group_blocks(layout.group_depth() / kBlockDepth),
        group_bytes(layout.group_bytes()) {}

  int64_t panels, panel_bytes, blocks, group_blocks, group_bytes;
};

// Everything that a stripe of rows times a unit of panels needs to know.
struct Job {
  const MatmulArgs& args;
  const Kernels& kernels;
  const Prepared& prepared;
  const Sizes sizes;
  int64_t first_row;  // of this pass, in y
  const float* column_scale;
  const float* column_sum;  // null unless needed
};

// The row blocks of a stripe: rows begin .. end - 1 of the pass' tiles.
struct Stripe {
  int64_t begin, end;
  size_t first_block, last_block;
};

int64_t StripeRows(const Prepared& p) {
  if (!p.matrix) return kStripeRows;
  return p.parts > 1 ? kMatrixRealStripeRows : kMatrixStripeRows;
}

Stripe StripeOf(const Prepared& p, int64_t index) {
  const int64_t most = StripeRows(p);
  Stripe stripe = {index * most, std::min((index + 1) * most, p.m), 0, 0};
  const int64_t rows = p.blocks[0].rows();
  // All blocks before the last stripe's tail have the same size, which divides a stripe's.
  stripe.first_block = static_cast<size_t>(stripe.begin / rows);
  stripe.last_block = stripe.first_block;
  while (stripe.last_block < p.blocks.size() && p.blocks[stripe.last_block].row < stripe.end) {
    ++stripe.last_block;
  }
  return stripe;
}

void FinishStripe(const Job& job, const Stripe& stripe, const void* sum, bool integer,
                  int64_t stride, int64_t first_column) {
  const MatmulArgs& args = job.args;
  const int64_t n = args.layout.n;
  FinishArgs finish = {};
  finish.sum = sum;
  finish.integer = integer;
  finish.rows = std::min(stripe.end, job.prepared.rows) - stripe.begin;
  finish.stride = stride;
  finish.columns = std::min(stride, n - first_column);
  const bool scaled =
      job.prepared.parts > 1 || (!args.layout.binary() && args.activations != Activations::kFloat);
  finish.row_scale = scaled ? job.prepared.row_scale_at + stripe.begin : nullptr;
  finish.column_scale = job.column_scale + first_column;
  finish.column_sum = job.column_sum ? job.column_sum + first_column : nullptr;
  finish.zero_point = args.zero_point;
  finish.bias = args.bias ? args.bias + first_column : nullptr;
  finish.fused = args.fused;
  finish.type = args.type;
  const int64_t at = (job.first_row + stripe.begin) * n + first_column;
  const int64_t size = BytesOf(args.type);
  finish.y = static_cast<uint8_t*>(args.y) + at * size;
  finish.y_stride = n;
  finish.stream = args.m * n * size >= kStreamBytes;
  job.kernels.finish(finish);
}

// What the end of a single row's unit reads and writes is on its way while the weights come.
void FetchEnds(const Job& job, int64_t column, int64_t count) {
  const int64_t size = BytesOf(job.args.type);
  const uint8_t* const y = static_cast<const uint8_t*>(job.args.y);
  for (int64_t c = column; c < column + count; c += kPanelColumns) {
    __builtin_prefetch(job.column_scale + c);
    __builtin_prefetch(y + (job.first_row * job.args.layout.n + c) * size, 1);
    if (job.args.bias) __builtin_prefetch(job.args.bias + c);
  }
}

void RunUnit(const Job& job, const Stripe& stripe, int64_t unit) {
  static thread_local Scratch sum_scratch, stage_scratch, scale_scratch;
  const MatmulArgs& args = job.args;
  const PackedLayout& layout = args.layout;
  const Prepared& p = job.prepared;
  const bool gemv = p.m == 1;
  const bool real = args.activations == Activations::kFloat;
  const int64_t panels = gemv ? job.kernels.gemv_panels : job.kernels.panels;
  const int64_t columns = panels * kPanelColumns, first_column = unit * columns;
  const int64_t blocks = job.sizes.blocks, group_blocks = job.sizes.group_blocks;
  const bool grouped = layout.group_size != 0;
  const bool wide = job.kernels.wide && layout.num_bits == 8;
  const size_t tiles = stripe.last_block - stripe.first_block;
  const Source packed = SourceOf(layout.num_bits, false);
  const bool staged = real       ? p.matrix || p.m > kDirectRealRows
                      : p.matrix ? !MatrixReadsPacked(layout)
                                 : (tiles >= kStagedTiles && job.kernels.stage[packed] != nullptr);
  const int64_t stretch = std::min(blocks, p.stretch / kBlockDepth);
  const int64_t x_bytes = ValueBytes(args, job.kernels, p.matrix);
  const bool pair_offsets = PairOffsets(layout, job.kernels);
  const Scales scales =
      !grouped ? kNoScales
               : (args.activations == Activations::kPerGroup ? kBothScales : kWeightScales);
  const bool integer = !real && !grouped;

  float* const sum = sum_scratch.Get<float>((stripe.end - stripe.begin) * columns);
  const int64_t value_bytes = real ? (p.matrix ? 2 : 4) : (wide ? 2 : 1);
  const int64_t staged_bytes = stretch * kBlockDepth * kPanelColumns * value_bytes;
  uint8_t* const stage = staged ? stage_scratch.Get<uint8_t>(panels * staged_bytes) : nullptr;
  float* const stage_scale = staged && (!real || p.matrix)
                                 ? scale_scratch.Get<float>(panels * stretch * kPanelColumns)
                                 : nullptr;

  const bool last = (unit + 1) * panels >= job.sizes.panels;
  if (gemv) FetchEnds(job, first_column, std::min(columns, layout.n - first_column));
  if (p.matrix) job.kernels.matrix_begin(p.unit * value_bytes);
  for (int64_t begin = 0; begin < blocks; begin += stretch) {
    TileArgs tile = {};
    tile.blocks = std::min(stretch, blocks - begin);
    tile.blocks_per_group = grouped ? group_blocks : tile.blocks;
    tile.unit = p.unit;
    tile.first = begin == 0;
    tile.next = gemv && !last ? panels * job.sizes.panel_bytes : 0;
    const int64_t offset =
        grouped ? begin / group_blocks * job.sizes.group_bytes : begin * layout.block_bytes();
    for (int64_t i = 0; i < panels; ++i) {
      // Panels beyond the last repeat it; what they give is not stored.
      const int64_t panel = std::min(unit * panels + i, job.sizes.panels - 1);
      const uint8_t* const at =
          args.weights + layout.panels_offset() + panel * job.sizes.panel_bytes + offset;
      tile.weights[i] = at;
      if (staged && real && !p.matrix) {
        uint8_t* const values = stage + i * staged_bytes;
        job.kernels.stage_real[packed](at, tile.blocks, tile.blocks_per_group, grouped,
                                       reinterpret_cast<float*>(values));
        tile.weights[i] = values;
      } else if (staged) {
        uint8_t* const bytes = stage + i * staged_bytes;
        float* const scale = stage_scale + i * stretch * kPanelColumns;
        const auto& stages = !p.matrix
                                 ? job.kernels.stage
                                 : (real ? job.kernels.stage_brain : job.kernels.stage_signed);
        stages[packed](at, tile.blocks, tile.blocks_per_group, grouped, bytes, scale);
        tile.weights[i] = bytes;
        tile.scale[i] = scale;
      }
    }
    const Source source = SourceOf(layout.num_bits, staged);
    for (size_t b = stripe.first_block; b < stripe.last_block; ++b) {
      const RowBlock& block = p.blocks[b];
      const InterleavedRow place = p.Place(block, 0);
      const int64_t k = begin * kBlockDepth, length = tile.blocks * kBlockDepth;
      tile.x = p.x_at + place.At(k, length) * x_bytes;
      if (!real) {
        const int64_t at =
            grouped ? place.At(begin / group_blocks, tile.blocks / group_blocks) : place.At(0, 1);
        tile.offset_sum = p.offset_sum_at + (pair_offsets ? place.At(begin, tile.blocks) : at);
        tile.x_scale = p.group_scale_at + at;
      }
      tile.sum = sum + (block.row - stripe.begin) * columns;
      const int size = gemv ? kGemv : block.size;
      if (real && p.matrix) {
        job.kernels.matrix_real[grouped][size - kMatrixSize](tile);
      } else if (real) {
        (staged ? job.kernels.staged_real : job.kernels.real[packed][grouped])[size](tile);
      } else if (p.matrix) {
        (staged ? job.kernels.matrix[scales]
                : job.kernels.matrix_packed8)[size - kMatrixSize](tile);
      } else {
        job.kernels.integer[source][scales][size](tile);
      }
    }
  }
  if (p.matrix) job.kernels.matrix_end();
  FinishStripe(job, stripe, sum, integer, columns, first_column);
}

void RunBinaryPanel(const Job& job, const Stripe& stripe, int64_t panel) {
  static thread_local Scratch sum_scratch, stage_scratch;
  const PackedLayout& layout = job.args.layout;
  const Prepared& p = job.prepared;
  const bool staged =
      job.kernels.stage_binary != nullptr && stripe.last_block - stripe.first_block >= kStagedTiles;
  const int64_t count = (stripe.end - stripe.begin) * kBinaryPanelColumns;
  int32_t* const sum = sum_scratch.Get<int32_t>(count);
  std::fill(sum, sum + count, 0);
  const uint8_t* const weights =
      job.args.weights + layout.panels_offset() + panel * job.sizes.panel_bytes;
  const int64_t depth = layout.padded_k() / 8;
  const int64_t stretch = std::min(depth, p.stretch);
  uint8_t* const nibbles = staged ? stage_scratch.Get<uint8_t>(stretch * 2 * kRowBytes) : nullptr;
  for (int64_t begin = 0; begin < depth; begin += stretch) {
    const int64_t length = std::min(stretch, depth - begin);
    if (staged) job.kernels.stage_binary(weights + begin * kRowBytes, length, nibbles);
    for (size_t b = stripe.first_block; b < stripe.last_block; ++b) {
      const RowBlock& block = p.blocks[b];
      BinaryTileArgs tile = {};
      tile.weights = staged ? nibbles : weights + begin * kRowBytes;
      tile.depth = length;
      tile.x = reinterpret_cast<const uint32_t*>(p.x_at) + p.Place(block, 0).At(begin, tile.depth);
      tile.sum = sum + (block.row - stripe.begin) * kBinaryPanelColumns;
      job.kernels.binary[staged][block.size](tile);
    }
  }
  // Each differing sign takes two from the K that agreement would give.
  const int32_t k = static_cast<int32_t>(layout.k);
  for (int64_t i = 0; i < count; ++i) sum[i] = k - 2 * sum[i];
  FinishStripe(job, stripe, sum, true, kBinaryPanelColumns, panel * kBinaryPanelColumns);
}

}  // namespace

void Matmul(const MatmulArgs& args, const Kernels& kernels, const ParallelFor& parallel_for) {
  const PackedLayout& layout = args.layout;
  Scratch column_scale, column_sum;
  static thread_local Prepared prepared;
  const bool needs_sum =
      !layout.binary() && args.activations == Activations::kStatic && args.zero_point != 0;
  for (int64_t first = 0; first < args.m; first += kPassRows) {
    const int64_t m = std::min(kPassRows, args.m - first);
    PrepareRows(args, kernels, first, m, parallel_for, &prepared);
    const Job job = {
        args,
        kernels,
        prepared,
        Sizes(layout),
        first,
        FloatsAt(args.weights, layout.column_scale_offset(), layout.padded_n(), &column_scale),
        needs_sum
            ? FloatsAt(args.weights, layout.column_sum_offset(), layout.padded_n(), &column_sum)
            : nullptr};
    const int64_t panels = m == 1 ? kernels.gemv_panels : kernels.panels;
    const int64_t per_unit = layout.binary() ? 1 : panels;
    const int64_t units = (layout.panels() + per_unit - 1) / per_unit;
    const int64_t stripe_rows = StripeRows(prepared), stripes = (m + stripe_rows - 1) / stripe_rows;
    const int64_t products =
        layout.padded_k() * per_unit * layout.panel_columns() * std::min(m, stripe_rows);
    const int64_t cost = std::max<int64_t>(1, products / (layout.binary() ? 400 : 50));
    parallel_for(stripes * units, cost, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Stripe stripe = StripeOf(job.prepared, i / units);
        if (layout.binary()) {
          RunBinaryPanel(job, stripe, i % units);
        } else {
          RunUnit(job, stripe, i % units);
        }
      }
    });
  }
}

}  // namespace tfquant
