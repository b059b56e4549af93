// Feeds bytes of no meaning to everything that reads packed data: whatever CheckPacked and
// CheckPlain let through must be read within its bounds. A libFuzzer target; with TFQUANT_FUZZ_MAIN
// it has a main of its own that makes random inputs for as many seconds as its argument says, for
// compilers without libFuzzer. The commands are in custom_ops/README.md.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "../core/dequantize.h"
#include "../core/matmul.h"
#include "../core/pack.h"
#include "../core/path.h"

namespace tfquant {
namespace {

// Takes numbers from the front of the input, zero when it has run out.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  int64_t Number(int64_t below) {
    uint32_t value = 0;
    const size_t count = std::min<size_t>(sizeof(value), size_);
    if (count) std::memcpy(&value, data_, count);
    data_ += count;
    size_ -= count;
    return static_cast<int64_t>(value) % below;
  }
  const uint8_t* data() const { return data_; }
  int64_t size() const { return static_cast<int64_t>(size_); }

 private:
  const uint8_t* data_;
  size_t size_;
};

const Kernels& AnyKernels(Input* in) {
  int count = 0;
  while (PathAt(count) != nullptr) ++count;
  const Path* const path = PathAt(static_cast<int>(in->Number(count)));
  return (path->Supported() ? path : PathAt(0))->kernels();
}

void Packed(Input* in) {
  constexpr int kBits[] = {8, 4, 2, 1, 3, 0};
  constexpr int64_t kGroups[] = {0, 32, 64, 128, 48, -32};
  PackedLayout layout;
  const Kernels& kernels = AnyKernels(in);
  const int num_bits = kBits[in->Number(6)];
  const int64_t group_size = kGroups[in->Number(6)], k = in->Number(200) - 1,
                n = in->Number(80) - 1;
  if (!MakeLayout(num_bits, group_size, k, n, &layout).empty()) return;
  // An exact copy, so that the sanitizer knows its end; now and then with the size or the header
  // that the layout wants, or it would hardly ever be let through.
  const bool fits = in->Number(4) != 0, header = in->Number(8) != 0;
  const int64_t bytes = fits ? layout.bytes() : in->size();
  std::unique_ptr<uint8_t[]> data(new uint8_t[static_cast<size_t>(bytes) + 1]);
  for (int64_t i = 0; i < bytes; ++i) {
    data[static_cast<size_t>(i)] = in->size() ? in->data()[i % in->size()] : 0;
  }
  if (header && bytes >= static_cast<int64_t>(sizeof(PackedHeader))) {
    const PackedHeader wanted = {kPackedMagic, num_bits, group_size, k, n, {}};
    std::memcpy(data.get(), &wanted, sizeof(wanted));
  }
  if (!CheckPacked(data.get(), bytes, layout).empty()) return;
  std::vector<int8_t> q(static_cast<size_t>(k * n));
  std::vector<float> scale(static_cast<size_t>(layout.groups() * n)), weight(q.size());
  UnpackMatmul(data.get(), layout, q.data(), scale.data());
  DequantizeMatmul(data.get(), layout, weight.data());

  MatmulArgs args;
  args.m = in->Number(20);
  std::vector<float> x(static_cast<size_t>(args.m * k)), y(static_cast<size_t>(args.m * n));
  for (float& v : x) {
    const uint32_t bits = static_cast<uint32_t>(in->Number(int64_t{1} << 32));
    std::memcpy(&v, &bits, sizeof(v));
  }
  args.x = x.data();
  args.y = y.data();
  args.layout = layout;
  args.weights = data.get();
  args.weights_bytes = bytes;
  args.activations = static_cast<Activations>(in->Number(5));
  args.fused = static_cast<Fused>(in->Number(kFusedCount + 1));
  args.zero_point = static_cast<int>(in->Number(300)) - 150;
  if (CheckMatmul(args).empty()) Matmul(args, kernels, SerialFor);
}

void Plain(Input* in) {
  constexpr int kBits[] = {8, 4, 2, 1, 3};
  const Kernels& kernels = AnyKernels(in);
  PlainArgs args;
  args.num_bits = kBits[in->Number(5)];
  args.rows = in->Number(9);
  args.columns = in->Number(300);
  args.row_group = in->Number(9);
  args.column_group = in->Number(80);
  const int64_t bytes = in->Number(4) && args.num_bits != 3
                            ? args.rows * PlainRowBytes(args.columns, args.num_bits)
                            : in->size();
  std::unique_ptr<uint8_t[]> data(new uint8_t[static_cast<size_t>(bytes) + 1]);
  for (int64_t i = 0; i < bytes; ++i) {
    data[static_cast<size_t>(i)] = in->size() ? in->data()[i % in->size()] : 0;
  }
  if (args.row_group > 0 && args.column_group > 0) {
    args.scales = (args.rows + args.row_group - 1) / args.row_group *
                  ((args.columns + args.column_group - 1) / args.column_group);
  }
  const std::vector<float> scale(static_cast<size_t>(args.scales), 0.5f);
  std::vector<float> real(static_cast<size_t>(args.rows * args.columns)), book(256, 1.0f);
  book.resize(args.num_bits == 3 ? 1 : size_t{1} << args.num_bits);
  args.packed = data.get();
  args.packed_bytes = bytes;
  args.scale = scale.data();
  args.codebook = in->Number(2) ? book.data() : nullptr;
  args.type = static_cast<DataType>(in->Number(2));
  args.real = real.data();
  if (CheckPlain(args).empty()) DequantizePlain(args, kernels, SerialFor);
}

}  // namespace
}  // namespace tfquant

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tfquant::Input in(data, size);
  if (in.Number(4)) {
    tfquant::Packed(&in);
  } else {
    tfquant::Plain(&in);
  }
  return 0;
}

#ifdef TFQUANT_FUZZ_MAIN
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  std::mt19937 rng(std::random_device{}());
  const auto begin = std::chrono::steady_clock::now();
  int64_t runs = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() <
         seconds) {
    std::vector<uint8_t> data(rng() % 600);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(rng());
    LLVMFuzzerTestOneInput(data.data(), data.size());
    ++runs;
  }
  std::printf("%lld inputs, nothing found\n", static_cast<long long>(runs));
}
#endif
