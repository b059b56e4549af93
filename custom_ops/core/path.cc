#include "path.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// Every path, from the plainest to the one that is preferred: on which processors it is compiled,
// its name, and Xyz for its XyzKernels() and for HasXyz(), which looks at the processor.
// clang-format off
#define TFQUANT_PATHS(any, x86_64, aarch64) \
  any(portable, Portable)                   \
  x86_64(avx2, Avx2)                        \
  x86_64(avxvnni, AvxVnni)                  \
  x86_64(avx512, Avx512)                    \
  x86_64(amx, Amx)                          \
  aarch64(neon, Neon)
// clang-format on

namespace tfquant {

#define TFQUANT_DECLARE(name, Xyz) const Kernels& Xyz##Kernels();
TFQUANT_PATHS(TFQUANT_DECLARE, TFQUANT_DECLARE, TFQUANT_DECLARE)
#undef TFQUANT_DECLARE

namespace {

bool HasPortable() { return true; }

#if defined(__x86_64__)
// A bit of cpuid that not every compiler's __builtin_cpu_supports knows by name.
bool HasBit(unsigned leaf, unsigned subleaf, int register_index, int bit) {
  unsigned words[4] = {};  // eax, ebx, ecx, edx
  return __get_cpuid_count(leaf, subleaf, &words[0], &words[1], &words[2], &words[3]) != 0 &&
         ((words[register_index] >> bit) & 1u) != 0;
}

bool HasAvx2() {
  const bool has_f16c = HasBit(1, 0, 2, 29);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
}
#ifdef TFQUANT_SIMDE  // what lies beyond AVX2 is emulated, see tests/simde_avx512.h
bool HasAvxVnni() { return HasAvx2(); }
bool HasAvx512() { return HasAvx2(); }
bool HasAmx() { return HasAvx2(); }
#else
bool HasAvxVnni() { return HasAvx2() && HasBit(7, 1, 0, 4); }
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bitalg");
}

// The tile registers are large, so Linux wants to be asked for them, once for all threads.
bool HasAmx() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of <asm/prctl.h>, Linux 5.16
  const bool has_tiles = HasBit(7, 0, 3, 24);
  const bool has_int8 = HasBit(7, 0, 3, 25), has_bfloat16 = HasBit(7, 0, 3, 22);
  return HasAvx512() && has_tiles && has_int8 && has_bfloat16 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#elif defined(__aarch64__)
bool HasNeon() {                                         // and its dot product extension
#if defined(__linux__)
  constexpr unsigned long kAsimdDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kAsimdDotProduct) != 0;
#else
  return true;  // every Apple arm64
#endif
}
#endif

#define TFQUANT_HERE(name, Xyz) {#name, Has##Xyz, Xyz##Kernels},
#define TFQUANT_ELSEWHERE(name, Xyz) {#name, nullptr, nullptr},
#if defined(__x86_64__)
#define TFQUANT_X86_64 TFQUANT_HERE
#define TFQUANT_AARCH64 TFQUANT_ELSEWHERE
#elif defined(__aarch64__)
#define TFQUANT_X86_64 TFQUANT_ELSEWHERE
#define TFQUANT_AARCH64 TFQUANT_HERE
#else
#define TFQUANT_X86_64 TFQUANT_ELSEWHERE
#define TFQUANT_AARCH64 TFQUANT_ELSEWHERE
#endif
constexpr Path kPaths[] = {TFQUANT_PATHS(TFQUANT_HERE, TFQUANT_X86_64, TFQUANT_AARCH64)};
constexpr int kCount = static_cast<int>(sizeof(kPaths) / sizeof(kPaths[0]));

struct Choice {
  const Path* path = kPaths;
  std::string error;
};

Choice Choose() {
  Choice choice;
  if (const char* name = std::getenv("TFQUANT_PATH"); name != nullptr && *name != '\0') {
    choice.error = FindPath(name, &choice.path);
    if (!choice.error.empty()) choice.error = "Environment variable TFQUANT_PATH: " + choice.error;
    return choice;
  }
  for (const Path& path : kPaths) {
    if (path.Supported()) choice.path = &path;
  }
  return choice;
}

}  // namespace

const Path* PathAt(int index) { return index >= 0 && index < kCount ? &kPaths[index] : nullptr; }

std::string FindPath(const std::string& name, const Path** path) {
  std::string supported;
  for (const Path& candidate : kPaths) {
    if (!candidate.Supported()) continue;
    if (name == candidate.name) {
      *path = &candidate;
      return "";
    }
    supported += (supported.empty() ? "" : ", ") + std::string(candidate.name);
  }
  return "the path must be one that this processor supports: " + supported + ". Received: " + name +
         ".";
}

std::string ChosenPath(const Path** path) {
  static const Choice choice = Choose();
  *path = choice.path;
  return choice.error;
}

}  // namespace tfquant
