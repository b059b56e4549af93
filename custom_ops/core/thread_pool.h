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

#include "parallel_for.h"

namespace tfquant {

// Items of a call that several threads do; kept alive by whoever still looks at it. A thread that
// comes late finds nothing left and does not touch `body`, whose references may be gone by then.
class SharedWork {
 public:
  SharedWork(int64_t count, int threads, const std::function<void(int64_t, int64_t)>& body);
  void Help();    // claims chunks until there are none
  void Finish();  // helps, then waits for the chunks that others claimed

 private:
  const std::function<void(int64_t, int64_t)> body_;
  const int64_t count_, chunk_;
  std::atomic<int64_t> next_{0}, done_{0};
};

// Is the work long enough for a thread to wake up for?
bool WorthSharing(int64_t count, int64_t cost);

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller is one of them
  ~ThreadPool();
  void For(int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body);

 private:
  void Worker();

  const int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<SharedWork> work_;
  std::atomic<uint64_t> generation_{0};
  bool stop_ = false;
};

}  // namespace tfquant

#endif  // TFQUANT_CUSTOM_OPS_CORE_THREAD_POOL_H_
