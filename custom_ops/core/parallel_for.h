// How core shares its work: a function of the caller's, who owns the threads.
#ifndef TFQUANT_CUSTOM_OPS_CORE_PARALLEL_FOR_H_
#define TFQUANT_CUSTOM_OPS_CORE_PARALLEL_FOR_H_

#include <cstdint>
#include <functional>

namespace tfquant {

// Calls body(begin, end) on ranges that cover [0, count), in any order, on any threads;
// `cost` is the time of one item in nanoseconds, roughly.
using ParallelFor = std::function<void(int64_t count, int64_t cost,
                                       const std::function<void(int64_t, int64_t)>& body)>;

// Runs everything on the calling thread.
inline void SerialFor(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) {
  if (count > 0) body(0, count);
}

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_PARALLEL_FOR_H_
