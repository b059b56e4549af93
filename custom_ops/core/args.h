// What a matmul and a conversion of plain rows are told, and what is wrong with it in words. The
// CPU (matmul.h, dequantize.h) and the GPU (cuda/launches.cc) take the same structs.
//
// A Check returns "" where nothing is wrong.
#ifndef TFQUANT_CUSTOM_OPS_CORE_ARGS_H_
#define TFQUANT_CUSTOM_OPS_CORE_ARGS_H_

#include <cstdint>
#include <string>

#include "blocks.h"
#include "settings.h"

namespace tfquant {

constexpr int64_t BytesOf(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

// y[M, N] = fused(x[M, K] * weights[K, N] + bias[N]); meaning: reference_matmul.h.
struct MatmulArgs {
  DataType type = DataType::kFloat32;  // of x and y
  int64_t m = 0;
  const void* x = nullptr;  // [m, layout.k]
  PackedLayout layout;
  const uint8_t* weights = nullptr;  // layout.bytes(), any alignment
  int64_t weights_bytes = 0;
  Activations activations = Activations::kPerRow;
  float x_scale = 1.0f;         // kStatic
  int zero_point = 0;           // kStatic, in [-128, 127]
  const float* bias = nullptr;  // [layout.n] or null
  Fused fused = Fused::kNone;
  void* y = nullptr;  // [m, layout.n]
};

// CheckSettings looks at the numbers alone, so a shape function can say the same before there are
// tensors; CheckMatmul at the pointers and the header of the weights too.
std::string CheckSettings(const MatmulArgs& args);
std::string CheckMatmul(const MatmulArgs& args);

// Plain rows <-> real values; meaning: dequantize.h.
struct PlainArgs {
  int num_bits = 8;
  int64_t rows = 0, columns = 0;
  int64_t row_group = 1, column_group = 1;
  const uint8_t* packed = nullptr;  // dequantize: input; rows * PlainRowBytes(columns) bytes
  int64_t packed_bytes = 0;
  const float* scale = nullptr;
  int64_t scales = 0;                 // how many were given
  const float* zero_point = nullptr;  // as many, or null
  const float* codebook = nullptr;    // 2^num_bits values, or null
  DataType type = DataType::kFloat32;
  void* real = nullptr;  // dequantize: output, [rows, columns]
};

// CheckPlainNumbers looks at what is known before there are arrays (rows and columns are -1 where
// they are not), CheckPlainSizes at how many bytes and scales were given too, CheckPlain at every
// scale too.
std::string CheckPlainNumbers(const PlainArgs& args);
std::string CheckPlainSizes(const PlainArgs& args);
std::string CheckPlain(const PlainArgs& args);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_ARGS_H_
