// Matrix-vector product of a few rows.
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_GEMV_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_GEMV_CUH_

namespace tfquant {

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

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_GEMV_CUH_
