// Which kernels make a matmul or a plain row, in what grids; behind the C ABI of cuda_api.h.
//
//     rows of x        float weights' activations        quantized activations
//     1 to 4           RealGemv                          QuantizeRows, IntegerGemv
//     5 to 64          SplitRows, Skinny<Real>           QuantizeRows, Skinny<Integer>
//     more             SplitRows, Gemm<Real>             QuantizeRows, Gemm<Integer>
//
// Weights of one bit: EncodeSigns, then BinaryGemv up to 4 rows and BinaryGemm beyond.
#include <cstddef>
#include <limits>
#include <string>

#include "../c_arguments.h"
#include "../pack.h"
#include "cuda_api.h"
#include "kernel_list.h"
#include "launch.h"

namespace tfquant {
namespace {

constexpr int64_t kGemvRows = 4;
constexpr int64_t kSkinnyRows = 64;
constexpr int64_t kMostBlocks = std::numeric_limits<int32_t>::max();
constexpr int64_t kAlignment = 16;

// What the device code knows by itself of ../blocks.h.
static_assert(kPanelWidth == kPanelColumns && kBlockK == kBlockDepth, "a block");
static_assert(kPanelRowBytes == kRowBytes && kScaleBytes == sizeof(GroupScales), "a panel");
static_assert(kBinaryColumns == kBinaryPanelColumns && kMagic == kPackedMagic, "");
static_assert(offsetof(PackedHeader, magic) == 0 && offsetof(PackedHeader, num_bits) == 4 &&
                  offsetof(PackedHeader, group_size) == 8 && offsetof(PackedHeader, k) == 16 &&
                  offsetof(PackedHeader, n) == 24,
              "HeaderFits reads it in words of four bytes");
static_assert(kBinaryDepth == 32, "a word of signs");
// And what kernel_list.h names by number.
static_assert(kGemvRows == 4 && kSkinnyTiles == 4 && kSplitSkinnyTiles == 2, "");

thread_local LastError last_error;

int Report(const std::string& error) { return last_error.Report(error); }

bool Aligned(const void* pointer, int64_t bytes = kAlignment) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

std::string Launch(const std::string& kernel, int64_t blocks, const GpuArguments& arguments,
                   void* stream) {
  if (blocks > kMostBlocks) {
    return "The arrays are too large for one launch on a GPU. Received: " + std::to_string(blocks) +
           " blocks of threads.";
  }
  return blocks == 0 ? "" : LaunchKernel(kernel, blocks, arguments, stream);
}

// What prepares the rows of x, what multiplies them, and how much room lies between.
struct Plan {
  std::string prepare, multiply;
  int64_t padded_m = 0, blocks = 0;
  int64_t rows_bytes = 0, row_scale_bytes = 0, group_scale_bytes = 0;

  int64_t scratch_bytes() const { return rows_bytes + row_scale_bytes + group_scale_bytes; }
};

std::string Number(int64_t value) { return std::to_string(value); }

int64_t SignWords(const PackedLayout& layout) { return RoundUp(layout.padded_k() / 32, kSignStep); }

Plan PlanOf(const MatmulArgs& args) {
  const PackedLayout& layout = args.layout;
  const int64_t m = args.m, panels = layout.panels();
  const std::string bits = Number(layout.num_bits);
  const std::string gemv_rows = Number(m == 1 ? 1 : kGemvRows);
  Plan plan;
  plan.padded_m = m;
  plan.blocks = panels;
  if (layout.binary()) {
    plan.prepare = "EncodeSigns";
    plan.multiply = "BinaryGemv<" + gemv_rows + ">";
    if (m > kGemvRows) {
      plan.multiply = "BinaryGemm";
      plan.padded_m = RoundUp(m, kBinaryGemmRows);
      plan.blocks = plan.padded_m / kBinaryGemmRows * panels;
    }
    plan.rows_bytes = RoundUp(plan.padded_m * SignWords(layout) * 4, kAlignment);
    return plan;
  }
  const bool real = args.activations == Activations::kFloat,
             brain = args.type != DataType::kFloat32;
  const int parts = real && !brain ? 3 : 1;
  if (m <= kGemvRows) {
    plan.multiply = real ? "RealGemv<" + bits + ", " + gemv_rows + (brain ? ", true>" : ", false>")
                         : "IntegerGemv<" + bits + ", " + gemv_rows + ">";
  } else {
    const std::string form =
        real ? "Real<" + bits + ", " + Number(parts) + ">" : "Integer<" + bits + ">";
    const bool split = parts > 1;
    const std::string grouped = layout.group_size ? ", true" : ", false";
    if (m <= kSkinnyRows) {
      const int64_t tiles = m <= 16 ? 1 : (split ? kSplitSkinnyTiles : kSkinnyTiles);
      plan.padded_m = RoundUp(m, 16 * tiles);
      plan.multiply = "Skinny<" + form + grouped + ", " + Number(tiles) + ">";
      plan.blocks = plan.padded_m / (16 * tiles) *
                    CeilDivide(panels, tiles == 1 ? kOneTilePanels : kMoreTilesPanels);
    } else {
      const int64_t rows = split ? kSplitGemmRows : kGemmRows;
      plan.padded_m = RoundUp(m, rows);
      plan.multiply = "Gemm<" + form + grouped + ">";
      plan.blocks = plan.padded_m / rows * CeilDivide(layout.n, kGemmColumns);
    }
  }
  if (!real) {
    plan.prepare = "QuantizeRows";
    plan.rows_bytes = plan.padded_m * layout.padded_k();
    plan.row_scale_bytes = RoundUp(plan.padded_m * 4, kAlignment);
    if (args.activations == Activations::kPerGroup) {
      plan.group_scale_bytes = RoundUp(plan.padded_m * layout.groups() * 4, kAlignment);
    }
  } else if (m > kGemvRows) {
    plan.prepare = "SplitRows<" + Number(parts) + ">";
    plan.rows_bytes = parts * plan.padded_m * layout.padded_k() * 2;
  }
  return plan;
}

// The device's memory cannot be looked at, so this is CheckMatmul without a look at the header.
std::string CheckGpuMatmul(const MatmulArgs& args) {
  const std::string error = CheckSettings(args);
  if (!error.empty()) return error;
  constexpr int64_t kMost = int64_t{1} << 50;
  if (args.m < 0 || args.m > kMost / args.layout.padded_k() ||
      args.m > kMost / args.layout.padded_n()) {
    return "`x` has a number of rows that overflows. Received: m=" + std::to_string(args.m) + ".";
  }
  return "";
}

GpuArguments ArgumentsOf(const PackedLayout& layout, const void* weights) {
  GpuArguments a = {};
  const unsigned char* const at = static_cast<const unsigned char*>(weights);
  a.k = layout.k;
  a.n = layout.n;
  a.padded_k = layout.padded_k();
  a.num_bits = layout.num_bits;
  a.group_blocks = static_cast<int>(layout.group_size / kBlockDepth);
  a.groups = layout.groups();
  a.group_bytes = layout.group_bytes();
  a.panel_bytes = layout.panel_bytes();
  a.weights = at;
  a.panels = at + layout.panels_offset();
  a.column_scale = reinterpret_cast<const float*>(at + layout.column_scale_offset());
  a.column_sum = reinterpret_cast<const float*>(at + layout.column_sum_offset());
  return a;
}

std::string MatmulOnGpu(const MatmulArgs& args, void* scratch, int64_t scratch_bytes,
                        void* stream) {
  std::string error = CheckGpuMatmul(args);
  if (error.empty()) error = CheckPackedBytes(args.weights_bytes, args.layout);
  if (!error.empty() || args.m == 0) return error;
  if (args.weights == nullptr || args.x == nullptr || args.y == nullptr) {
    return "`x`, `weights` and `y` must not be null.";
  }
  if (!Aligned(args.weights) || !Aligned(scratch)) {
    return "On a GPU `weights` must start on a multiple of 16 bytes.";
  }
  const PackedLayout& layout = args.layout;
  const Plan plan = PlanOf(args);
  if (scratch_bytes < plan.scratch_bytes() || (scratch == nullptr && plan.scratch_bytes() > 0)) {
    return "`scratch` must hold " + std::to_string(plan.scratch_bytes()) +
           " bytes. Received: " + std::to_string(scratch_bytes) + " bytes.";
  }
  const bool brain = args.type != DataType::kFloat32;
  GpuArguments a = ArgumentsOf(layout, args.weights);
  a.m = args.m;
  a.padded_m = plan.padded_m;
  a.bias = args.bias;
  a.x = args.x;
  a.y = args.y;
  a.activations = args.activations;
  a.fused = args.fused;
  a.x_scale = args.x_scale;
  const bool has_zero_point = args.activations == Activations::kStatic && !layout.binary();
  a.zero_point = has_zero_point ? args.zero_point : 0;
  a.brain = brain;
  a.x_vector = layout.k % 4 == 0 && Aligned(args.x, brain ? 8 : 16);
  a.y_vector = layout.n % 4 == 0 && Aligned(args.y) && !brain;
  a.rows = static_cast<unsigned char*>(scratch);
  a.sign_words = SignWords(layout);
  if (plan.row_scale_bytes) a.row_scale = reinterpret_cast<float*>(a.rows + plan.rows_bytes);
  if (plan.group_scale_bytes) {
    a.group_scale = reinterpret_cast<float*>(a.rows + plan.rows_bytes + plan.row_scale_bytes);
  }
  if (!plan.prepare.empty()) error = Launch(plan.prepare, plan.padded_m, a, stream);
  return error.empty() ? Launch(plan.multiply, plan.blocks, a, stream) : error;
}

// Plain rows: what the two directions share. A thread makes four real values, or one byte.
std::string PlainOnGpu(const PlainArgs& args, bool dequantize, GpuArguments a, void* stream) {
  const std::string error = CheckPlainSizes(args);
  if (!error.empty() || args.rows == 0 || args.columns == 0) return error;
  a.plain_rows = args.rows;
  a.columns = args.columns;
  a.row_bytes = PlainRowBytes(args.columns, args.num_bits);
  a.row_group = args.row_group;
  a.column_group = args.column_group;
  a.scales_in_row = CeilDivide(args.columns, args.column_group);
  a.scale = args.scale;
  a.zero_points = args.zero_point;
  const int64_t blocks_in_row =
      CeilDivide(dequantize ? CeilDivide(args.columns, 4) : a.row_bytes, kGpuThreads);
  if (args.rows > kMostBlocks / blocks_in_row) {
    return "The arrays are too large for one launch on a GPU. Received: rows=" +
           std::to_string(args.rows) + ", columns=" + std::to_string(args.columns) + ".";
  }
  const std::string kernel = dequantize ? "Dequantize" : "QuantizePack";
  return Launch(kernel + "<" + std::to_string(args.num_bits) + ">", args.rows * blocks_in_row, a,
                stream);
}

}  // namespace
}  // namespace tfquant

using namespace tfquant;  // NOLINT: the ABI below is made of these

int tfquant_cuda_abi_version(void) { return 2; }

const char* tfquant_cuda_error(void) { return last_error.words.c_str(); }

const char* tfquant_cuda_describe(void) {
  static thread_local std::string words;
  words = DescribeGpu();
  return words.c_str();
}

const char* tfquant_cuda_kernel_name(int index) {
#define TFQUANT_NAME(...) #__VA_ARGS__,
  static const char* const names[] = {TFQUANT_GPU_KERNELS(TFQUANT_NAME)};
#undef TFQUANT_NAME
  constexpr int kCount = static_cast<int>(sizeof(names) / sizeof(names[0]));
  return index >= 0 && index < kCount ? names[index] : nullptr;
}

int64_t tfquant_cuda_scratch_bytes(int type, int64_t m, int num_bits, int64_t group_size, int64_t k,
                                   int64_t n, int activations) {
  MatmulArgs args;
  args.type = static_cast<DataType>(type);
  args.m = m;
  args.layout = {num_bits, group_size, k, n};
  args.activations = static_cast<Activations>(activations);
  if (Report(CheckGpuMatmul(args)) != 0) return -1;
  return PlanOf(args).scratch_bytes();
}

int tfquant_cuda_matmul(int type, int64_t m, const void* x, int num_bits, int64_t group_size,
                        int64_t k, int64_t n, const void* weights, int64_t weights_bytes,
                        int activations, float x_scale, int zero_point, const float* bias,
                        int fused, void* y, void* scratch, int64_t scratch_bytes, void* stream) {
  const MatmulArgs args =
      MatmulArgsOf(type, m, x, num_bits, group_size, k, n, weights, weights_bytes, activations,
                   x_scale, zero_point, bias, fused, y);
  return Report(MatmulOnGpu(args, scratch, scratch_bytes, stream));
}

int tfquant_cuda_unpack(int num_bits, int64_t group_size, int64_t k, int64_t n, const void* weights,
                        int64_t weights_bytes, float* weight, void* stream) {
  PackedLayout layout;
  std::string error = MakeLayout(num_bits, group_size, k, n, &layout);
  if (error.empty()) error = CheckPackedBytes(weights_bytes, layout);
  if (error.empty()) error = CheckPointers({{"weights", weights}, {"weight", weight}});
  if (error.empty() && !Aligned(weights)) {
    error = "On a GPU `weights` must start on a multiple of 16 bytes.";
  }
  if (!error.empty()) return Report(error);
  GpuArguments a = ArgumentsOf(layout, weights);
  a.y = weight;
  const int64_t blocks = CeilDivide(n, kGpuThreads) * CeilDivide(k, kBlockDepth);
  return Report(Launch("UnpackWeights<" + std::to_string(num_bits) + ">", blocks, a, stream));
}

int tfquant_cuda_dequantize(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                            int64_t column_group, const void* packed, int64_t packed_bytes,
                            const float* scale, int64_t scales, const float* zero_point,
                            const float* codebook, int type, void* out, void* stream) {
  const PlainArgs args = PlainArgsOf(num_bits, rows, columns, row_group, column_group, packed,
                                     packed_bytes, scale, scales, zero_point, codebook, type, out);
  GpuArguments a = {};
  a.packed = static_cast<unsigned char*>(const_cast<void*>(packed));
  a.codebook = codebook;
  a.y = out;
  a.brain = args.type != DataType::kFloat32;
  a.y_vector = columns % 4 == 0 && Aligned(out) && !a.brain;
  if (Report(CheckPlainPointers(args, packed, out)) != 0) return -1;
  return Report(PlainOnGpu(args, true, a, stream));
}

int tfquant_cuda_quantize(int num_bits, int64_t rows, int64_t columns, int64_t row_group,
                          int64_t column_group, const float* x, const float* scale, int64_t scales,
                          const float* zero_point, void* packed, int64_t packed_bytes,
                          void* stream) {
  const PlainArgs args = PlainArgsOf(num_bits, rows, columns, row_group, column_group, nullptr,
                                     packed_bytes, scale, scales, zero_point, nullptr, 0, nullptr);
  GpuArguments a = {};
  a.packed = static_cast<unsigned char*>(packed);
  a.x = x;
  if (Report(CheckPlainPointers(args, packed, x)) != 0) return -1;
  return Report(PlainOnGpu(args, false, a, stream));
}
