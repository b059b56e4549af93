// How a warp multiplies: what a lane holds of x and of the weights, and the warp's sums.
//
// How a tensor core reads packed weights. A lane (g = lane / 4, t = lane % 4) takes, of 32 values
// of k, steps 2t and 2t + 1 (k = 8t .. 8t+7) of x and of the weights alike: any order of k gives
// the same sum. Of a panel's 16 columns its two fragments are columns 2g and 2g + 1, which lie
// together in memory; so of the sums it holds columns 4t .. 4t+3, which lie together in y.
//
//     row of 64 bytes   | column 0 | 1 | 2 | 3 | ... | 15 |    lanes of g read 2g and 2g + 1
//     fragment j        columns j, 2 + j, 4 + j, ...            c[e] is column 4t + j + 2 (e % 2)
#ifndef TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_FORMS_CUH_
#define TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_FORMS_CUH_

namespace tfquant {

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

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_CUDA_PARTS_FORMS_CUH_
