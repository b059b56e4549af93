// What core_test.cc and gpu_test.cc share: expectations, random values, packed weights, and what to
// hold a matmul against.
#ifndef TFQUANT_CUSTOM_OPS_TESTS_TEST_CASES_H_
#define TFQUANT_CUSTOM_OPS_TESTS_TEST_CASES_H_

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../core/args.h"
#include "../core/pack.h"
#include "../core/reference_matmul.h"

namespace tfquant {
namespace {

int failures = 0;

void Expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// The last words of a test program, and its exit code.
int Finish() {
  std::printf(failures ? "%d failures\n" : "all passed\n", failures);
  return failures != 0;
}

std::mt19937 rng(7);

int Uniform(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); }

std::vector<float> Normal(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(rng);
  return values;
}

enum class Values { kRandom, kLowest, kHighest };

struct Weights {
  PackedLayout layout;
  std::vector<int8_t> q;
  std::vector<float> scale;          // as the kernels see it
  std::unique_ptr<uint8_t[]> bytes;  // of exactly the size they need
};

Weights MakeWeights(int num_bits, int64_t group_size, int64_t k, int64_t n,
                    Values values = Values::kRandom, bool ones = false) {
  Weights w;
  Expect(MakeLayout(num_bits, group_size, k, n, &w.layout).empty(), "layout");
  w.q.resize(static_cast<size_t>(k * n));
  const int low = num_bits == 1 ? 0 : -Offset(num_bits), high = num_bits == 1 ? 1 : -low - 1;
  for (int8_t& q : w.q) {
    int value = values == Values::kLowest ? low : high;
    if (values == Values::kRandom) value = Uniform(low, high);
    q = static_cast<int8_t>(num_bits == 1 ? 2 * value - 1 : value);
  }
  w.scale.resize(static_cast<size_t>(w.layout.groups() * n));
  for (float& s : w.scale) s = ones ? 1.0f : std::exp(Normal(1)[0]) * 0.01f;
  w.bytes.reset(new uint8_t[static_cast<size_t>(w.layout.bytes())]);
  Expect(PackMatmul(w.q.data(), w.scale.data(), w.layout, w.bytes.get()).empty(), "pack");
  std::vector<int8_t> q(w.q.size());
  UnpackMatmul(w.bytes.get(), w.layout, q.data(), w.scale.data());
  Expect(q == w.q, "unpack inverts pack");
  return w;
}

std::string Describe(const MatmulArgs& args) {
  return "w" + std::to_string(args.layout.num_bits) + " g" +
         std::to_string(args.layout.group_size) + " m" + std::to_string(args.m) + " k" +
         std::to_string(args.layout.k) + " n" + std::to_string(args.layout.n) + " activations " +
         std::to_string(static_cast<int>(args.activations)) + " fused " +
         std::to_string(static_cast<int>(args.fused)) +
         (args.type == DataType::kBFloat16 ? " bfloat16" : "");
}

// Compares y, `value(i)`, with the reference on the float values `x`. Loose beside the bounds that
// the Python tests state, unless `exact`: these programs are after memory and indices.
template <class Value>
void ExpectReference(const MatmulArgs& args, const Weights& w, const float* x,
                     const std::string& name, bool exact, const Value& value) {
  std::vector<double> expected(static_cast<size_t>(args.m * args.layout.n));
  ReferenceMatmul(x, w.q.data(), w.scale.data(), args.m, args.layout.k, args.layout.n,
                  args.layout.num_bits, args.layout.group_size, args.activations, args.x_scale,
                  args.zero_point, args.bias, args.fused, expected.data());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double found = value(i);
    if (std::isnan(expected[i]) && std::isnan(found)) continue;
    double bound =
        1e-4 * (1 + std::fabs(expected[i])) * std::sqrt(static_cast<double>(args.layout.k));
    if (args.type == DataType::kBFloat16) bound += std::fabs(expected[i]) / 256;
    if (exact) bound = 0;
    if (!(std::fabs(found - expected[i]) <= bound)) {
      return Expect(false, name + " " + Describe(args) + " at " + std::to_string(i) + ": " +
                               std::to_string(found) + " for " + std::to_string(expected[i]));
    }
  }
}

}  // namespace
}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_TESTS_TEST_CASES_H_
