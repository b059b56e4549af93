#include "matmul.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "prepared_rows.h"
#include "scratch.h"

namespace tfquant {
namespace {

constexpr int64_t kPassRows = 1024;   // rows of x that are quantized at a time
constexpr int64_t kStripeRows = 128;  // rows whose quantized x stays in the second-level cache
constexpr int64_t kMatrixStripeRows = 256, kMatrixRealStripeRows = 64;  // of a matrix unit
static_assert(kPassRows % kMatrixStripeRows == 0 && kPassRows % kStripeRows == 0, "");
constexpr int64_t kDirectRealRows = 16;  // up to these, float tiles read the packed weights
constexpr size_t kStagedTiles = 3;       // unpacking to the cache first pays from so many tiles on

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
  const PreparedRows& prepared;
  const Sizes sizes;
  int64_t unit_panels;  // that a tile covers
  int64_t stretch;      // likewise, of K, in blocks
  int64_t first_row;    // of this pass, in y
  const float* column_scale;
  const float* column_sum;  // null unless needed
};

// The row blocks of a stripe: rows begin .. end - 1 of the pass' tiles.
struct Stripe {
  int64_t begin, end;
  size_t first_block, last_block;
};

int64_t StripeRows(const PreparedRows& p) {
  if (!p.matrix) return kStripeRows;
  return p.form == RowForm::kParts ? kMatrixRealStripeRows : kMatrixStripeRows;
}

Stripe StripeOf(const PreparedRows& p, int64_t index) {
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
  const RowForm form = job.prepared.form;
  const bool scaled = form == RowForm::kInteger || form == RowForm::kParts;
  finish.row_scale = scaled ? job.prepared.row_scale + stripe.begin : nullptr;
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

// Which tiles multiply a unit's weights, and how these come to them.
struct UnitPlan {
  Stage stage;        // unpacks a stretch of a panel; null: the tiles read the packed blocks
  const Tile* tiles;  // by the log2 of their rows less `smallest`, or kGemv
  int smallest;
};

// The plan of a stripe of so many tiles.
UnitPlan PlanOf(const Job& job, size_t tiles) {
  const Kernels& kernels = job.kernels;
  const PackedLayout& layout = job.args.layout;
  const PreparedRows& p = job.prepared;
  const Source packed = SourceOf(layout.num_bits, false);
  const bool grouped = layout.group_size != 0;
  const Scales scales = !grouped                                         ? kNoScales
                        : job.args.activations == Activations::kPerGroup ? kBothScales
                                                                         : kWeightScales;
  if (p.form == RowForm::kParts) {
    return {kernels.stage_brain[packed], kernels.matrix_real[grouped], kMatrixSize};
  }
  if (p.form == RowForm::kReal) {
    if (p.m <= kDirectRealRows) return {nullptr, kernels.real[packed][grouped], 0};
    return {kernels.stage_real[packed], kernels.staged_real, 0};
  }
  if (p.matrix) {
    if (MatrixReadsPacked(layout)) return {nullptr, kernels.matrix_packed8, kMatrixSize};
    return {kernels.stage_signed[packed], kernels.matrix[scales], kMatrixSize};
  }
  const Stage stage = tiles >= kStagedTiles ? kernels.stage[packed] : nullptr;
  return {stage, kernels.integer[SourceOf(layout.num_bits, stage != nullptr)][scales], 0};
}

// Points a tile at a stretch of a unit's panels, unpacked to the scratch where the plan says so.
// Panels beyond the last repeat it; what they give is not stored.
void PointAtWeights(const Job& job, const UnitPlan& plan, int64_t first_panel, int64_t begin,
                    TileArgs* tile) {
  static thread_local Scratch stage_scratch, scale_scratch;
  const PackedLayout& layout = job.args.layout;
  const bool grouped = layout.group_size != 0;
  const int64_t panels = job.unit_panels;
  const int64_t bytes = job.stretch * kBlockDepth * kPanelColumns * job.prepared.value_bytes;
  uint8_t* const staged = plan.stage ? stage_scratch.Get<uint8_t>(panels * bytes) : nullptr;
  float* const scales =
      plan.stage ? scale_scratch.Get<float>(panels * job.stretch * kPanelColumns) : nullptr;
  const int64_t offset = grouped ? begin / job.sizes.group_blocks * job.sizes.group_bytes
                                 : begin * layout.block_bytes();
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t panel = std::min(first_panel + i, job.sizes.panels - 1);
    const uint8_t* const at =
        job.args.weights + layout.panels_offset() + panel * job.sizes.panel_bytes + offset;
    tile->weights[i] = at;
    if (plan.stage == nullptr) continue;
    uint8_t* const values = staged + i * bytes;
    float* const scale = scales + i * job.stretch * kPanelColumns;
    plan.stage(at, tile->blocks, tile->blocks_per_group, grouped, values, scale);
    tile->weights[i] = values;
    tile->scale[i] = scale;
  }
}

// Points a tile at its rows of x, at a stretch of K.
void PointAtRows(const Job& job, const RowBlock& block, int64_t begin, TileArgs* tile) {
  const PreparedRows& p = job.prepared;
  const InterleavedRow place = p.Place(block, 0);
  tile->x = p.x + place.At(begin * kBlockDepth, tile->blocks * kBlockDepth) * p.value_bytes;
  if (p.form != RowForm::kInteger) return;
  const int64_t in_group = job.sizes.group_blocks;
  const int64_t group = job.args.layout.group_size
                            ? place.At(begin / in_group, tile->blocks / in_group)
                            : place.At(0, 1);
  tile->offset_sum = p.offset_sum + (p.pair_offsets ? place.At(begin, tile->blocks) : group);
  tile->x_scale = p.group_scale + group;
}

void RunUnit(const Job& job, const Stripe& stripe, int64_t unit) {
  static thread_local Scratch sum_scratch;
  const PackedLayout& layout = job.args.layout;
  const PreparedRows& p = job.prepared;
  const UnitPlan plan = PlanOf(job, stripe.last_block - stripe.first_block);
  const int64_t first_panel = unit * job.unit_panels;
  const int64_t columns = job.unit_panels * kPanelColumns;
  const int64_t first_column = first_panel * kPanelColumns;
  const bool gemv = p.m == 1, last = first_panel + job.unit_panels >= job.sizes.panels;
  float* const sum = sum_scratch.Get<float>((stripe.end - stripe.begin) * columns);
  if (gemv) FetchEnds(job, first_column, std::min(columns, layout.n - first_column));
  if (p.matrix) job.kernels.matrix_begin(p.unit * p.value_bytes);
  for (int64_t begin = 0; begin < job.sizes.blocks; begin += job.stretch) {
    TileArgs tile = {};
    tile.blocks = std::min(job.stretch, job.sizes.blocks - begin);
    tile.blocks_per_group = layout.group_size ? job.sizes.group_blocks : tile.blocks;
    tile.unit = p.unit;
    tile.first = begin == 0;
    tile.next = gemv && !last ? job.unit_panels * job.sizes.panel_bytes : 0;
    PointAtWeights(job, plan, first_panel, begin, &tile);
    for (size_t b = stripe.first_block; b < stripe.last_block; ++b) {
      const RowBlock& block = p.blocks[b];
      PointAtRows(job, block, begin, &tile);
      tile.sum = sum + (block.row - stripe.begin) * columns;
      plan.tiles[gemv ? kGemv : block.size - plan.smallest](tile);
    }
  }
  if (p.matrix) job.kernels.matrix_end();
  const bool integer = p.form == RowForm::kInteger && layout.group_size == 0;
  FinishStripe(job, stripe, sum, integer, columns, first_column);
}

void RunBinaryPanel(const Job& job, const Stripe& stripe, int64_t panel) {
  static thread_local Scratch sum_scratch, stage_scratch;
  const PackedLayout& layout = job.args.layout;
  const PreparedRows& p = job.prepared;
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
      tile.x = reinterpret_cast<const uint32_t*>(p.x) + p.Place(block, 0).At(begin, tile.depth);
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
  static thread_local PreparedRows prepared;
  const bool needs_sum =
      !layout.binary() && args.activations == Activations::kStatic && args.zero_point != 0;
  for (int64_t first = 0; first < args.m; first += kPassRows) {
    const int64_t m = std::min(kPassRows, args.m - first);
    PrepareRows(args, kernels, first, m, parallel_for, &prepared);
    const int64_t unit_panels =
        layout.binary() ? 1 : (m == 1 ? kernels.gemv_panels : kernels.panels);
    const Sizes sizes(layout);
    const Job job = {
        args,
        kernels,
        prepared,
        sizes,
        unit_panels,
        std::min(sizes.blocks, prepared.stretch / kBlockDepth),
        first,
        FloatsAt(args.weights, layout.column_scale_offset(), layout.padded_n(), &column_scale),
        needs_sum
            ? FloatsAt(args.weights, layout.column_sum_offset(), layout.padded_n(), &column_sum)
            : nullptr};
    const int64_t units = CeilDivide(layout.panels(), unit_panels);
    const int64_t stripe_rows = StripeRows(prepared), stripes = CeilDivide(m, stripe_rows);
    const int64_t products =
        layout.padded_k() * unit_panels * layout.panel_columns() * std::min(m, stripe_rows);
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
