// The packed formats: how low-bit weights lie in memory. One format serves every path (portable,
// AVX2, AVX512-VNNI, NEON, CUDA), so a saved model runs anywhere.
//
// 1. Matmul weights of 8, 4 or 2 bits, `w[K, N]`. One buffer:
//
//        | PackedHeader, 64 bytes | panel 0 | panel 1 | ... | column_scale | column_sum |
//
//    A panel holds 16 columns, as a sequence of groups along K; a group is one or more blocks of 32
//    values of k, followed, when the weights have group scales, by 16 half-precision scales:
//
//        | block | ... | block | 16 x f16 scale |      group_size / 32 blocks, then 32 bytes
//        | block | block | ...                         per channel: no scales between the blocks
//
//    A block of `num_bits` rows covers 32 k x 16 columns. A row is 64 bytes: column c owns bytes
//    4c .. 4c+3, and byte b of them holds k = 4*s + b for the steps s that the row covers:
//
//        8 bits   row r: step r                          byte = v[4r+b]
//        4 bits   row r: steps 2r, 2r+1                  byte = v[8r+b] | v[8r+4+b] << 4
//        2 bits   row r: steps 4r .. 4r+3                byte = v[16r+b] | ... | v[16r+12+b] << 6
//
//    so that a 32-bit lane is one column and an 8-bit dot product of four eats a row at a time.
//    Values are stored with an offset, v = q + 2^(num_bits-1), which makes them unsigned.
//    K is padded to whole groups (blocks when per channel) and N to whole panels with q = 0.
//
//        weight[k, n] = q[k, n] * group_scale[k / group_size, n] * column_scale[n]
//
//    Per channel there is no group_scale. With groups, column_scale is a power of two that keeps
//    the f16 scales in their best range. `column_sum[n]` is the sum over k of
//    q * group_scale: what a zero point of the activations is multiplied with.
//
// 2. Matmul weights of 1 bit (values -1 and +1; a set bit is -1):
//
//        | PackedHeader | panel 0 | panel 1 | ... | column_scale |
//
//    A panel holds 64 columns; row r is 64 bytes, byte c holds k = 8r .. 8r+7 of column c, lowest
//    bit first. K is padded to a multiple of 32 with zero bits, N to whole panels.
//
// 3. Plain: row-major values for storage, look-up and dequantize, lowest bits first; every row
//    starts on a byte.
//
//        4 bits   byte i of a row = v[2i] | v[2i+1] << 4
//        2 bits   byte i of a row = v[4i] | v[4i+1] << 2 | v[4i+2] << 4 | v[4i+3] << 6
//
// Read by pack.cc, matmul.cc and the kernels of every path; the same drawings are in
// tfquant/numerics/packing.py.
#ifndef TFQUANT_CUSTOM_OPS_CORE_BLOCKS_H_
#define TFQUANT_CUSTOM_OPS_CORE_BLOCKS_H_

#include <cstdint>

namespace tfquant {

constexpr int64_t kPanelColumns = 16;
constexpr int64_t kBlockDepth = 32;  // values of k in a block
constexpr int64_t kRowBytes = 64;
constexpr int64_t kBinaryPanelColumns = 64;
constexpr int64_t kBinaryDepth = 32;  // K of 1-bit weights is padded to this
// An int32 accumulator of s8 x s8 products holds this many without overflow: 2^14 * kMaxDepth <
// 2^31.
constexpr int64_t kMaxDepth = 131071;
constexpr int64_t kMaxColumns = int64_t{1} << 31;

constexpr uint32_t kPackedMagic = 0x31514654;  // "TFQ1"

struct PackedHeader {
  uint32_t magic;
  int32_t num_bits;
  int64_t group_size;  // 32, 64 or 128; 0 is per channel
  int64_t k;
  int64_t n;
  uint8_t reserved[32];
};
static_assert(sizeof(PackedHeader) == 64, "the header keeps what follows 64-byte aligned");

// 32 values of k for 16 columns.
template <int kBits>
struct Block {
  uint8_t row[kBits][kRowBytes];
};
static_assert(sizeof(Block<8>) == 512, "w8: 1 byte a weight");
static_assert(sizeof(Block<4>) == 256, "w4: 0.5 byte a weight");
static_assert(sizeof(Block<2>) == 128, "w2: 0.25 byte a weight");

struct GroupScales {
  uint16_t f16[kPanelColumns];
};
static_assert(sizeof(GroupScales) == 32, "one f16 a column");

constexpr int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

constexpr int64_t CeilDivide(int64_t a, int64_t b) { return a / b + (a % b != 0); }

constexpr int Offset(int num_bits) { return 1 << (num_bits - 1); }

// The shape of a packed weight and where its parts lie; `Make` is in pack.h.
struct PackedLayout {
  int num_bits = 0;
  int64_t group_size = 0;
  int64_t k = 0, n = 0;

  bool binary() const { return num_bits == 1; }
  int64_t panel_columns() const { return binary() ? kBinaryPanelColumns : kPanelColumns; }
  int64_t panels() const { return (n + panel_columns() - 1) / panel_columns(); }
  int64_t padded_k() const {
    return RoundUp(k, binary() ? kBinaryDepth : (group_size ? group_size : kBlockDepth));
  }
  int64_t padded_n() const { return panels() * panel_columns(); }
  int64_t groups() const { return group_size ? padded_k() / group_size : 1; }
  // Depth that shares one integer accumulation.
  int64_t group_depth() const { return group_size ? group_size : padded_k(); }
  int64_t block_bytes() const { return num_bits * kRowBytes; }
  int64_t group_bytes() const {
    return group_depth() / kBlockDepth * block_bytes() +
           (group_size ? static_cast<int64_t>(sizeof(GroupScales)) : 0);
  }
  int64_t panel_bytes() const {
    return binary() ? padded_k() / 8 * kBinaryPanelColumns : groups() * group_bytes();
  }
  int64_t panels_offset() const { return sizeof(PackedHeader); }
  int64_t column_scale_offset() const { return panels_offset() + panels() * panel_bytes(); }
  int64_t column_sum_offset() const { return column_scale_offset() + padded_n() * 4; }
  int64_t bytes() const { return column_sum_offset() + (binary() ? 0 : padded_n() * 4); }
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_BLOCKS_H_
