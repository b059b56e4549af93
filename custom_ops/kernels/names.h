// What the ops and their kernels must agree on: the element types, the names of settings, and the
// words of errors about shapes of tensors, which core never sees. A shape function may not know a
// dimension yet; it is -1 and fits everything.
#ifndef TFQUANT_CUSTOM_OPS_KERNELS_NAMES_H_
#define TFQUANT_CUSTOM_OPS_KERNELS_NAMES_H_

#include <algorithm>
#include <limits>
#include <string>

#include "../core/args.h"
#include "../core/pack.h"
#include "absl/status/status.h"

// In the order of `DataType`, `Activations` and `Fused` of core.
#define TFQUANT_REAL_TYPES "float, bfloat16"
#define TFQUANT_ACTIVATIONS "'float', 'per_row', 'per_group', 'static'"
#define TFQUANT_FUSED "'linear', 'relu', 'relu6', 'gelu', 'gelu_tanh', 'silu', 'sigmoid', 'tanh'"
// m(a, b, type) for each of TFQUANT_REAL_TYPES.
#define TFQUANT_FOR_REAL_TYPES(m, a, b) m(a, b, float) m(a, b, tensorflow::bfloat16)

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

inline absl::Status Words(const std::string& error) {
  return error.empty() ? absl::OkStatus() : absl::InvalidArgumentError(error);
}

// An attribute as core wants it; one that does not fit comes out as a number that core rejects.
inline int IntOf(int64_t value) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  return static_cast<int>(std::min(std::max(value, -kMost), kMost));
}

constexpr char kScalarX[] = "`x` must not be a scalar.";

// `shape` is that of the tensor, as TensorFlow writes it.
inline std::string CheckRank(int rank, int wanted, const char* name, const std::string& shape) {
  if (rank == wanted) return "";
  return "`" + std::string(name) + "` must have " + std::to_string(wanted) +
         " dimensions. Received: shape " + shape + ".";
}

inline std::string CheckBias(int64_t length, int64_t units) {
  if (length <= 0 || length == units) return "";
  return "`bias` must be empty or hold units=" + std::to_string(units) +
         " values. Received: " + std::to_string(length) + " values.";
}

inline std::string CheckScaleShape(int64_t rows, int64_t columns, int64_t wanted_rows,
                                   int64_t wanted_columns) {
  const auto fits = [](int64_t a, int64_t b) { return a < 0 || b < 0 || a == b; };
  if (fits(rows, wanted_rows) && fits(columns, wanted_columns)) return "";
  const auto text = [](int64_t a, int64_t b) {
    return "(" + (a < 0 ? "?" : std::to_string(a)) + ", " + (b < 0 ? "?" : std::to_string(b)) + ")";
  };
  return "`scale` must have the shape " + text(wanted_rows, wanted_columns) + ". Received: shape " +
         text(rows, columns) + ".";
}

// That of plain rows: one value for each group of rows and columns.
inline std::string CheckPlainScaleShape(int64_t rows, int64_t columns, const PlainArgs& args) {
  const auto groups = [](int64_t a, int64_t b) { return a < 0 ? a : CeilDivide(a, b); };
  return CheckScaleShape(rows, columns, groups(args.rows, args.row_group),
                         groups(args.columns, args.column_group));
}

inline std::string CheckRowBytes(int64_t bytes, int64_t columns, int num_bits) {
  const int64_t wanted = PlainRowBytes(columns, num_bits);
  if (bytes < 0 || bytes == wanted) return "";
  return "A row of `packed` must hold " + std::to_string(wanted) +
         " bytes for columns=" + std::to_string(columns) +
         ", num_bits=" + std::to_string(num_bits) + ". Received: " + std::to_string(bytes) +
         " bytes.";
}

inline std::string CheckZeroPointShape(int64_t values, bool like_scale, const std::string& shape,
                                       const std::string& scale_shape) {
  if (values <= 0 || like_scale) return "";
  return "`zero_point` must be empty or have the shape of `scale`, " + scale_shape +
         ". Received: shape " + shape + ".";
}

inline std::string CheckCodebook(int64_t values, int num_bits) {
  const int64_t wanted = int64_t{1} << num_bits;
  if (values <= 0 || values == wanted) return "";
  return "`codebook` must be empty or hold 2^num_bits=" + std::to_string(wanted) +
         " values. Received: " + std::to_string(values) + " values.";
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_KERNELS_NAMES_H_
