// Memory that a thread keeps from call to call.
#ifndef TFQUANT_CUSTOM_OPS_CORE_SCRATCH_H_
#define TFQUANT_CUSTOM_OPS_CORE_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tfquant {

// Uninitialized, on a cache line.
class Scratch {
 public:
  template <class T>
  T* Get(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) + 64;
    if (bytes > size_) {
      memory_.reset(new uint8_t[bytes]);
      size_ = bytes;
    }
    const uintptr_t at = (reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64;
    return reinterpret_cast<T*>(at);
  }

 private:
  std::unique_ptr<uint8_t[]> memory_;
  size_t size_ = 0;
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_SCRATCH_H_
