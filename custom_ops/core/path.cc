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

namespace tfquant {

const Kernels& PortableKernels();
#if defined(__x86_64__)
const Kernels& Avx2Kernels();
const Kernels& AvxVnniKernels();
const Kernels& Avx512Kernels();
const Kernels& AmxKernels();
#elif defined(__aarch64__)
const Kernels& NeonKernels();
#endif

namespace {

struct PathRow {
  const char* name;
  bool (*supported)();
  const Kernels& (*kernels)();
};

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
bool HasDotProduct() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kAsimdDotProduct) != 0;
#else
  return true;  // every Apple arm64
#endif
}
#endif

bool Always() { return true; }

// Indexed by Path; rows without kernels are not compiled in here.
const PathRow kRows[kPaths] = {
    {"portable", Always, PortableKernels},
#if defined(__x86_64__)
    {"avx2", HasAvx2, Avx2Kernels},
    {"avxvnni", HasAvxVnni, AvxVnniKernels},
    {"avx512", HasAvx512, Avx512Kernels},
    {"amx", HasAmx, AmxKernels},
    {"neon", nullptr, nullptr},
#elif defined(__aarch64__)
    {"avx2", nullptr, nullptr},
    {"avxvnni", nullptr, nullptr},
    {"avx512", nullptr, nullptr},
    {"amx", nullptr, nullptr},
    {"neon", HasDotProduct, NeonKernels},
#else
    {"avx2", nullptr, nullptr},
    {"avxvnni", nullptr, nullptr},
    {"avx512", nullptr, nullptr},
    {"amx", nullptr, nullptr},
    {"neon", nullptr, nullptr},
#endif
};

struct Choice {
  Path path = Path::kPortable;
  std::string error;
};

Choice Choose() {
  Choice choice;
  if (const char* name = std::getenv("TFQUANT_PATH"); name != nullptr && *name != '\0') {
    choice.error = FindPath(name, &choice.path);
    if (!choice.error.empty()) choice.error = "Environment variable TFQUANT_PATH: " + choice.error;
    return choice;
  }
  for (int i = 0; i < kPaths; ++i) {
    if (PathSupported(static_cast<Path>(i))) choice.path = static_cast<Path>(i);
  }
  return choice;
}

}  // namespace

const char* PathName(Path path) { return kRows[static_cast<int>(path)].name; }

bool PathSupported(Path path) {
  const PathRow& row = kRows[static_cast<int>(path)];
  return row.supported != nullptr && row.supported();
}

const Kernels& KernelsOf(Path path) { return kRows[static_cast<int>(path)].kernels(); }

std::string FindPath(const std::string& name, Path* path) {
  std::string supported;
  for (int i = 0; i < kPaths; ++i) {
    const Path candidate = static_cast<Path>(i);
    if (!PathSupported(candidate)) continue;
    if (name == PathName(candidate)) {
      *path = candidate;
      return "";
    }
    supported += (supported.empty() ? "" : ", ") + std::string(PathName(candidate));
  }
  return "the path must be one that this processor supports: " + supported + ". Received: " + name +
         ".";
}

std::string ChosenPath(Path* path) {
  static const Choice choice = Choose();
  *path = choice.path;
  return choice.error;
}

}  // namespace tfquant
