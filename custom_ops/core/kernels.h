// What a path must provide: one table of functions. Each path fills it in its own folder, from the
// algorithms of generic/; matmul.cc and dequantize.cc call through it.
#ifndef TFQUANT_CUSTOM_OPS_CORE_KERNELS_H_
#define TFQUANT_CUSTOM_OPS_CORE_KERNELS_H_

#include <cstdint>

#include "blocks.h"
#include "settings.h"

namespace tfquant {

static constexpr int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int kMaxPanels = 4;                       // panels that one tile covers at most
constexpr int64_t kStreamBytes = int64_t{4} << 20;  // more output than caches hold

// A tile: some rows of x times a few panels, over a stretch of K.
struct TileArgs {
  const uint8_t* weights[kMaxPanels];  // first block of the stretch in each panel, or staged values
  const float* scale[kMaxPanels];      // staged weights only: 16 floats for each group
  int64_t blocks;                      // length of the stretch, in blocks
  int64_t blocks_per_group;
  const void* x;              // interleaved rows: [k / unit][rows][unit]
  int64_t unit;               // 4 integers or 1 float; of matrix tiles 32 or 64 integers, or 32
                              // floats as kFloatParts rows of bfloat16
  const int32_t* offset_sum;  // [group][rows]: minus the weights' offset times the sum of x; with
                              // Kernels::pair_offsets see there; not for weights staged signed
  const float* x_scale;       // [group][rows], kBothScales only
  void* sum;                  // [rows][panels * 16] float, or int32 with kNoScales
  bool first;                 // start from zero rather than from `sum`
  int64_t next;               // bytes to what the next tile of one row will read of a panel, or 0
};
using Tile = void (*)(const TileArgs&);

// Unpacks `count` blocks of a panel to `values`; with `scales`, those behind every group of blocks
// to `scale`, 16 floats each, unless the values have them in them.
using Stage = void (*)(const uint8_t* blocks, int64_t count, int64_t blocks_per_group, bool scales,
                       uint8_t* values, float* scale);

// Where a tile's weights come from: straight from the packed blocks, or unpacked before.
enum Source {
  kPacked8 = 0,
  kPacked4 = 1,
  kPacked2 = 2,
  kStaged8 = 3,
  kStaged4 = 4,
  kStaged2 = 5,
  kSources = 6
};
constexpr Source SourceOf(int num_bits, bool staged) {
  const int packed = num_bits == 8 ? kPacked8 : (num_bits == 4 ? kPacked4 : kPacked2);
  return static_cast<Source>(packed + (staged ? kStaged8 - kPacked8 : 0));
}
// What multiplies a group's sum: nothing, the weights' scale, or that and the activations' scale.
enum Scales { kNoScales = 0, kWeightScales = 1, kBothScales = 2, kScaleModes = 3 };
// A tile's number of rows as its log2, 0 to 3; kGemv is the tile of one row and more panels.
constexpr int kGemv = 4, kRowSizes = 5;
// Likewise of a matrix tile: 16 or 32 rows.
constexpr int kMatrixSize = 4, kMatrixSizes = 2;
// A float is three bfloat16 of 8 bits each, exactly, unless the row's largest is 2^100 times as
// large. They are the rows row, row + rows and row + 2 rows of a matrix tile.
constexpr int64_t kFloatParts = 3;

// Where a row of x goes: K is cut into stretches, and within a stretch all the rows of a tile lie
// together, interleaved by `unit` values; so a tile reads one short sequential piece, and the tiles
// of a stretch follow each other. (Rows a power of two apart would fall on the same cache sets.)
//
//     | stretch 0: tile 0 | tile 1 | ... | stretch 1: tile 0 | tile 1 | ...
//     tile = [k / unit][rows][unit]
struct InterleavedRow {
  int64_t m;          // rows of all tiles
  int64_t first_row;  // of this tile
  int64_t rows, row;  // of this tile, and this row in it
  int64_t stretch;    // values of k
  int64_t unit;       // values of a row that stay together

  // Start of the stretch at `k`, of `length`.
  int64_t At(int64_t k, int64_t length) const { return k * m + first_row * length; }
};

// One row of x on its way to the tiles.
struct PrepareArgs {
  const float* x;  // padded_k floats, zero beyond k
  int64_t padded_k, group_depth;
  Activations activations;
  float x_scale;
  int zero_point, num_bits;  // of x, and of the weights
  bool pair_offsets;         // see Kernels
  InterleavedRow to;
  void* out;            // integers or floats, at `to`
  int32_t* offset_sum;  // likewise, one for each group; null where no tile wants them
  float* group_scale;   // likewise, kPerGroup only
  float* row_scale;     // one value
  int8_t* scratch;      // padded_k bytes
};

// The end of a stripe of y.
struct FinishArgs {
  const void* sum;  // [rows][stride], int32 or float
  bool integer;
  int64_t rows, stride, columns;
  const float* row_scale;  // [rows] or null
  const float* column_scale;
  const float* column_sum;  // null unless zero_point != 0
  int zero_point;
  const float* bias;  // null, or [columns]
  Fused fused;
  DataType type;
  void* y;
  int64_t y_stride;
  bool stream;  // see DequantizeArgs
};

struct BinaryTileArgs {
  const uint8_t* weights;  // rows of 64 bytes
  int64_t depth;           // rows of the stretch
  const uint32_t* x;       // [depth][rows] codes, see EncodeSigns
  int32_t* sum;            // [rows][64]: number of differing signs, added to
};

// Dequantize one row of plain values: out[i] = table-or-affine of value i.
struct DequantizeArgs {
  const uint8_t* packed;
  int num_bits;
  int64_t columns;
  int64_t group_size;       // columns that share a scale; 1: every column its own
  const float* scale;       // one for each group of columns
  const float* zero_point;  // like scale; null: 2^(num_bits-1)
  const float* codebook;    // null, or 2^num_bits values that stand in for (v - zero_point)
  DataType type;
  void* out;
  bool stream;  // from kStreamBytes on: write past the caches where `out` is on a cache line
};

struct Kernels {
  int64_t panels, gemv_panels;  // panels of a tile, and of a kGemv tile
  int max_row_size[2];          // log2 of the most rows of a tile, without and with group scales
  // Weights of 4 and 2 bits with groups: offset_sum is [block][rows], each value two int16, the
  // lower one for the first two of every four values of k, the upper one for the last two.
  bool pair_offsets;
  // With weights of 8 bits x is int16, every four values in the order 0 2 1 3, and so are weights
  // when staged; otherwise both are bytes.
  bool wide;
  int64_t binary_stretch;  // rows of 1-bit weights that a tile covers
  Tile integer[kSources][kScaleModes][kRowSizes];
  Tile real[3][2][kRowSizes];   // float activations, packed weights
  Tile staged_real[kRowSizes];  // floats, scaled
  // By Source, packed. Null where integer tiles unpack as they go.
  Stage stage[3];
  Stage stage_real[3];  // to floats, scaled
  // Of a matrix unit, null without one. Before a thread's first tile and after its last come
  // matrix_begin and matrix_end. Integer activations: on weights staged as signed bytes, or, of 8
  // bits and without groups, on packed ones.
  void (*matrix_begin)(int64_t unit_bytes);
  void (*matrix_end)();
  Tile matrix[kScaleModes][kMatrixSizes];
  Tile matrix_packed8[kMatrixSizes];
  // Float activations: without and with group scales, on weights staged as bfloat16; `sum` is
  // float.
  Tile matrix_real[2][kMatrixSizes];
  // By Source, packed; signed bytes, and pairs of bfloat16: [k / 2][16][2].
  Stage stage_signed[3];
  Stage stage_brain[3];
  void (*prepare_parts)(const PrepareArgs&);
  void (*prepare)(const PrepareArgs&);
  void (*finish)(const FinishArgs&);
  // 8 values of k make one code, so `to.stretch` counts codes.
  void (*encode_signs)(const float* x, int64_t padded_k, const InterleavedRow& to, uint32_t* out);
  void (*binary[2][kGemv])(const BinaryTileArgs&);  // packed and staged
  // Rows of 64 bytes to 128: low nibbles, then high ones. Null where tiles want packed rows.
  void (*stage_binary)(const uint8_t* rows, int64_t depth, uint8_t* nibbles);
  void (*dequantize)(const DequantizeArgs&);
};

struct Path;

// A bit of what cpuid says; register 0 to 3 is eax, ebx, ecx, edx. Leaf 0 ends a list.
struct CpuidBit {
  unsigned leaf, subleaf;
  int register_index, bit;
};

// What a processor must have for a path, as data: nothing of a file that is compiled with a path's
// instructions may run before they are known to be there.
struct Needs {
  const Path* base = nullptr;   // whose needs are needed, too
  CpuidBit bits[9] = {};        // x86-64
  uint64_t registers = 0;       // x86-64: of XCR0, those that the operating system saves
  bool tiles = false;           // x86-64: registers that Linux hands out when it is asked
  unsigned long hwcap = 0;      // aarch64: bits of Linux's AT_HWCAP
};

// One for each line of PATHS in sources.bzl: <name>_path, in <name>/kernels.cc.
struct Path {
  const char* name;
  const Kernels& (*kernels)() = nullptr;  // null where the path is not compiled in
  Needs needs = {};

  // Whether this processor has what the path needs.
  bool Supported() const;
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_KERNELS_H_
