// What the ops and their kernels must agree on: the element types, the names of settings, and the
// words of errors about tensors that core never sees.
#ifndef TFQUANT_CUSTOM_OPS_KERNELS_NAMES_H_
#define TFQUANT_CUSTOM_OPS_KERNELS_NAMES_H_

#include <string>

#include "../core/matmul.h"

// In the order of `DataType`, `Activations` and `Fused` of core.
#define TFQUANT_REAL_TYPES "float, bfloat16"
#define TFQUANT_ACTIVATIONS "'float', 'per_row', 'per_group', 'static'"
#define TFQUANT_FUSED "'linear', 'relu', 'relu6', 'gelu', 'gelu_tanh', 'silu', 'sigmoid', 'tanh'"
// Registers a kernel for each of TFQUANT_REAL_TYPES.
#define TFQUANT_FOR_REAL_TYPES(m) m(float) m(tensorflow::bfloat16)

namespace tfquant {

// Position of `name` among the quoted, comma-separated `names`; the op's attribute has checked it.
inline int IndexOf(const std::string& names, const std::string& name) {
  int index = 0;
  const size_t at = names.find("'" + name + "'");
  for (size_t i = 0; i < at && i < names.size(); ++i) index += names[i] == ',';
  return index;
}

inline Activations ActivationsOf(const std::string& name) {
  return static_cast<Activations>(IndexOf(TFQUANT_ACTIVATIONS, name));
}

inline Fused FusedOf(const std::string& name) {
  return static_cast<Fused>(IndexOf(TFQUANT_FUSED, name));
}

inline std::string CheckBias(int64_t length, int64_t units) {
  if (length == 0 || length == units) return "";
  return "`bias` must be empty or hold units=" + std::to_string(units) +
         " values. Received: " + std::to_string(length) + " values.";
}

inline std::string CheckScaleShape(int64_t rows, int64_t columns, const PackedLayout& layout) {
  if (rows == layout.groups() && columns == layout.n) return "";
  return "`scale` must have the shape (" + std::to_string(layout.groups()) + ", " +
         std::to_string(layout.n) + "). Received: shape (" + std::to_string(rows) + ", " +
         std::to_string(columns) + ").";
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_KERNELS_NAMES_H_
