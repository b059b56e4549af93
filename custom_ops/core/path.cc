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

#if !defined(TFQUANT_X86_64_PATHS) || !defined(TFQUANT_AARCH64_PATHS)
#error "The compiler must be told the paths, as tfquant/lowbit/build.py and BUILD do."
#endif

namespace tfquant {

#define TFQUANT_DECLARE(name) extern const Path name##_path;
#define TFQUANT_HERE(name) &name##_path,
#define TFQUANT_ELSEWHERE(name) &name##_elsewhere,
#define TFQUANT_DECLARE_ELSEWHERE(name) constexpr Path name##_elsewhere = {#name};

TFQUANT_DECLARE(portable)
#define TFQUANT_PATH TFQUANT_DECLARE
#if defined(__x86_64__)
TFQUANT_X86_64_PATHS
#elif defined(__aarch64__)
TFQUANT_AARCH64_PATHS
#endif
#undef TFQUANT_PATH

namespace {

#define TFQUANT_PATH TFQUANT_DECLARE_ELSEWHERE
#if !defined(__x86_64__)
TFQUANT_X86_64_PATHS
#endif
#if !defined(__aarch64__)
TFQUANT_AARCH64_PATHS
#endif
#undef TFQUANT_PATH

// From the plainest to the one that is preferred.
const Path* const kPaths[] = {
    &portable_path,
#if defined(__x86_64__)
#define TFQUANT_PATH TFQUANT_HERE
    TFQUANT_X86_64_PATHS
#undef TFQUANT_PATH
#define TFQUANT_PATH TFQUANT_ELSEWHERE
    TFQUANT_AARCH64_PATHS
#elif defined(__aarch64__)
#define TFQUANT_PATH TFQUANT_ELSEWHERE
    TFQUANT_X86_64_PATHS
#undef TFQUANT_PATH
#define TFQUANT_PATH TFQUANT_HERE
    TFQUANT_AARCH64_PATHS
#else
#define TFQUANT_PATH TFQUANT_ELSEWHERE
    TFQUANT_X86_64_PATHS
    TFQUANT_AARCH64_PATHS
#endif
};
constexpr int kCount = static_cast<int>(sizeof(kPaths) / sizeof(kPaths[0]));

#if defined(__x86_64__)
bool Has(const CpuidBit& wanted) {
  unsigned words[4] = {};  // eax, ebx, ecx, edx
  return __get_cpuid_count(wanted.leaf, wanted.subleaf, &words[0], &words[1], &words[2],
                           &words[3]) != 0 &&
         ((words[wanted.register_index] >> wanted.bit) & 1u) != 0;
}

// The registers that the operating system saves when it changes threads, as bits of XCR0.
uint64_t SavedRegisters() {
  if (!Has({1, 0, 2, 27})) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// The tile registers are large, so Linux wants to be asked for them, once for all threads.
bool GetsTiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // of <asm/prctl.h>, Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool Meets(const Needs& needs) {
  if (needs.base != nullptr && !Meets(needs.base->needs)) return false;
#ifdef TFQUANT_SIMDE  // what lies beyond the first path is emulated, see tests/simde_avx512.h
  if (needs.base != nullptr) return true;
#endif
  for (const CpuidBit& bit : needs.bits) {
    if (bit.leaf != 0 && !Has(bit)) return false;
  }
  if ((needs.registers & ~SavedRegisters()) != 0) return false;
  return !needs.tiles || GetsTiles();
}
#elif defined(__aarch64__) && defined(__linux__)
bool Meets(const Needs& needs) {
  if (needs.base != nullptr && !Meets(needs.base->needs)) return false;
  return (needs.hwcap & ~getauxval(AT_HWCAP)) == 0;
}
#else
bool Meets(const Needs&) { return true; }  // every Apple arm64 has what there is a path for
#endif

struct Choice {
  const Path* path = &portable_path;
  std::string error;
};

Choice Choose() {
  Choice choice;
  if (const char* name = std::getenv("TFQUANT_PATH"); name != nullptr && *name != '\0') {
    choice.error = FindPath(name, &choice.path);
    if (!choice.error.empty()) choice.error = "Environment variable TFQUANT_PATH: " + choice.error;
    return choice;
  }
  for (const Path* path : kPaths) {
    if (path->Supported()) choice.path = path;
  }
  return choice;
}

}  // namespace

bool Path::Supported() const { return kernels != nullptr && Meets(needs); }

const Path* PathAt(int index) { return index >= 0 && index < kCount ? kPaths[index] : nullptr; }

std::string FindPath(const std::string& name, const Path** path) {
  std::string supported;
  for (const Path* candidate : kPaths) {
    if (!candidate->Supported()) continue;
    if (name == candidate->name) {
      *path = candidate;
      return "";
    }
    supported += (supported.empty() ? "" : ", ") + std::string(candidate->name);
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
