// Every path that runs here against reference_matmul.h, without TensorFlow or Python; made to run
// under AddressSanitizer and UndefinedBehaviorSanitizer. Buffers have exactly the size they need,
// so a read beyond one is seen. The commands are in custom_ops/README.md.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../core/dequantize.h"
#include "../core/float16.h"
#include "../core/pack.h"
#include "../core/path.h"
#include "../core/reference_matmul.h"
#include "../core/thread_pool.h"

namespace tfquant {
namespace {

int failures = 0;

void Expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

std::mt19937 rng(7);

int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }

std::vector<float> Normal(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(rng);
  return values;
}

struct Weights {
  PackedLayout layout;
  std::vector<int8_t> q;
  std::vector<float> scale;  // as the kernels see it
  std::unique_ptr<uint8_t[]> bytes;
};

Weights MakeWeights(int num_bits, int64_t group_size, int64_t k, int64_t n) {
  Weights w;
  Expect(MakeLayout(num_bits, group_size, k, n, &w.layout).empty(), "layout");
  w.q.resize(static_cast<size_t>(k * n));
  const int low = num_bits == 1 ? 0 : -Offset(num_bits), high = num_bits == 1 ? 1 : -low - 1;
  for (int8_t& q : w.q) {
    q = static_cast<int8_t>(Uniform(low, high));
    if (num_bits == 1) q = static_cast<int8_t>(2 * q - 1);
  }
  w.scale.resize(static_cast<size_t>(w.layout.groups() * n));
  for (float& s : w.scale) s = std::exp(Normal(1)[0]) * 0.01f;
  w.bytes.reset(new uint8_t[static_cast<size_t>(w.layout.bytes())]);
  Expect(PackMatmul(w.q.data(), w.scale.data(), w.layout, w.bytes.get()).empty(), "pack");
  std::vector<int8_t> q(w.q.size());
  UnpackMatmul(w.bytes.get(), w.layout, q.data(), w.scale.data());
  Expect(q == w.q, "unpack inverts pack");
  return w;
}

void CheckShape(const Kernels& kernels, const std::string& name, const Weights& w, int64_t m,
                Activations activations, const ParallelFor& parallel_for) {
  const int64_t k = w.layout.k, n = w.layout.n;
  const std::vector<float> x = Normal(m * k), bias = Normal(n);
  std::vector<float> y(static_cast<size_t>(m * n));
  std::vector<double> expected(y.size());
  MatmulArgs args;
  args.m = m;
  args.x = x.data();
  args.layout = w.layout;
  args.weights = w.bytes.get();
  args.weights_bytes = w.layout.bytes();
  args.activations = activations;
  args.x_scale = 0.03f;
  args.zero_point = -7;
  args.bias = bias.data();
  args.fused = static_cast<Fused>(Uniform(0, kFusedCount - 1));
  args.y = y.data();
  const std::string error = CheckMatmul(args);
  Expect(error.empty(), error);
  if (!error.empty()) return;
  Matmul(args, kernels, parallel_for);
  ReferenceMatmul(x.data(), w.q.data(), w.scale.data(), m, k, n, w.layout.num_bits,
                  w.layout.group_size, activations, args.x_scale, args.zero_point, args.bias,
                  args.fused, expected.data());
  for (size_t i = 0; i < y.size(); ++i) {
    // Loose beside the bound that the Python tests state; this test is after memory.
    const double bound = 1e-4 * (1 + std::fabs(expected[i])) * std::sqrt(static_cast<double>(k));
    if (!(std::fabs(y[i] - expected[i]) <= bound)) {
      return Expect(false, name + " w" + std::to_string(w.layout.num_bits) + " g" +
                               std::to_string(w.layout.group_size) + " m" + std::to_string(m) +
                               " k" + std::to_string(k) + " n" + std::to_string(n) +
                               " activations " + std::to_string(static_cast<int>(activations)) +
                               ": " + std::to_string(y[i]) + " for " + std::to_string(expected[i]));
    }
  }
}

void CheckPlainRows(const Kernels& kernels, const std::string& name) {
  for (int num_bits : {8, 4, 2, 1}) {
    for (int64_t columns : {1, 7, 16, 33, 130}) {
      const int64_t rows = 3, width = PlainRowBytes(columns, num_bits);
      for (int64_t column_group : {int64_t{1}, int64_t{32}, columns}) {
        const int64_t scales = rows * ((columns + column_group - 1) / column_group);
        std::vector<uint8_t> v(static_cast<size_t>(rows * columns));
        for (uint8_t& value : v) value = static_cast<uint8_t>(Uniform(0, (1 << num_bits) - 1));
        std::vector<uint8_t> packed(static_cast<size_t>(rows * width)), again(packed.size());
        PackPlain(v.data(), rows, columns, num_bits, packed.data());
        std::vector<float> scale(static_cast<size_t>(scales), 0.5f), real(v.size());
        PlainArgs args;
        args.num_bits = num_bits;
        args.rows = rows;
        args.columns = columns;
        args.column_group = column_group;
        args.packed = packed.data();
        args.packed_bytes = rows * width;
        args.scale = scale.data();
        args.scales = scales;
        args.real = real.data();
        const std::string error = CheckPlain(args);
        Expect(error.empty(), error);
        DequantizePlain(args, kernels, SerialFor);
        for (size_t i = 0; i < v.size(); ++i) {
          if (real[i] != 0.5f * static_cast<float>(v[i] - Offset(num_bits))) {
            return Expect(false, name + " dequantize " + std::to_string(num_bits));
          }
        }
        QuantizePlain(args, real.data(), again.data(), SerialFor);
        Expect(again == packed, name + " quantize inverts dequantize");
      }
    }
  }
}

void CheckHalves() {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    if (!std::isnan(value)) Expect(FloatToHalf(value) == half, "half " + std::to_string(bits));
  }
  Expect(FloatToHalf(65519.0f) == 0x7bff && FloatToHalf(65520.0f) == 0x7c00, "half overflow");
  Expect(FloatToHalf(1.00048828125f) == 0x3c00, "half ties to even");
}

}  // namespace

int Run(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1;
  CheckHalves();
  ThreadPool pool(3);
  const ParallelFor threads = [&](int64_t count, int64_t cost,
                                  const std::function<void(int64_t, int64_t)>& body) {
    pool.For(count, cost + 100000, body);
  };
  const int64_t sizes[] = {1,  2,  3,  7,  8,  9,   15,  16,  17, 31,
                           32, 33, 63, 64, 65, 127, 128, 129, 521};
  for (int i = 0; i < kPaths; ++i) {
    const Path path = static_cast<Path>(i);
    if (!PathSupported(path)) {
      std::printf("%s: not supported here\n", PathName(path));
      continue;
    }
    const Kernels& kernels = KernelsOf(path);
    CheckPlainRows(kernels, PathName(path));
    for (int round = 0; round < rounds; ++round) {
      for (int num_bits : {8, 4, 2, 1}) {
        for (int64_t group_size : {0, 32, 64, 128}) {
          if (num_bits == 1 && group_size) continue;
          for (int64_t k : sizes) {
            const int64_t n = sizes[Uniform(0, 17)], m = sizes[Uniform(0, 17)];
            const Weights w = MakeWeights(num_bits, group_size, k, n);
            for (int mode = 0; mode < 4; ++mode) {
              const Activations activations = static_cast<Activations>(mode);
              if (activations == Activations::kPerGroup && !group_size) continue;
              CheckShape(kernels, PathName(path), w, m, activations,
                         Uniform(0, 1) ? threads : ParallelFor(SerialFor));
            }
          }
        }
      }
    }
    std::printf("%s: done\n", PathName(path));
  }
  std::printf(failures ? "%d failures\n" : "all passed\n", failures);
  return failures != 0;
}

}  // namespace tfquant

int main(int argc, char** argv) { return tfquant::Run(argc, argv); }
