// Device code of the GPU path. Reads arguments.h and intrinsics.cuh before it and includes nothing,
// so that NVRTC, nvcc and (for the emulator) g++ compile it as it is. Formats: ../blocks.h;
// meaning:
// ../reference_matmul.h, ../dequantize.h; which kernel runs when: launches.cc.
//
// A kernel is a struct whose Run() a block of kGpuThreads threads calls; kernel_list.h names them
// all. Sums are taken in an order that depends on the shape alone, so results repeat.
//
// How a tensor core reads packed weights. A lane (g = lane / 4, t = lane % 4) takes, of 32 values
// of k, steps 2t and 2t + 1 (k = 8t .. 8t+7) of x and of the weights alike: any order of k gives
// the same sum. Of a panel's 16 columns its two fragments are columns 2g and 2g + 1, which lie
// together in memory; so of the sums it holds columns 4t .. 4t+3, which lie together in y.
//
//     row of 64 bytes   | column 0 | 1 | 2 | 3 | ... | 15 |    lanes of g read 2g and 2g + 1
//     fragment j        columns j, 2 + j, 4 + j, ...            c[e] is column 4t + j + 2 (e % 2)
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_

namespace tfquant {

typedef unsigned char Byte;
typedef long long Index;

constexpr int kLanes = 32;
constexpr int kWarps = kGpuThreads / kLanes;
constexpr int kPanelWidth = 16;  // columns
constexpr int kPanelRowBytes = 64;
constexpr int kBlockK = 32;      // values of k in a block
constexpr int kScaleBytes = 32;  // a group's f16 scales

struct alignas(8) Words2 {
  unsigned word[2];
};
struct alignas(16) Words4 {
  unsigned word[4];
};
struct alignas(16) Floats4 {
  float value[4];
};

template <bool kFirst, class A, class B>
struct Choose {
  typedef A Type;
};
template <class A, class B>
struct Choose<false, A, B> {
  typedef B Type;
};

template <class T>
TFQUANT_DEVICE T Load(const void* at) {
  return *static_cast<const T*>(at);
}

// One value of x, float32 or bfloat16.
TFQUANT_DEVICE float LoadReal(const void* x, Index i, bool brain) {
  if (!brain) return static_cast<const float*>(x)[i];
  return BitsToFloat(static_cast<unsigned>(static_cast<const unsigned short*>(x)[i]) << 16);
}

TFQUANT_DEVICE void StoreReal(void* y, Index i, float value, bool brain) {
  if (!brain) {
    static_cast<float*>(y)[i] = value;
    return;
  }
  const unsigned bits = FloatBits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const unsigned rounded = nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u);
  static_cast<unsigned short*>(y)[i] = static_cast<unsigned short>(rounded >> 16);
}

TFQUANT_DEVICE float HalfOf(unsigned word, int i) {
  return HalfToFloat(static_cast<unsigned short>(word >> (16 * i)));
}

// Is this the buffer that the arguments describe? Where it is not, y becomes NaN: the host cannot
// look at the device's memory without waiting for it.
TFQUANT_DEVICE bool HeaderFits(const GpuArguments& a) {
  const Words4 first = Load<Words4>(a.weights), second = Load<Words4>(a.weights + 16);
  const Index group_size = static_cast<Index>(a.group_blocks) * kBlockK;
  return first.word[0] == 0x31514654u && first.word[1] == static_cast<unsigned>(a.num_bits) &&
         first.word[2] == static_cast<unsigned>(group_size) && first.word[3] == 0 &&
         second.word[0] == static_cast<unsigned>(a.k) &&
         second.word[1] == static_cast<unsigned>(a.k >> 32) &&
         second.word[2] == static_cast<unsigned>(a.n) &&
         second.word[3] == static_cast<unsigned>(a.n >> 32);
}

TFQUANT_DEVICE float Fuse(float v, int fused) {
  switch (fused) {
    case 1:  // relu; NaN stays
      return v < 0.0f ? 0.0f : v;
    case 2:  // relu6
      return v < 0.0f ? 0.0f : (v > 6.0f ? 6.0f : v);
    case 3:  // gelu
      return 0.5f * v * erfcf(v * -0.70710678118654752f);
    case 4: {  // gelu_tanh
      const float z = 0.79788456080286536f * (v + 0.044715f * v * v * v);
      return 0.5f * v * (1.0f + tanhf(z));
    }
    case 5:  // silu
      return v / (1.0f + expf(-v));
    case 6:  // sigmoid
      return 1.0f / (1.0f + expf(-v));
    case 7:
      return tanhf(v);
    default:
      return v;
  }
}

// From a sum over k, with group scales in it, to y.
TFQUANT_DEVICE float Finish(const GpuArguments& a, float sum, Index row, Index column) {
  if (a.zero_point != 0) sum -= static_cast<float>(a.zero_point) * a.column_sum[column];
  if (a.row_scale) sum *= a.row_scale[row];
  const float y = sum * a.column_scale[column] + (a.bias ? a.bias[column] : 0.0f);
  return Fuse(y, a.fused);
}

// Columns column .. column + 3 of a row of y, as many as there are.
TFQUANT_DEVICE void StoreFour(const GpuArguments& a, bool fits, const float (&sum)[4], Index row,
                              Index column) {
  if (row >= a.m || column >= a.n) return;
  float y[4];
  const Index columns = a.n - column < 4 ? a.n - column : 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < columns) y[i] = fits ? Finish(a, sum[i], row, column + i) : BitsToFloat(0x7fc00000u);
  }
  const Index at = row * a.n + column;
  if (a.y_vector) {
    *reinterpret_cast<Floats4*>(static_cast<float*>(a.y) + at) = {{y[0], y[1], y[2], y[3]}};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < columns) StoreReal(a.y, at + i, y[i], a.brain);
  }
}

// The largest value among the threads of a block, for all of them. `shared` has kWarps words.
TFQUANT_DEVICE unsigned LargestOfBlock(unsigned value, unsigned* shared) {
#pragma unroll
  for (int mask = kLanes / 2; mask > 0; mask /= 2) {
    const unsigned other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  Barrier();
  if (ThreadIndex() % kLanes == 0) shared[ThreadIndex() / kLanes] = value;
  Barrier();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) value = shared[i] > value ? shared[i] : value;
  return value;
}

// --- rows of x made ready ---------------------------------------------------------------------

// A scale below the smallest normal float counts as zero.
TFQUANT_DEVICE float ScaleOf(unsigned largest_bits) {
  const float scale = BitsToFloat(largest_bits) / 127.0f;
  return scale < 1.17549435e-38f ? 0.0f : scale;
}

// A block a row: integers and scales of one row of x, by a.activations (1 per row, 2 per group, 3
// static). Rows beyond m are zeros.
struct QuantizeRows {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    TFQUANT_SHARED unsigned shared[kWarps];
    const Index row = BlockIndex();
    signed char* const q = reinterpret_cast<signed char*>(a.rows) + row * a.padded_k;
    if (row >= a.m) {
      for (Index i = ThreadIndex(); i < a.padded_k; i += kGpuThreads) q[i] = 0;
      return;
    }
    unsigned largest = 0;
    for (Index i = ThreadIndex(); i < a.k; i += kGpuThreads) {
      const unsigned bits = FloatBits(LoadReal(a.x, row * a.k + i, a.brain)) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    largest = LargestOfBlock(largest, shared);
    const bool finite = largest < 0x7f800000u;
    if (a.activations == 2) {
      Groups(a, row, q);
    } else {
      const float scale = a.activations == 3 ? a.x_scale : ScaleOf(finite ? largest : 0);
      const float inverse = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
      for (Index i = ThreadIndex(); i < a.padded_k; i += kGpuThreads) {
        q[i] = i < a.k && finite ? Quantize(a, row, i, inverse) : 0;
      }
      if (ThreadIndex() == 0) a.row_scale[row] = finite ? scale : BitsToFloat(0x7fc00000u);
      return;
    }
    if (ThreadIndex() == 0) a.row_scale[row] = finite ? 1.0f : BitsToFloat(0x7fc00000u);
  }

 private:
  static TFQUANT_DEVICE signed char Quantize(const GpuArguments& a, Index row, Index i,
                                             float inverse) {
    float steps = Multiply(LoadReal(a.x, row * a.k + i, a.brain), inverse);
    if (a.activations != 3) return static_cast<signed char>(RoundToInt(steps));
    steps = steps < -512.0f ? -512.0f : (steps > 512.0f ? 512.0f : steps);
    const int value = RoundToInt(steps) + a.zero_point;
    return static_cast<signed char>(value < -128 ? -128 : (value > 127 ? 127 : value));
  }

  // A warp a group.
  static TFQUANT_DEVICE void Groups(const GpuArguments& a, Index row, signed char* q) {
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    const int depth = a.group_blocks * kBlockK;
    for (Index group = warp; group < a.groups; group += kWarps) {
      const Index begin = group * depth;
      unsigned largest = 0;
      for (Index i = begin + lane; i < begin + depth && i < a.k; i += kLanes) {
        const unsigned bits = FloatBits(LoadReal(a.x, row * a.k + i, a.brain)) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
      for (int mask = kLanes / 2; mask > 0; mask /= 2) {
        const unsigned other = ShuffleXor(largest, mask);
        largest = other > largest ? other : largest;
      }
      const bool finite = largest < 0x7f800000u;
      const float scale = ScaleOf(finite ? largest : 0);
      const float inverse = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
      for (Index i = begin + lane; i < begin + depth; i += kLanes) {
        q[i] = i < a.k && finite ? Quantize(a, row, i, inverse) : 0;
      }
      if (lane == 0) a.group_scale[row * a.groups + group] = scale;
    }
  }
};

// A block a row: x as the sum of `kParts` brain floats. Three hold the 24 bits of a float32: each
// part is what is left, cut off after 8 bits, so the differences are exact and nothing overflows.
template <int kParts>
struct SplitRows {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index row = BlockIndex();
    unsigned short* const out = reinterpret_cast<unsigned short*>(a.rows) + row * a.padded_k;
    for (Index i = ThreadIndex(); i < a.padded_k; i += kGpuThreads) {
      float left = row < a.m && i < a.k ? LoadReal(a.x, row * a.k + i, a.brain) : 0.0f;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        unsigned bits = FloatBits(left);
        // The cut must not make an infinity of a NaN whose high bits are clear.
        if ((bits & 0x7fffffffu) > 0x7f800000u) bits |= 0x400000u;
        const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
        const unsigned cut = bits & 0xffff0000u;
        out[part * a.padded_m * a.padded_k + i] = static_cast<unsigned short>(cut >> 16);
        left = finite ? left - BitsToFloat(cut) : 0.0f;
      }
    }
  }
};

// A block a row: one bit a value, set where x < 0.
struct EncodeSigns {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index row = BlockIndex();
    unsigned* const out = reinterpret_cast<unsigned*>(a.rows) + row * a.sign_words;
    const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
    for (Index word = warp; word < a.sign_words; word += kWarps) {
      const Index i = word * 32 + lane;
      const bool negative = row < a.m && i < a.k && LoadReal(a.x, row * a.k + i, a.brain) < 0.0f;
      const unsigned bits = Ballot(negative);
      if (lane == 0) out[word] = bits;
    }
  }
};

// --- weights ----------------------------------------------------------------------------------

// The group that a block lies in. Groups have 1, 2 or 4 blocks, so half of that is the logarithm.
TFQUANT_DEVICE Index GroupOf(const GpuArguments& a, Index block) {
  return block >> (a.group_blocks >> 1);
}
TFQUANT_DEVICE bool EndsGroup(const GpuArguments& a, Index block) {
  return ((block + 1) & (a.group_blocks - 1)) == 0;
}

// Start of 32 values of k of a panel.
template <int kBits>
TFQUANT_DEVICE const Byte* BlockAt(const GpuArguments& a, Index panel, Index block) {
  const Byte* const at = a.panels + panel * a.panel_bytes + block * (kBits * kPanelRowBytes);
  return a.group_blocks == 0 ? at : at + GroupOf(a, block) * kScaleBytes;
}

TFQUANT_DEVICE const Byte* ScalesAt(const GpuArguments& a, Index panel, Index group) {
  return a.panels + panel * a.panel_bytes + (group + 1) * a.group_bytes - kScaleBytes;
}

// The stored value has q + 2^(bits-1); flipping its highest bit makes it q in two's complement, and
// in the highest bits of a byte that is q * 2^(8 - bits). Sums are too large by that power of two,
// and fit an int32 all the same: such a byte is one of -128 .. 127.
template <int kBits>
TFQUANT_DEVICE unsigned SignedBytes(unsigned word, int shift) {
  constexpr unsigned kHighest = 0x80808080u;
  constexpr unsigned kMask = kBits == 8 ? 0xffffffffu : (kBits == 4 ? 0xf0f0f0f0u : 0xc0c0c0c0u);
  return ((word << (8 - kBits - shift)) ^ kHighest) & kMask;
}

template <int kBits>
TFQUANT_DEVICE unsigned UnsignedBytes(unsigned word, int shift) {
  constexpr unsigned kMask = kBits == 8 ? 0xffffffffu : (kBits == 4 ? 0x0f0f0f0fu : 0x03030303u);
  return (word >> shift) & kMask;
}

// Bytes 2 * half and 2 * half + 1, stored values, as two brain floats q. 0x4300 is 128, and its low
// seven bits count ones: 128 + v, minus 128 and the offset. With 8 bits 128 + v % 128, minus 128
// or, for the lower half of the values, 256.
template <int kBits>
TFQUANT_DEVICE unsigned BrainPair(unsigned bytes, int half) {
  const unsigned pair = ByteSelect(bytes, 0, half ? 0x4342u : 0x4140u);
  if (kBits == 8) {
    return AddBrainPairs((pair & 0x007f007fu) | 0x43004300u, (~pair & 0x00800080u) | 0xc300c300u);
  }
  constexpr unsigned kOffset = kBits == 4 ? 8u : 2u;
  return AddBrainPairs(pair | 0x43004300u, 0xc300c300u | kOffset << 16 | kOffset);
}

// What a lane reads of a block: the words of columns 2g and 2g + 1 with steps 2t and 2t + 1.
template <int kBits>
struct RawWeights {
  Words2 rows[kBits == 8 ? 2 : 1];

  // Byte within the block of the i-th row that the lane reads.
  static TFQUANT_DEVICE int At(int lane, int i) {
    const int g = lane / 4, t = lane % 4;
    const int row = kBits == 8 ? 2 * t + i : (kBits == 4 ? t : t / 2);
    return row * kPanelRowBytes + 8 * g;
  }
  // Step 2t + i of column 2g + j.
  TFQUANT_DEVICE unsigned Word(int j, int i) const { return rows[kBits == 8 ? i : 0].word[j]; }
  static TFQUANT_DEVICE int Shift(int lane, int i) {
    return kBits == 8 ? 0 : (kBits == 4 ? 4 * i : 4 * (lane % 2) + 2 * i);
  }
};

// Integer activations: 32 values of k are one tensor-core step.
template <int kBits>
struct Integer {
  typedef int Sum;
  static constexpr int kWeightBits = kBits;
  static constexpr int kParts = 1;
  static constexpr int kValueBytes = 1;
  static constexpr int kLaneBytes = 8;  // of a row of 32 values of k

  struct Rows {
    unsigned a[4];
  };
  struct Columns {
    unsigned b[2];
  };

  // `low` and `high` are this lane's bytes of rows g and g + 8.
  static TFQUANT_DEVICE Rows LoadRows(const Byte* low, const Byte* high) {
    const Words2 l = Load<Words2>(low), h = Load<Words2>(high);
    return {{l.word[0], h.word[0], l.word[1], h.word[1]}};
  }
  static TFQUANT_DEVICE Columns Unpack(const RawWeights<kBits>& raw, int j, int lane) {
    return {{SignedBytes<kBits>(raw.Word(j, 0), raw.Shift(lane, 0)),
             SignedBytes<kBits>(raw.Word(j, 1), raw.Shift(lane, 1))}};
  }
  static TFQUANT_DEVICE void MultiplyAdd(Sum (&c)[4], const Rows& rows, const Columns& columns) {
    MultiplyBytes(c, rows.a, columns.b);
  }
  static TFQUANT_DEVICE float ToFloat(Sum sum) { return static_cast<float>(sum >> (8 - kBits)); }
};

// Float activations as kPartsOfX brain parts: 32 values of k are two tensor-core steps a part.
template <int kBits, int kPartsOfX>
struct Real {
  typedef float Sum;
  static constexpr int kWeightBits = kBits;
  static constexpr int kParts = kPartsOfX;
  static constexpr int kValueBytes = 2;
  static constexpr int kLaneBytes = 16;

  struct Rows {
    unsigned a[2][4];
  };
  struct Columns {
    unsigned b[2][2];
  };

  static TFQUANT_DEVICE Rows LoadRows(const Byte* low, const Byte* high) {
    const Words4 l = Load<Words4>(low), h = Load<Words4>(high);
    return {{{l.word[0], h.word[0], l.word[1], h.word[1]},
             {l.word[2], h.word[2], l.word[3], h.word[3]}}};
  }
  static TFQUANT_DEVICE Columns Unpack(const RawWeights<kBits>& raw, int j, int lane) {
    Columns columns;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned bytes = UnsignedBytes<kBits>(raw.Word(j, i), raw.Shift(lane, i));
      columns.b[i][0] = BrainPair<kBits>(bytes, 0);
      columns.b[i][1] = BrainPair<kBits>(bytes, 1);
    }
    return columns;
  }
  static TFQUANT_DEVICE void MultiplyAdd(Sum (&c)[4], const Rows& rows, const Columns& columns) {
    MultiplyBrains(c, rows.a[0], columns.b[0]);
    MultiplyBrains(c, rows.a[1], columns.b[1]);
  }
  static TFQUANT_DEVICE float ToFloat(Sum sum) { return sum; }
};

// The sums of a warp: 16 * kTiles rows times kPanels panels.
template <class Form, bool kGrouped, int kTiles, int kPanels>
struct WarpSums {
  typename Form::Sum sum[kTiles][kPanels][2][4];
  float total[kGrouped ? kTiles : 1][kPanels][2][4];

  TFQUANT_DEVICE void Clear() {
#pragma unroll
    for (int i = 0; i < kTiles * kPanels * 8; ++i) {
      const int tile = i / 8 / kPanels, p = i / 8 % kPanels, j = i / 4 % 2, e = i % 4;
      sum[tile][p][j][e] = 0;
      if (kGrouped) total[kGrouped ? tile : 0][p][j][e] = 0.0f;
    }
  }

  // After a group: `scales` has the f16 scales of its 16 columns for each panel; `first_row` is
  // the row of x of the lane's c[0] in tile 0.
  TFQUANT_DEVICE void EndGroup(const GpuArguments& a, Index group, Index first_row,
                               const Byte* const (&scales)[kPanels], int lane) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      const Words2 four = Load<Words2>(scales[p] + lane % 4 * 8);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float of_row = 1.0f;
          if (a.group_scale) {
            of_row = a.group_scale[(first_row + 16 * tile + e / 2 * 8) * a.groups + group];
          }
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            // Column 4t + j + 2 (e % 2): half j of word e % 2.
            const float scale = HalfOf(four.word[e % 2], j) * of_row;
            total[kGrouped ? tile : 0][p][j][e] += Form::ToFloat(sum[tile][p][j][e]) * scale;
            sum[tile][p][j][e] = 0;
          }
        }
      }
    }
  }
};

// --- tensor-core matmul, many rows --------------------------------------------------------------

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

// --- tensor-core matmul, some rows --------------------------------------------------------------

// A block owns 16 * kTiles rows and a few panels; its warps share k, four blocks at a time, and
// meet in shared memory.
template <class Form, bool kGrouped, int kTiles>
struct Skinny {
  static constexpr int kBits = Form::kWeightBits;
  static constexpr int kPanels = kTiles == 1 ? 1 : 2;
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

// --- matrix-vector product, a few rows ----------------------------------------------------------

// A block owns a panel and kRows rows of x. A thread reads 16 bytes, four columns, of a row of the
// panel; 64 rows are read at a time, and kAhead of those reads are under way together.
constexpr int kQuads = kPanelRowBytes / 16;
constexpr int kSlices = kGpuThreads / kQuads;
constexpr int kAhead = 4;

// Adds `value` over the threads that share four columns; complete where ThreadIndex() < kQuads.
template <class T>
TFQUANT_DEVICE T AddSlices(T value, T* shared) {
#pragma unroll
  for (int mask = kQuads; mask < kLanes; mask *= 2) value += ShuffleXor(value, mask);
  const int warp = ThreadIndex() / kLanes, lane = ThreadIndex() % kLanes;
  Barrier();
  if (lane < kQuads) shared[warp * kQuads + lane] = value;
  Barrier();
  T sum = 0;
  if (ThreadIndex() < kQuads) {
    for (int w = 0; w < kWarps; ++w) sum += shared[w * kQuads + ThreadIndex()];
  }
  return sum;
}

template <int kBits>
struct GemvPanel {
  const Byte* at;
  Index rows, group_bytes;
  bool grouped;
  int shift;  // logarithm of the rows of a group

  TFQUANT_DEVICE explicit GemvPanel(const GpuArguments& a)
      : at(a.panels + BlockIndex() * a.panel_bytes),
        rows(a.padded_k / kBlockK * kBits),
        group_bytes(a.group_bytes),
        grouped(a.group_blocks != 0),
        shift(grouped ? (a.group_blocks >> 1) + (kBits == 8 ? 3 : kBits / 2) : 62) {}

  TFQUANT_DEVICE Index GroupOfRow(Index r) const { return r >> shift; }
  TFQUANT_DEVICE Words4 Row(Index r, int quad) const {
    return Load<Words4>(at + r * kPanelRowBytes + GroupOfRow(r) * kScaleBytes + 16 * quad);
  }
  // The scales of the quad's columns.
  TFQUANT_DEVICE void Scales(Index r, int quad, float (&scale)[4]) const {
    const Words2 four =
        Load<Words2>(at + (GroupOfRow(r) + 1) * group_bytes - kScaleBytes + 8 * quad);
    for (int i = 0; i < 4; ++i) scale[i] = HalfOf(four.word[i / 2], i % 2);
  }
};

template <int kBits, int kRows>
struct IntegerGemv {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    TFQUANT_SHARED float shared[kWarps * kQuads];
    TFQUANT_SHARED int shared_integers[kWarps * kQuads];
    constexpr int kSteps = 8 / kBits;  // of four values of k, in a row of the panel
    const int quad = ThreadIndex() % kQuads, slice = ThreadIndex() / kQuads;
    const GemvPanel<kBits> panel(a);
    int integer[kRows][4] = {};
    float total[kRows][4] = {};
    for (Index first = slice; first < panel.rows; first += kSlices * kAhead) {
      Words4 words[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i * kSlices < panel.rows) words[i] = panel.Row(first + i * kSlices, quad);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const Index r = first + i * kSlices;
        if (r >= panel.rows) break;
        int part[kRows][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
          for (int m = 0; m < kRows; ++m) {
            if (m >= a.m) break;
            const unsigned x = Load<unsigned>(a.rows + m * a.padded_k + (r * kSteps + step) * 4);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              part[m][c] =
                  DotBytes(SignedBytes<kBits>(words[i].word[c], kBits * step), x, part[m][c]);
            }
          }
        }
        float scale[4];
        if (panel.grouped) panel.Scales(r, quad, scale);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          if (m >= a.m) break;
          const float of_row =
              a.group_scale ? a.group_scale[m * a.groups + panel.GroupOfRow(r)] : 1.0f;
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            if (panel.grouped) {
              total[m][c] += Integer<kBits>::ToFloat(part[m][c]) * (scale[c] * of_row);
            } else {
              integer[m][c] += part[m][c];
            }
          }
        }
      }
    }
    const bool fits = HeaderFits(a);
    for (int m = 0; m < kRows; ++m) {
      float y[4];
      for (int c = 0; c < 4; ++c) {
        y[c] = panel.grouped ? AddSlices(total[m][c], shared)
                             : Integer<kBits>::ToFloat(AddSlices(integer[m][c], shared_integers));
      }
      if (ThreadIndex() < kQuads) StoreFour(a, fits, y, m, BlockIndex() * kPanelWidth + 4 * quad);
    }
  }
};

template <int kBits, int kRows, bool kBrain>
struct RealGemv {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    TFQUANT_SHARED float shared[kWarps * kQuads];
    constexpr int kSteps = 8 / kBits;
    constexpr float kOffset = kBits == 8 ? 128.0f : (kBits == 4 ? 8.0f : 2.0f);
    const int quad = ThreadIndex() % kQuads, slice = ThreadIndex() / kQuads;
    const GemvPanel<kBits> panel(a);
    float total[kRows][4] = {};
    for (Index first = slice; first < panel.rows; first += kSlices * kAhead) {
      Words4 words[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i * kSlices < panel.rows) words[i] = panel.Row(first + i * kSlices, quad);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const Index r = first + i * kSlices;
        if (r >= panel.rows) break;
        float part[kRows][4] = {};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          float x[kRows][4];
#pragma unroll
          for (int m = 0; m < kRows; ++m) LoadFour(a, m, (r * kSteps + step) * 4, x[m]);
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const unsigned bytes = UnsignedBytes<kBits>(words[i].word[c], kBits * step);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              // 0x4b000000 is 2^23, whose lowest bit counts ones.
              const float q =
                  BitsToFloat(ByteSelect(bytes, 0x4b000000u, 0x7440u | k)) - (8388608.0f + kOffset);
#pragma unroll
              for (int m = 0; m < kRows; ++m) part[m][c] += q * x[m][k];
            }
          }
        }
        float scale[4] = {1.0f, 1.0f, 1.0f, 1.0f};
        if (panel.grouped) panel.Scales(r, quad, scale);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
#pragma unroll
          for (int c = 0; c < 4; ++c) total[m][c] += part[m][c] * scale[c];
        }
      }
    }
    const bool fits = HeaderFits(a);
    for (int m = 0; m < kRows; ++m) {
      float y[4];
      for (int c = 0; c < 4; ++c) y[c] = AddSlices(total[m][c], shared);
      if (ThreadIndex() < kQuads) StoreFour(a, fits, y, m, BlockIndex() * kPanelWidth + 4 * quad);
    }
  }

 private:
  // x[m, k .. k+3], zero where there is nothing.
  static TFQUANT_DEVICE void LoadFour(const GpuArguments& a, int m, Index k, float (&x)[4]) {
    if (m < a.m && a.x_vector && k < a.k) {
      const Index at = m * a.k + k;
      if (kBrain) {
        const Words2 two = Load<Words2>(static_cast<const unsigned short*>(a.x) + at);
        for (int i = 0; i < 4; ++i) {
          x[i] = BitsToFloat(i % 2 ? two.word[i / 2] & 0xffff0000u : two.word[i / 2] << 16);
        }
      } else {
        const Floats4 four = Load<Floats4>(static_cast<const float*>(a.x) + at);
        for (int i = 0; i < 4; ++i) x[i] = four.value[i];
      }
      return;
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = m < a.m && k + i < a.k ? LoadReal(a.x, m * a.k + k + i, kBrain) : 0.0f;
    }
  }
};

// --- one bit ------------------------------------------------------------------------------------

constexpr int kBinaryColumns = 64;  // of a panel

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
    for (Index step = warp / 2; step < a.sign_words / 8; step += kWarps / 2) {
      unsigned columns[2][4] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Index word = 8 * step + 2 * t + i;
        if (word < words) BinaryColumns(panel, word, 32 * half + 4 * g, columns[i]);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Byte* const at =
            a.rows + (first_row + 16 * tile + g) * row_bytes + (8 * step + 2 * t) * 4;
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

// --- without a product --------------------------------------------------------------------------

// The real weights [k, n]: a thread a column and 32 values of k.
template <int kBits>
struct UnpackWeights {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    constexpr int kWidth = kBits == 1 ? kBinaryColumns : kPanelWidth;
    const Index chunks = (a.n + kGpuThreads - 1) / kGpuThreads;
    const Index column = BlockIndex() % chunks * kGpuThreads + ThreadIndex();
    const Index block = BlockIndex() / chunks;
    if (column >= a.n) return;
    const bool fits = HeaderFits(a);
    const Index panel = column / kWidth;
    const int in_panel = static_cast<int>(column % kWidth);
    float scale = fits ? a.column_scale[column] : BitsToFloat(0x7fc00000u);
    if (a.group_blocks) {
      const Byte* const at = ScalesAt(a, panel, GroupOf(a, block)) + 2 * in_panel;
      scale *= HalfToFloat(Load<unsigned short>(at));
    }
    const Byte* const at =
        kBits == 1 ? a.panels + panel * a.panel_bytes + block * 4 * kPanelRowBytes + in_panel
                   : BlockAt<kBits>(a, panel, block) + 4 * in_panel;
    for (int i = 0; i < kBlockK; ++i) {
      const Index k = block * kBlockK + i;
      if (k >= a.k) break;
      float q;
      if (kBits == 1) {
        q = at[i / 8 * kPanelRowBytes] >> (i % 8) & 1 ? -1.0f : 1.0f;
      } else {
        constexpr int kSteps = 8 / kBits;
        const int step = i / 4;
        const int byte = at[step / kSteps * kPanelRowBytes + i % 4];
        const int v = byte >> (step % kSteps * kBits) & ((1 << kBits) - 1);
        q = static_cast<float>(v - (1 << (kBits - 1)));
      }
      static_cast<float*>(a.y)[k * a.n + column] = q * scale;
    }
  }
};

// A thread four values of a plain row.
template <int kBits>
struct Dequantize {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index chunks = (a.columns + 4 * kGpuThreads - 1) / (4 * kGpuThreads);
    const Index column = (BlockIndex() % chunks * kGpuThreads + ThreadIndex()) * 4;
    const Index row = BlockIndex() / chunks;
    if (column >= a.columns) return;
    const int count = a.columns - column < 4 ? static_cast<int>(a.columns - column) : 4;
    const Byte* const at = a.packed + row * a.row_bytes + column / (8 / kBits);
    unsigned v;  // from the lowest bits up
    if (kBits == 8) {
      v = 0;
      for (int i = 0; i < count; ++i) v |= static_cast<unsigned>(at[i]) << (8 * i);
    } else if (kBits == 4) {
      v = at[0] | (count > 2 ? static_cast<unsigned>(at[1]) << 8 : 0u);
    } else {
      v = static_cast<unsigned>(at[0]) >> (kBits == 1 ? column % 8 : 0);
    }
    const Index scales = row / a.row_group * a.scales_in_row;
    Index group = a.column_group >= a.columns ? 0 : column / a.column_group;
    Index in_group = column - group * a.column_group;
    float out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) {
        const unsigned value = (v >> (kBits * i)) & ((1u << kBits) - 1u);
        const float zero =
            a.zero_points ? a.zero_points[scales + group] : static_cast<float>(1 << (kBits - 1));
        out[i] = a.scale[scales + group] *
                 (a.codebook ? a.codebook[value] : static_cast<float>(value) - zero);
        if (++in_group == a.column_group) {
          in_group = 0;
          ++group;
        }
      }
    }
    const Index to = row * a.columns + column;
    if (a.y_vector) {
      *reinterpret_cast<Floats4*>(static_cast<float*>(a.y) +
                                  to) = {{out[0], out[1], out[2], out[3]}};
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) StoreReal(a.y, to + i, out[i], a.brain);
    }
  }
};

// A thread a packed byte.
template <int kBits>
struct QuantizePack {
  static TFQUANT_DEVICE void Run(const GpuArguments& a) {
    const Index chunks = (a.row_bytes + kGpuThreads - 1) / kGpuThreads;
    const Index at = BlockIndex() % chunks * kGpuThreads + ThreadIndex();
    const Index row = BlockIndex() / chunks;
    if (at >= a.row_bytes) return;
    constexpr int kInByte = 8 / kBits;
    constexpr float kHighest = static_cast<float>((1 << kBits) - 1);
    unsigned byte = 0;
    for (int i = 0; i < kInByte; ++i) {
      const Index column = at * kInByte + i;
      if (column >= a.columns) break;
      const Index group = row / a.row_group * a.scales_in_row + column / a.column_group;
      const float zero =
          a.zero_points ? a.zero_points[group] : static_cast<float>(1 << (kBits - 1));
      const float real = static_cast<const float*>(a.x)[row * a.columns + column] / a.scale[group];
      float q = real != real ? zero : rintf(real) + zero;
      q = q < 0.0f ? 0.0f : (q > kHighest ? kHighest : q);
      byte |= static_cast<unsigned>(q) << (i * kBits);
    }
    a.packed[row * a.row_bytes + at] = static_cast<Byte>(byte);
  }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_KERNELS_CUH_
