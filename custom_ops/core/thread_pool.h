// A small pool for callers without TensorFlow. Threads claim chunks of the work; the caller waits
// for the chunks, not for the threads, so one that is not scheduled delays nobody.
#ifndef TFQUANT_CUSTOM_OPS_CORE_THREAD_POOL_H_
#define TFQUANT_CUSTOM_OPS_CORE_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "matmul.h"

namespace tfquant {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller is one of them
  ~ThreadPool();
  void For(int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body);

 private:
  // One call of For; kept alive by whoever still looks at it.
  struct Work {
    std::function<void(int64_t, int64_t)> body;
    int64_t count, chunk;
    std::atomic<int64_t> next{0}, done{0};
  };

  void Worker();
  static void Help(Work* work);

  const int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Work> work_;
  std::atomic<uint64_t> generation_{0};
  bool stop_ = false;
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_THREAD_POOL_H_
