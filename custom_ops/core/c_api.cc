#include "c_api.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "c_arguments.h"
#include "dequantize.h"
#include "matmul.h"
#include "pack.h"
#include "path.h"
#include "thread_pool.h"

namespace tfquant {
namespace {

thread_local LastError last_error;

int Report(const std::string& error) { return last_error.Report(error); }

std::string KernelsFor(const char* name, const Kernels** kernels) {
  const Path* path = nullptr;
  const std::string error = name == nullptr ? ChosenPath(&path) : FindPath(name, &path);
  if (error.empty()) *kernels = &path->kernels();
  return error;
}

// Pools live as long as the process: joining threads while a library unloads can hang.
ParallelFor PoolOf(int threads) {
  if (threads <= 1) return SerialFor;
  static std::mutex* const mutex = new std::mutex;
  static auto* const pools = new std::map<int, std::unique_ptr<ThreadPool>>;
  const std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<ThreadPool>& pool = (*pools)[threads];
  if (!pool) pool = std::make_unique<ThreadPool>(threads);
  ThreadPool* const found = pool.get();
  return [found](int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body) {
    found->For(count, cost, body);
  };
}

}  // namespace
}  // namespace tfquant

using namespace tfquant;  // NOLINT: the ABI below is made of these

int tfquant_abi_version(void) { return 1; }

const char* tfquant_error(void) { return last_error.words.c_str(); }

const char* tfquant_path_name(int index) {
  const Path* const path = PathAt(index);
  return path ? path->name : nullptr;
}

int tfquant_path_supported(int index) {
  const Path* const path = PathAt(index);
  return path != nullptr && path->Supported();
}

const char* tfquant_chosen_path(void) {
  const Path* path = nullptr;
  return Report(ChosenPath(&path)) == 0 ? path->name : nullptr;
}

int64_t tfquant_packed_bytes(int num_bits, int64_t group_size, int64_t k, int64_t n) {
  PackedLayout layout;
  return Report(MakeLayout(num_bits, group_size, k, n, &layout)) == 0 ? layout.bytes() : -1;
}

int tfquant_pack(int num_bits, int64_t group_size, int64_t k, int64_t n, const int8_t* q,
                 const float* scale, uint8_t* out) {
  PackedLayout layout;
  if (Report(MakeLayout(num_bits, group_size, k, n, &layout)) != 0) return -1;
  if (Report(CheckPointers({{"q", q}, {"scale", scale}, {"out", out}})) != 0) return -1;
  return Report(PackMatmul(q, scale, layout, out));
}

int tfquant_unpack(int num_bits, int64_t group_size, int64_t k, int64_t n, const uint8_t* weights,
                   int64_t weights_bytes, int8_t* q, float* scale) {
  PackedLayout layout;
  if (Report(MakeLayout(num_bits, group_size, k, n, &layout)) != 0) return -1;
  if (Report(CheckPointers({{"weights", weights}})) != 0) return -1;
  if (Report(CheckPacked(weights, weights_bytes, layout)) != 0) return -1;
  UnpackMatmul(weights, layout, q, scale);
  return 0;
}

int tfquant_matmul(const char* path, int threads, int type, int64_t m, const void* x, int num_bits,
                   int64_t group_size, int64_t k, int64_t n, const uint8_t* weights,
                   int64_t weights_bytes, int activations, float x_scale, int zero_point,
                   const float* bias, int fused, void* y) {
  const Kernels* kernels = nullptr;
  if (Report(KernelsFor(path, &kernels)) != 0) return -1;
  const MatmulArgs args =
      MatmulArgsOf(type, m, x, num_bits, group_size, k, n, weights, weights_bytes, activations,
                   x_scale, zero_point, bias, fused, y);
  if (Report(CheckMatmul(args)) != 0) return -1;
  Matmul(args, *kernels, PoolOf(threads));
  return 0;
}

int tfquant_dequantize(const char* path, int threads, int num_bits, int64_t rows, int64_t columns,
                       int64_t row_group, int64_t column_group, const uint8_t* packed,
                       int64_t packed_bytes, const float* scale, int64_t scales,
                       const float* zero_point, const float* codebook, int type, void* out) {
  const Kernels* kernels = nullptr;
  if (Report(KernelsFor(path, &kernels)) != 0) return -1;
  const PlainArgs args = PlainArgsOf(num_bits, rows, columns, row_group, column_group, packed,
                                     packed_bytes, scale, scales, zero_point, codebook, type, out);
  if (Report(CheckPlainPointers(args, packed, out)) != 0) return -1;
  if (Report(CheckPlain(args)) != 0) return -1;
  DequantizePlain(args, *kernels, PoolOf(threads));
  return 0;
}

int tfquant_quantize(int threads, int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                     int64_t column_group, const float* x, const float* scale, int64_t scales,
                     const float* zero_point, uint8_t* packed, int64_t packed_bytes) {
  const PlainArgs args = PlainArgsOf(num_bits, rows, columns, row_group, column_group, nullptr,
                                     packed_bytes, scale, scales, zero_point, nullptr, 0, nullptr);
  if (Report(CheckPlainPointers(args, packed, x)) != 0) return -1;
  if (Report(CheckPlain(args)) != 0) return -1;
  QuantizePlain(args, x, packed, PoolOf(threads));
  return 0;
}
