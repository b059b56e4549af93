// Small integers <-> the formats drawn in blocks.h. Plain C++, the same on every path; called when
// a model is packed, by the dequantize ops and by the tests.
//
// Every function that can be handed a wrong argument returns what is wrong in words, or "".
#ifndef TFQUANT_CUSTOM_OPS_CORE_PACK_H_
#define TFQUANT_CUSTOM_OPS_CORE_PACK_H_

#include <cstdint>
#include <string>

#include "blocks.h"

namespace tfquant {

// Checks the numbers and fills `layout`; sizes of an accepted layout never overflow int64_t.
std::string MakeLayout(int num_bits, int64_t group_size, int64_t k, int64_t n,
                       PackedLayout* layout);

// Does a buffer of `bytes` bytes fit this layout?
std::string CheckPackedBytes(int64_t bytes, const PackedLayout& layout);

// Is `data` a buffer of this layout? Looks at its size and at its header.
std::string CheckPacked(const uint8_t* data, int64_t bytes, const PackedLayout& layout);

// q[K, N] row-major, -2^(b-1) <= q < 2^(b-1) (for 1 bit: -1 or +1); scale[rows, N] positive and
// finite, where rows is groups() with a group size and 1 without. `out` has layout.bytes().
std::string PackMatmul(const int8_t* q, const float* scale, const PackedLayout& layout,
                       uint8_t* out);

// The inverse: the integers, and the scales as the kernels see them. Either may be null.
void UnpackMatmul(const uint8_t* data, const PackedLayout& layout, int8_t* q, float* scale);

// weight[K, N] = q * scale.
void DequantizeMatmul(const uint8_t* data, const PackedLayout& layout, float* weight);

inline int64_t PlainRowBytes(int64_t columns, int num_bits) {
  return columns / (8 / num_bits) + (columns % (8 / num_bits) != 0);
}

// v[rows, columns] holds unsigned values below 2^num_bits; higher bits are dropped.
void PackPlain(const uint8_t* v, int64_t rows, int64_t columns, int num_bits, uint8_t* out);
void UnpackPlain(const uint8_t* data, int64_t rows, int64_t columns, int num_bits, uint8_t* v);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_PACK_H_
