// The one place where an instruction set is chosen, once, at run time. The paths are listed in
// sources.bzl; Python asks for their names (c_api.h) and keeps no list of its own.
//
// The best path that this processor supports runs, unless the environment variable TFQUANT_PATH
// names another. A name that is unknown or not supported here is an error that every op reports,
// not a quiet fallback.
#ifndef TFQUANT_CUSTOM_OPS_CORE_PATH_H_
#define TFQUANT_CUSTOM_OPS_CORE_PATH_H_

#include <string>

#include "kernels.h"

namespace tfquant {

// The paths from the plainest to the one that is preferred, by index; null behind the last.
const Path* PathAt(int index);

// The supported path called `name`; what is wrong with the name in words, or "".
std::string FindPath(const std::string& name, const Path** path);

// The path of this process; the answer never changes.
std::string ChosenPath(const Path** path);

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_PATH_H_
