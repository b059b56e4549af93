// Weights of one bit.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_BINARY_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_BINARY_CUH_

namespace tfquant {

// Four rows of a panel, 8 values of k each, of four columns: 32 values of k for each column.
TFQUANT_DEVICE void TransposeBytes(const unsigned (&row)[4], unsigned (&column)[4]) {
  const unsigned low01 = ByteSelect(row[0], row[1], 0x5140u);
  const unsigned low23 = ByteSelect(row[2], row[3], 0x5140u);
  const unsigned high01 = ByteSelect(row[0], row[1], 0x7362u);
  const unsigned high23 = ByteSelect(row[2], row[3], 0x7362u);
  column[0] = ByteSelect(low01, low23, 0x5410u);
  column[1] = ByteSelect(low01, low23, 0x7632u);
  column[2] = ByteSelect(high01, high23, 0x5410u);
  column[3] = ByteSelect(high01, high23, 0x7632u);
}

// Of columns `column` .. `column + 3` of a panel, 32 values of k.
TFQUANT_DEVICE void BinaryColumns(const Byte* panel, Index word, int column, unsigned (&out)[4]) {
  unsigned rows[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    rows[i] = Load<unsigned>(panel + (4 * word + i) * kPanelRowBytes + column);
  }
  TransposeBytes(rows, out);
}

// Each differing sign takes two from the k that agreement would give.
TFQUANT_DEVICE float Agreement(const GpuArguments& a, int differ) {
  return static_cast<float>(a.k - 2 * static_cast<Index>(differ));
}

// A block owns a panel and kRows rows: 16 quads of columns, 16 slices of k.
template <int kRows>
struct BinaryGemv {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    constexpr int kQuads64 = kBinaryColumns / 4;
    TFQUANT_SHARED int shared[kWarps][kRows][kBinaryColumns];
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    const int quad = ThreadIndex() % kQuads64;
    const Byte* const panel = a.panels + BlockIndex() * a.panel_bytes;
    const unsigned* const signs = reinterpret_cast<const unsigned*>(a.rows);
    const Index words = a.padded_k / 32;
    int differ[kRows][4] = {};
#pragma unroll 4
    for (Index word = ThreadIndex() / kQuads64; word < words; word += kGpuThreads / kQuads64) {
      unsigned columns[4];
      BinaryColumns(panel, word, 4 * quad, columns);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (m >= a.m) break;
        const unsigned x = signs[m * a.sign_words + word];
#pragma unroll
        for (int c = 0; c < 4; ++c) differ[m][c] += CountBits(columns[c] ^ x);
      }
    }
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        differ[m][c] += ShuffleXor(differ[m][c], kQuads64);
        if (lane < kQuads64) shared[warp][m][4 * quad + c] = differ[m][c];
      }
    }
    Barrier();
    const bool fits = HeaderFits(a);
    for (int at = ThreadIndex(); at < kRows * kQuads64; at += kGpuThreads) {
      const int m = at / kQuads64, column = at % kQuads64 * 4;
      float y[4];
      for (int c = 0; c < 4; ++c) {
        int sum = 0;
        for (int w = 0; w < kWarps; ++w) sum += shared[w][m][column + c];
        y[c] = Agreement(a, sum);
      }
      StoreFour(a, fits, y, m, BlockIndex() * kBinaryColumns + column);
    }
  }
};

// A block owns a panel and kBinaryGemmRows rows. Its warps are 2 halves of the columns times 4
// slices of k; a tensor-core step is 256 values of k. Fragment i has columns i, 4 + i, 8 + i, ...
struct BinaryGemm {
  static constexpr int kTiles = kBinaryGemmRows / 16;

  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    TFQUANT_SHARED int shared[kWarps][kTiles * 16][kLanes];
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    const int g = lane / 4, t = lane % 4, half = warp % 2;
    const Index row_tiles = a.padded_m / kBinaryGemmRows;
    const Index first_row = BlockIndex() % row_tiles * kBinaryGemmRows;
    const Index panel_index = BlockIndex() / row_tiles;
    const Byte* const panel = a.panels + panel_index * a.panel_bytes;
    const Index words = a.padded_k / 32, row_bytes = a.sign_words * 4;
    int sum[kTiles][4][4] = {};
    for (Index step = warp / 2; step < a.sign_words / kSignStep; step += kWarps / 2) {
      unsigned columns[2][4] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Index word = kSignStep * step + 2 * t + i;
        if (word < words) BinaryColumns(panel, word, 32 * half + 4 * g, columns[i]);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Byte* const at =
            a.rows + (first_row + 16 * tile + g) * row_bytes + (kSignStep * step + 2 * t) * 4;
        const Words2 low = Load<Words2>(at), high = Load<Words2>(at + 8 * row_bytes);
        const unsigned rows[4] = {low.word[0], high.word[0], low.word[1], high.word[1]};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const unsigned pair[2] = {columns[0][i], columns[1][i]};
          CountDifferences(sum[tile][i], rows, pair);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 16; ++i) shared[warp][tile * 16 + i][lane] = sum[tile][i / 4][i % 4];
    }
    Barrier();
    const bool fits = HeaderFits(a);
    // Item `at` is four neighbours of y: lane, element e of its fragments, tile, half.
    for (int at = ThreadIndex(); at < 2 * kTiles * 4 * kLanes; at += kGpuThreads) {
      const int of = at % kLanes, e = at / kLanes % 4, tile = at / kLanes / 4 % kTiles;
      const int side = at / kLanes / 4 / kTiles;
      float y[4];
      for (int i = 0; i < 4; ++i) {
        int differ = 0;
        for (int w = side; w < kWarps; w += 2) differ += shared[w][tile * 16 + i * 4 + e][of];
        y[i] = Agreement(a, differ);
      }
      const Index column = panel_index * kBinaryColumns + 32 * side + 8 * (of % 4) + 4 * (e % 2);
      StoreFour(a, fits, y, first_row + 16 * tile + of / 4 + e / 2 * 8, column);
    }
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_BINARY_CUH_
