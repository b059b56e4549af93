// What the two C ABIs (c_api.h, cuda/cuda_api.h) do alike: their parameters as the structs of core,
// null pointers in words, and the last error of a thread.
#ifndef TFQUANT_CUSTOM_OPS_CORE_C_ARGUMENTS_H_
#define TFQUANT_CUSTOM_OPS_CORE_C_ARGUMENTS_H_

#include <cstdint>
#include <initializer_list>
#include <string>

#include "args.h"

namespace tfquant {

struct LastError {
  std::string words;

  // The code that a function of the ABI returns.
  int Report(const std::string& error) {
    words = error;
    return error.empty() ? 0 : -1;
  }
};

struct NamedPointer {
  const char* name;
  const void* pointer;
};

inline std::string CheckPointers(std::initializer_list<NamedPointer> pointers) {
  for (const NamedPointer& p : pointers) {
    if (p.pointer == nullptr) return "`" + std::string(p.name) + "` must not be null.";
  }
  return "";
}

inline MatmulArgs MatmulArgsOf(int type, int64_t m, const void* x, int num_bits, int64_t group_size,
                               int64_t k, int64_t n, const void* weights, int64_t weights_bytes,
                               int activations, float x_scale, int zero_point, const float* bias,
                               int fused, void* y) {
  MatmulArgs args;
  args.type = static_cast<DataType>(type);
  args.m = m;
  args.x = x;
  args.layout = {num_bits, group_size, k, n};
  args.weights = static_cast<const uint8_t*>(weights);
  args.weights_bytes = weights_bytes;
  args.activations = static_cast<Activations>(activations);
  args.x_scale = x_scale;
  args.zero_point = zero_point;
  args.bias = bias;
  args.fused = static_cast<Fused>(fused);
  args.y = y;
  return args;
}

inline PlainArgs PlainArgsOf(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                             int64_t column_group, const void* packed, int64_t packed_bytes,
                             const float* scale, int64_t scales, const float* zero_point,
                             const float* codebook, int type, void* real) {
  PlainArgs args;
  args.num_bits = num_bits;
  args.rows = rows;
  args.columns = columns;
  args.row_group = row_group;
  args.column_group = column_group;
  args.packed = static_cast<const uint8_t*>(packed);
  args.packed_bytes = packed_bytes;
  args.scale = scale;
  args.scales = scales;
  args.zero_point = zero_point;
  args.codebook = codebook;
  args.type = static_cast<DataType>(type);
  args.real = real;
  return args;
}

// The arrays of plain rows: `packed`, real values and scales. Without values they may be null.
inline std::string CheckPlainPointers(const PlainArgs& args, const void* packed, const void* real) {
  if (args.rows == 0 || args.columns == 0) return "";
  return CheckPointers({{"packed", packed}, {"real", real}, {"scale", args.scale}});
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_C_ARGUMENTS_H_
