// The one place where an instruction set is chosen, once, at run time.
//
// The best path that this processor supports runs, unless the environment variable TFQUANT_PATH
// names one: portable, avx2, avxvnni, avx512, amx, neon. A name that is unknown or not supported
// here is an error that every op reports, not a quiet fallback.
#ifndef TFQUANT_CUSTOM_OPS_CORE_PATH_H_
#define TFQUANT_CUSTOM_OPS_CORE_PATH_H_

#include <string>

#include "kernels.h"

namespace tfquant {

// From the plainest to the one that is preferred.
enum class Path : int { kPortable = 0, kAvx2 = 1, kAvxVnni = 2, kAvx512 = 3, kAmx = 4, kNeon = 5 };
constexpr int kPaths = 6;

const char* PathName(Path path);

// Compiled in, and this processor has the instructions.
bool PathSupported(Path path);

// `path` must be supported.
const Kernels& KernelsOf(Path path);

// The path called `name`; what is wrong with the name in words, or "".
std::string FindPath(const std::string& name, Path* path);

// The path of this process; the answer never changes.
std::string ChosenPath(Path* path);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_PATH_H_
