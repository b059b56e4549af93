// Every path that runs here against reference_matmul.h, without TensorFlow or Python; made to run
// under AddressSanitizer and UndefinedBehaviorSanitizer. Buffers have exactly the size they need,
// so a read beyond one is seen. The commands are in custom_ops/README.md.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../core/dequantize.h"
#include "../core/float16.h"
#include "../core/matmul.h"
#include "../core/path.h"
#include "../core/thread_pool.h"
#include "test_cases.h"

namespace tfquant {
namespace {

void CheckShape(const Kernels& kernels, const std::string& name, const Weights& w, int64_t m,
                Activations activations, const ParallelFor& parallel_for) {
  const int64_t k = w.layout.k, n = w.layout.n;
  const std::vector<float> x = Normal(m * k), bias = Normal(n);
  std::vector<float> y(static_cast<size_t>(m * n));
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
  ExpectReference(args, w, x.data(), name, false, [&](size_t i) { return y[i]; });
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
  const int64_t sizes[] = {1,  2,  3,  7,  8,  9,   15,  16,  17,  31,
                           32, 33, 63, 64, 65, 127, 128, 129, 521, 2049};
  for (int i = 0; PathAt(i) != nullptr; ++i) {
    const Path& path = *PathAt(i);
    if (!path.Supported()) {
      std::printf("%s: not supported here\n", path.name);
      continue;
    }
    const Kernels& kernels = path.kernels();
    CheckPlainRows(kernels, path.name);
    for (int round = 0; round < rounds; ++round) {
      for (int num_bits : {8, 4, 2, 1}) {
        for (int64_t group_size : {0, 32, 64, 128}) {
          if (num_bits == 1 && group_size) continue;
          for (int64_t k : sizes) {
            const int64_t n = sizes[Uniform(0, 17)];
            const int64_t m = Uniform(0, 19) ? sizes[Uniform(0, 17)] : 300;  // several stripes
            const Weights w = MakeWeights(num_bits, group_size, k, n);
            for (int mode = 0; mode < 4; ++mode) {
              const Activations activations = static_cast<Activations>(mode);
              if (activations == Activations::kPerGroup && !group_size) continue;
              CheckShape(kernels, path.name, w, m, activations,
                         Uniform(0, 1) ? threads : ParallelFor(SerialFor));
            }
          }
        }
      }
    }
    std::printf("%s: done\n", path.name);
  }
  return Finish();
}

}  // namespace tfquant

int main(int argc, char** argv) { return tfquant::Run(argc, argv); }
