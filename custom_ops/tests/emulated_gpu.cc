// A GPU in software: runs kernels.cuh on the CPU, so that its indices, its synchronization and its
// use of memory can be checked where there is no GPU. Linked in place of nvcc_launch.cu, it makes a
// library with the C ABI of cuda_api.h whose device pointers are ordinary ones.
//
// The 256 threads of a block are fibers on one thread, and blocks run one after another. A fiber
// runs until it waits: at a barrier, or in an instruction that a whole warp takes part in. Who runs
// next is chosen by TFQUANT_EMULATED_ORDER: `ascending`, `descending`, or a number that seeds a
// shuffle; a missing barrier gives wrong values in one of them. Asynchronous copies happen as late
// as they may, in WaitCopies. Shared memory is static, so AddressSanitizer guards its ends; a
// misaligned load is seen by UndefinedBehaviorSanitizer. Lanes that part ways before a warp's
// instruction, and threads that leave before a barrier, abort.
//
// Fragments are those of the PTX ISA's pictures, written here as loops over whole small matrices.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "../core/cuda/kernel_list.h"
#include "../core/cuda/launch.h"
#include "../core/float16.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define TFQUANT_LEAVE(save, stack, size) __sanitizer_start_switch_fiber(save, stack, size)
#define TFQUANT_ENTER(save, stack, size) __sanitizer_finish_switch_fiber(save, stack, size)
#else
#define TFQUANT_LEAVE(save, stack, size)
#define TFQUANT_ENTER(save, stack, size)
// swapcontext asks the system each time; once a fiber runs, a jump does the same without. (The
// sanitizer takes a jump for a return, so it gets the slow one.)
#define TFQUANT_FAST_SWITCH
#endif

namespace tfquant {
namespace {

constexpr int kThreadsOfBlock = kGpuThreads, kWarpLanes = 32;
constexpr int kWarpsOfBlock = kThreadsOfBlock / kWarpLanes;
constexpr size_t kStackBytes = 256 * 1024;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

enum class State { kReady, kAtBarrier, kInWarp, kDone };

// An instruction that the lanes of a warp carry out together.
enum class Collective { kShuffle, kBallot, kBytes, kBrains, kBits };

struct Exchange {
  Collective kind;
  int arrived = 0;
  uint32_t in[kWarpLanes][10];
  uint32_t out[kWarpLanes][4];
};

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  bool started = false;
  std::unique_ptr<uint8_t[]> stack{new uint8_t[kStackBytes]};
  void* sanitizer = nullptr;
  State state = State::kDone;
  std::vector<Copy> open;                // since the last CommitCopies
  std::deque<std::vector<Copy>> groups;  // committed
};

// Everything about the block that runs; there is one at a time.
struct Block {
  std::vector<Fiber> fibers{kThreadsOfBlock};
  Exchange warps[kWarpsOfBlock];
  uint64_t ready[kThreadsOfBlock / 64] = {};  // a bit for each fiber in State::kReady
  ucontext_t scheduler;
  jmp_buf scheduler_jump;
  void* scheduler_sanitizer = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  int thread = 0;
  int64_t index = 0;
  std::function<void()> body;
  std::mt19937 random;
  int order = 0;  // 0 ascending, 1 descending, 2 shuffled
};

Block& TheBlock() {
  static Block* const block = new Block;
  return *block;
}

void SetState(int thread, State state) {
  Block& b = TheBlock();
  b.fibers[static_cast<size_t>(thread)].state = state;
  const uint64_t bit = uint64_t{1} << (thread % 64);
  uint64_t& word = b.ready[thread / 64];
  word = state == State::kReady ? word | bit : word & ~bit;
}

void Yield() {
  Block& b = TheBlock();
  Fiber& fiber = b.fibers[static_cast<size_t>(b.thread)];
#ifdef TFQUANT_FAST_SWITCH
  if (_setjmp(fiber.jump) == 0) _longjmp(b.scheduler_jump, 1);
#else
  const bool done = fiber.state == State::kDone;
  TFQUANT_LEAVE(done ? nullptr : &fiber.sanitizer, b.scheduler_stack, b.scheduler_stack_size);
  swapcontext(&fiber.context, &b.scheduler);
  TFQUANT_ENTER(fiber.sanitizer, &b.scheduler_stack, &b.scheduler_stack_size);
#endif
}

void Resume(Fiber* fiber) {
  Block& b = TheBlock();
#ifdef TFQUANT_FAST_SWITCH
  if (_setjmp(b.scheduler_jump) != 0) return;
  if (fiber->started) _longjmp(fiber->jump, 1);
  fiber->started = true;
#endif
  TFQUANT_LEAVE(&b.scheduler_sanitizer, fiber->stack.get(), kStackBytes);
  swapcontext(&b.scheduler, &fiber->context);
  TFQUANT_ENTER(b.scheduler_sanitizer, nullptr, nullptr);
}

void FiberMain() {
  Block& b = TheBlock();
  TFQUANT_ENTER(nullptr, &b.scheduler_stack, &b.scheduler_stack_size);
  b.body();
  if (!b.fibers[static_cast<size_t>(b.thread)].open.empty()) {
    Fail("a thread ends with copies that were never committed");
  }
  SetState(b.thread, State::kDone);
  Yield();
}

// The next fiber to run, or -1: the first that is ready, the last, or the first behind a place
// drawn by chance.
int NextReady(Block* b) {
  constexpr int kWords = kThreadsOfBlock / 64;
  if (b->order == 1) {
    for (int i = kWords - 1; i >= 0; --i) {
      if (b->ready[i]) return 64 * i + 63 - __builtin_clzll(b->ready[i]);
    }
    return -1;
  }
  const int start = b->order == 2 ? static_cast<int>(b->random() % kThreadsOfBlock) : 0;
  for (int i = 0; i <= kWords; ++i) {
    const int word = (start / 64 + i) % kWords;
    const uint64_t behind = ~uint64_t{0} << (start % 64);
    const uint64_t bits =
        b->ready[word] & (i == 0 ? behind : (i == kWords ? ~behind : ~uint64_t{0}));
    if (bits) return 64 * word + __builtin_ctzll(bits);
  }
  return -1;
}

void RunBlock(int64_t index, const std::function<void()>& body) {
  Block& b = TheBlock();
  b.index = index;
  b.body = body;
  for (Exchange& warp : b.warps) warp.arrived = 0;
  for (int i = 0; i < kThreadsOfBlock; ++i) {
    Fiber& fiber = b.fibers[static_cast<size_t>(i)];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, FiberMain, 0);
    fiber.started = false;
    fiber.groups.clear();
    SetState(i, State::kReady);
  }
  for (;;) {
    const int next = NextReady(&b);
    if (next < 0) {
      int waiting = 0, done = 0;
      for (const Fiber& fiber : b.fibers) {
        waiting += fiber.state == State::kAtBarrier;
        done += fiber.state == State::kDone;
      }
      if (done == kThreadsOfBlock) return;
      if (waiting != kThreadsOfBlock) Fail("some threads wait where others never come");
      for (int i = 0; i < kThreadsOfBlock; ++i) SetState(i, State::kReady);
      continue;
    }
    b.thread = next;
    Resume(&b.fibers[static_cast<size_t>(next)]);
  }
}

// --- what the lanes do together -----------------------------------------------------------------

// Of the `registers` of a row (a) or column (b) along k, where a lane's lie; see intrinsics.cuh.
struct Fragments {
  // a[row][register], b[column][register]
  uint32_t a[16][8], b[8][8];

  explicit Fragments(const Exchange& x) {
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      a[g][t] = x.in[lane][0];
      a[g + 8][t] = x.in[lane][1];
      a[g][t + 4] = x.in[lane][2];
      a[g + 8][t + 4] = x.in[lane][3];
      b[g][t] = x.in[lane][4];
      b[g][t + 4] = x.in[lane][5];
    }
  }
};

template <class T, class Dot>
void MultiplyFragments(Exchange* x, const Dot& dot) {
  const Fragments f(*x);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
      T c;
      std::memcpy(&c, &x->in[lane][6 + e], sizeof(c));
      for (int i = 0; i < 8; ++i) c = dot(f.a[row][i], f.b[column][i], c);
      std::memcpy(&x->out[lane][e], &c, sizeof(c));
    }
  }
}

int DotOfBytes(uint32_t a, uint32_t b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  }
  return sum;
}

float DotOfBrains(uint32_t a, uint32_t b, float sum) {
  for (int i = 0; i < 2; ++i) {
    sum += BrainToFloat(static_cast<uint16_t>(a >> (16 * i))) *
           BrainToFloat(static_cast<uint16_t>(b >> (16 * i)));
  }
  return sum;
}

int DifferingBits(uint32_t a, uint32_t b, int sum) { return sum + __builtin_popcount(a ^ b); }

void Carry(Exchange* x) {
  switch (x->kind) {
    case Collective::kShuffle:
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        x->out[lane][0] = x->in[lane ^ static_cast<int>(x->in[lane][1])][0];
      }
      return;
    case Collective::kBallot: {
      uint32_t bits = 0;
      for (int lane = 0; lane < kWarpLanes; ++lane) bits |= x->in[lane][0] << lane;
      for (int lane = 0; lane < kWarpLanes; ++lane) x->out[lane][0] = bits;
      return;
    }
    case Collective::kBytes:
      return MultiplyFragments<int>(x, DotOfBytes);
    case Collective::kBrains:
      return MultiplyFragments<float>(x, DotOfBrains);
    case Collective::kBits:
      return MultiplyFragments<int>(x, DifferingBits);
  }
}

// Gives `in` to the warp and returns this lane's part of the result. The result stays until all
// lanes have come to the next instruction, so that all have read it.
const uint32_t* Together(Collective kind, const uint32_t* in, size_t words) {
  Block& b = TheBlock();
  const int first = b.thread / kWarpLanes * kWarpLanes, lane = b.thread % kWarpLanes;
  Exchange& x = b.warps[b.thread / kWarpLanes];
  if (x.arrived > 0 && x.kind != kind) Fail("lanes of a warp are at different instructions");
  x.kind = kind;
  std::memcpy(x.in[lane], in, words * 4);
  if (++x.arrived < kWarpLanes) {
    SetState(b.thread, State::kInWarp);
    Yield();
    return x.out[lane];
  }
  Carry(&x);
  x.arrived = 0;
  for (int i = 0; i < kWarpLanes; ++i) SetState(first + i, State::kReady);
  return x.out[lane];
}

template <class T>
void MultiplyTogether(Collective kind, T (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t in[10] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  std::memcpy(&in[6], c, 16);
  std::memcpy(c, Together(kind, in, 10), 16);
}

}  // namespace

// --- the functions of intrinsics.cuh ------------------------------------------------------------

#define TFQUANT_DEVICE inline
#define TFQUANT_SHARED static

inline int ThreadIndex() { return TheBlock().thread; }
inline long long BlockIndex() { return TheBlock().index; }

inline void Barrier() {
  SetState(TheBlock().thread, State::kAtBarrier);
  Yield();
}

inline int RoundToInt(float value) { return static_cast<int>(std::nearbyint(value)); }
inline float Multiply(float a, float b) { return a * b; }
inline int CountBits(unsigned value) { return __builtin_popcount(value); }

inline unsigned ByteSelect(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned from = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * from) & 255) << (8 * i);
  }
  return result;
}

inline int DotBytes(unsigned a, unsigned b, int sum) { return DotOfBytes(a, b, sum); }

template <class T>
inline T ShuffleXor(T value, int mask) {
  static_assert(sizeof(T) == 4, "a register");
  uint32_t in[2] = {0, static_cast<uint32_t>(mask)};
  std::memcpy(&in[0], &value, 4);
  std::memcpy(&value, Together(Collective::kShuffle, in, 2), 4);
  return value;
}

inline unsigned Ballot(bool value) {
  const uint32_t in[1] = {value};
  return *Together(Collective::kBallot, in, 1);
}

inline void CopyAsync(void* shared, const void* global) {
  for (const void* pointer : {static_cast<const void*>(shared), global}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16) Fail("a copy is not aligned");
  }
  Block& b = TheBlock();
  b.fibers[static_cast<size_t>(b.thread)].open.push_back({shared, global});
}

inline void CommitCopies() {
  Fiber& fiber = TheBlock().fibers[static_cast<size_t>(TheBlock().thread)];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

template <int kPending>
inline void WaitCopies() {
  Fiber& fiber = TheBlock().fibers[static_cast<size_t>(TheBlock().thread)];
  while (fiber.groups.size() > static_cast<size_t>(kPending)) {
    for (const Copy& copy : fiber.groups.front()) std::memcpy(copy.to, copy.from, 16);
    fiber.groups.pop_front();
  }
}

inline unsigned AddBrainPairs(unsigned a, unsigned b) {
  unsigned sum = 0;
  for (int i = 0; i < 2; ++i) {
    const float exact = BrainToFloat(static_cast<uint16_t>(a >> (16 * i))) +
                        BrainToFloat(static_cast<uint16_t>(b >> (16 * i)));
    const uint16_t brain = FloatToBrain(exact);
    if (BrainToFloat(brain) != exact) Fail("a sum of brain floats is not exact");
    sum |= static_cast<unsigned>(brain) << (16 * i);
  }
  return sum;
}

inline void MultiplyBytes(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MultiplyTogether(Collective::kBytes, c, a, b);
}
inline void MultiplyBrains(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MultiplyTogether(Collective::kBrains, c, a, b);
}
inline void CountDifferences(int (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  MultiplyTogether(Collective::kBits, c, a, b);
}

}  // namespace tfquant

#include "../core/cuda/kernels.cuh"

namespace tfquant {

std::string LaunchKernel(const std::string& kernel, int64_t blocks, const GpuArguments& arguments,
                         void* stream) {
  static_cast<void>(stream);
  using Run = void (*)(const GpuArguments&);
#define TFQUANT_ENTRY(...) {#__VA_ARGS__, &__VA_ARGS__::Run},
  static const auto* const kernels =
      new std::map<std::string, Run>{TFQUANT_GPU_KERNELS(TFQUANT_ENTRY)};
#undef TFQUANT_ENTRY
  const auto found = kernels->find(kernel);
  if (found == kernels->end()) return "There is no GPU kernel " + kernel + ".";
  static std::mutex* const mutex = new std::mutex;
  const std::lock_guard<std::mutex> lock(*mutex);
  const char* const order = std::getenv("TFQUANT_EMULATED_ORDER");
  Block& b = TheBlock();
  b.order = order == nullptr || !std::strcmp(order, "ascending")
                ? 0
                : (!std::strcmp(order, "descending") ? 1 : 2);
  if (b.order == 2) b.random.seed(static_cast<unsigned>(std::atoi(order)));
  for (int64_t i = 0; i < blocks; ++i) RunBlock(i, [&] { found->second(arguments); });
  return "";
}

std::string DescribeGpu() { return "emulated on the CPU"; }

}  // namespace tfquant
