// The kernels of core/cuda, by their C ABI, against reference_matmul.h and dequantize.h; on the
// emulated GPU, made to run under AddressSanitizer and UndefinedBehaviorSanitizer. Buffers have
// exactly the size they need. The commands are in custom_ops/README.md.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../core/cuda/cuda_api.h"
#include "../core/dequantize.h"
#include "../core/float16.h"
#include "test_cases.h"

namespace tfquant {
namespace {

// Memory of exactly this size, at least 16-byte aligned, as malloc gives it.
template <class T>
std::unique_ptr<T[]> Exactly(const std::vector<T>& values) {
  std::unique_ptr<T[]> memory(new T[values.size()]);
  std::copy(values.begin(), values.end(), memory.get());
  return memory;
}

struct Case {
  int64_t m;
  Activations activations = Activations::kPerRow;
  float x_scale = 0.03f;
  int zero_point = -7;
  Fused fused = Fused::kNone;
  bool bias = true, brain = false, exact = false;
};

void CheckMatmul(const Weights& w, const Case& c, std::vector<float> x) {
  const PackedLayout& layout = w.layout;
  const int64_t m = c.m, k = layout.k, n = layout.n;
  std::vector<uint16_t> brain_x(x.size());
  for (size_t i = 0; c.brain && i < x.size(); ++i) {
    brain_x[i] = FloatToBrain(x[i]);
    x[i] = BrainToFloat(brain_x[i]);
  }
  const auto x_memory = Exactly(x);
  const auto brain_memory = Exactly(brain_x);
  const auto bias = Exactly(Normal(n));
  std::unique_ptr<float[]> y(new float[static_cast<size_t>(m * n)]);
  std::unique_ptr<uint16_t[]> brain_y(new uint16_t[static_cast<size_t>(m * n)]);
  MatmulArgs args;
  args.type = c.brain ? DataType::kBFloat16 : DataType::kFloat32;
  args.m = m;
  args.layout = layout;
  args.activations = c.activations;
  args.x_scale = c.x_scale;
  args.zero_point = c.zero_point;
  args.bias = c.bias ? bias.get() : nullptr;
  args.fused = c.fused;
  const int type = c.brain, mode = static_cast<int>(c.activations);
  const int64_t size =
      tfquant_cuda_scratch_bytes(type, m, layout.num_bits, layout.group_size, k, n, mode);
  std::unique_ptr<uint8_t[]> scratch(new uint8_t[static_cast<size_t>(size)]);
  const void* const x_at = c.brain ? static_cast<const void*>(brain_memory.get()) : x_memory.get();
  void* const y_at = c.brain ? static_cast<void*>(brain_y.get()) : y.get();
  const int code =
      tfquant_cuda_matmul(type, m, x_at, layout.num_bits, layout.group_size, k, n, w.bytes.get(),
                          layout.bytes(), mode, c.x_scale, c.zero_point, args.bias,
                          static_cast<int>(c.fused), y_at, scratch.get(), size, nullptr);
  Expect(code == 0, Describe(args) + ": " + tfquant_cuda_error());
  if (code != 0) return;
  ExpectReference(args, w, x.data(), "GPU", c.exact,
                  [&](size_t i) { return c.brain ? BrainToFloat(brain_y[i]) : y[i]; });
}

const struct {
  int num_bits;
  int64_t group_size;
} kFormats[] = {{8, 0},   {8, 32}, {8, 128}, {4, 0},  {4, 32},  {4, 64},
                {4, 128}, {2, 0},  {2, 32},  {2, 64}, {2, 128}, {1, 0}};

// Rows on both sides of each change of kernel and of tile.
const int64_t kRowCounts[] = {1, 2, 4, 5, 16, 17, 31, 33, 64, 65, 130};
const int64_t kDepths[] = {1, 31, 32, 33, 63, 64, 65, 127, 129, 160, 289, 545};
const int64_t kColumnCounts[] = {1, 3, 4, 15, 16, 17, 31, 33, 48, 64, 65, 127, 129, 132};

template <class T, size_t kCount>
T Pick(const T (&values)[kCount]) {
  return values[Uniform(0, static_cast<int>(kCount) - 1)];
}

void CheckMatmuls(int rounds) {
  for (const auto& format : kFormats) {
    for (int64_t m : kRowCounts) {
      for (int round = 0; round < rounds; ++round) {
        const int64_t k = Pick(kDepths), n = Pick(kColumnCounts);
        const Weights w =
            MakeWeights(format.num_bits, format.group_size, k, n, Values::kRandom, false);
        for (int mode = 0; mode < 4; ++mode) {
          Case c;
          c.m = m;
          c.activations = static_cast<Activations>(mode);
          if (c.activations == Activations::kPerGroup && format.group_size == 0) continue;
          c.fused = static_cast<Fused>(Uniform(0, kFusedCount - 1));
          c.bias = Uniform(0, 1);
          c.brain = Uniform(0, 1);
          CheckMatmul(w, c, Normal(m * k));
        }
      }
    }
  }
}

// The largest products there are, and integers that a float32 holds: nothing may saturate or round.
void CheckExtremes() {
  for (const auto& format : kFormats) {
    for (int64_t m : {3, 9, 70}) {
      for (Values values : {Values::kLowest, Values::kHighest, Values::kRandom}) {
        const int64_t k = 289, n = 20;
        const Weights w = MakeWeights(format.num_bits, format.group_size, k, n, values, true);
        Case c;
        c.m = m;
        c.activations = Activations::kStatic;
        c.x_scale = 1.0f;
        c.zero_point = 0;
        c.bias = false;
        c.exact = true;
        for (float value : {-128.0f, 127.0f}) {
          CheckMatmul(w, c, std::vector<float>(static_cast<size_t>(m * k), value));
        }
        std::vector<float> x(static_cast<size_t>(m * k));
        for (float& v : x) v = static_cast<float>(Uniform(-128, 127));
        CheckMatmul(w, c, x);
        // Integers that brain floats hold, too.
        c.activations = Activations::kFloat;
        CheckMatmul(w, c, x);
      }
    }
  }
}

void CheckRowsThatAreNotFinite() {
  for (const auto& format : kFormats) {
    if (format.num_bits == 1) continue;
    for (int64_t m : {3, 9, 70}) {
      const int64_t k = 96, n = 20;
      const Weights w =
          MakeWeights(format.num_bits, format.group_size, k, n, Values::kHighest, false);
      for (int mode = 0; mode < 4; ++mode) {
        Case c;
        c.m = m;
        c.activations = static_cast<Activations>(mode);
        if (c.activations == Activations::kPerGroup && format.group_size == 0) continue;
        std::vector<float> x = Normal(m * k);
        std::fill(x.begin(), x.begin() + k, 0.0f);
        x[static_cast<size_t>(k + 40)] = NAN;
        x[static_cast<size_t>(2 * k + 95)] = NAN;
        x[static_cast<size_t>(2 * k)] = INFINITY;
        CheckMatmul(w, c, x);
      }
    }
  }
}

void CheckPlainRows() {
  for (int num_bits : {8, 4, 2, 1}) {
    for (int64_t columns : {1, 3, 4, 7, 33, 130, 1028, 1031}) {
      const int64_t rows = 3, width = PlainRowBytes(columns, num_bits);
      for (int64_t column_group : {int64_t{1}, int64_t{3}, int64_t{32}, columns}) {
        for (int64_t row_group : {1, 2}) {
          const int64_t scales =
              (rows + row_group - 1) / row_group * ((columns + column_group - 1) / column_group);
          std::vector<uint8_t> v(static_cast<size_t>(rows * columns));
          for (uint8_t& value : v) value = static_cast<uint8_t>(Uniform(0, (1 << num_bits) - 1));
          std::unique_ptr<uint8_t[]> packed(new uint8_t[static_cast<size_t>(rows * width)]);
          std::unique_ptr<uint8_t[]> again(new uint8_t[static_cast<size_t>(rows * width)]);
          PackPlain(v.data(), rows, columns, num_bits, packed.get());
          std::vector<float> scale_values = Normal(scales), zero_values(scale_values.size());
          for (float& s : scale_values) s = std::fabs(s) + 0.01f;
          for (float& z : zero_values) z = static_cast<float>(Uniform(0, (1 << num_bits) - 1));
          const auto scale = Exactly(scale_values), zero = Exactly(zero_values);
          const auto book = Exactly(Normal(int64_t{1} << num_bits));
          for (int kind = 0; kind < 3; ++kind) {
            std::unique_ptr<float[]> real(new float[v.size()]);
            const float* const zero_point = kind == 1 ? zero.get() : nullptr;
            const float* const codebook = kind == 2 ? book.get() : nullptr;
            const std::string what = "dequantize " + std::to_string(num_bits) + " bits, " +
                                     std::to_string(columns) + " columns, kind " +
                                     std::to_string(kind);
            int code = tfquant_cuda_dequantize(num_bits, rows, columns, row_group, column_group,
                                               packed.get(), rows * width, scale.get(), scales,
                                               zero_point, codebook, 0, real.get(), nullptr);
            Expect(code == 0, what + ": " + tfquant_cuda_error());
            const int64_t in_row = (columns + column_group - 1) / column_group;
            for (int64_t i = 0; i < rows * columns; ++i) {
              const int64_t g = i / columns / row_group * in_row + i % columns / column_group;
              const float z =
                  zero_point ? zero[static_cast<size_t>(g)] : static_cast<float>(Offset(num_bits));
              const size_t at = static_cast<size_t>(i);
              const float wanted = scale[static_cast<size_t>(g)] *
                                   (codebook ? book[v[at]] : static_cast<float>(v[at]) - z);
              if (real[at] != wanted) {
                Expect(false, what);
                break;
              }
            }
            if (kind == 2) continue;
            code = tfquant_cuda_quantize(num_bits, rows, columns, row_group, column_group,
                                         real.get(), scale.get(), scales, zero_point, again.get(),
                                         rows * width, nullptr);
            Expect(code == 0 &&
                       !std::memcmp(packed.get(), again.get(), static_cast<size_t>(rows * width)),
                   what + ": quantize inverts it");
          }
        }
      }
    }
  }
}

void CheckUnpack() {
  for (const auto& format : kFormats) {
    for (int64_t k : kDepths) {
      const int64_t n = Pick(kColumnCounts);
      const Weights w =
          MakeWeights(format.num_bits, format.group_size, k, n, Values::kRandom, false);
      std::vector<float> expected(w.q.size());
      DequantizeMatmul(w.bytes.get(), w.layout, expected.data());
      std::unique_ptr<float[]> found(new float[w.q.size()]);
      const int code = tfquant_cuda_unpack(format.num_bits, format.group_size, k, n, w.bytes.get(),
                                           w.layout.bytes(), found.get(), nullptr);
      Expect(code == 0 && std::equal(expected.begin(), expected.end(), found.get()),
             "unpack w" + std::to_string(format.num_bits) + " k" + std::to_string(k) + " n" +
                 std::to_string(n));
    }
  }
}

// A buffer of the right size and the wrong header gives NaN, not numbers.
void CheckForeignHeader() {
  for (int64_t m : {2, 9, 70}) {
    for (int num_bits : {4, 1}) {
      const Weights w = MakeWeights(num_bits, 0, 64, 20, Values::kRandom, false);
      w.bytes[16] ^= 1;
      const auto x = Exactly(Normal(m * 64));
      std::unique_ptr<float[]> y(new float[static_cast<size_t>(m * 20)]);
      const int64_t size = tfquant_cuda_scratch_bytes(0, m, num_bits, 0, 64, 20, 0);
      std::unique_ptr<uint8_t[]> scratch(new uint8_t[static_cast<size_t>(size)]);
      const int code =
          tfquant_cuda_matmul(0, m, x.get(), num_bits, 0, 64, 20, w.bytes.get(), w.layout.bytes(),
                              0, 1, 0, nullptr, 0, y.get(), scratch.get(), size, nullptr);
      Expect(code == 0 && std::all_of(y.get(), y.get() + m * 20, [](float v) { return v != v; }),
             "a foreign header gives NaN");
    }
  }
}

}  // namespace

int Run(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1;
  CheckMatmuls(rounds);
  CheckExtremes();
  CheckRowsThatAreNotFinite();
  CheckPlainRows();
  CheckUnpack();
  CheckForeignHeader();
  return Finish();
}

}  // namespace tfquant

int main(int argc, char** argv) { return tfquant::Run(argc, argv); }
