#include "thread_pool.h"

#include <algorithm>

namespace tfquant {
namespace {

constexpr int kSpins = 20000;  // looks for more work before sleeping, some 50 microseconds

}  // namespace

SharedWork::SharedWork(int64_t count, int threads,
                       const std::function<void(int64_t, int64_t)>& body)
    : body_(body), count_(count), chunk_(std::max<int64_t>(1, count / (threads * 8))) {}

void SharedWork::Help() {
  while (true) {
    const int64_t begin = next_.fetch_add(chunk_);
    if (begin >= count_) return;
    const int64_t end = std::min(count_, begin + chunk_);
    body_(begin, end);
    done_.fetch_add(end - begin);
  }
}

void SharedWork::Finish() {
  Help();
  while (done_.load(std::memory_order_acquire) < count_) std::this_thread::yield();
}

bool WorthSharing(int64_t count, int64_t cost) {
  constexpr int64_t kWorthwhile = 20000;  // nanoseconds
  return count > 1 && count * cost >= kWorthwhile;
}

ThreadPool::ThreadPool(int threads) : threads_(std::max(1, threads)) {
  for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { Worker(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Worker() {
  uint64_t seen = 0;
  while (true) {
    for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) {
      std::this_thread::yield();
    }
    std::shared_ptr<SharedWork> work;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      if (stop_) return;
      work = work_;
    }
    if (work) work->Help();
  }
}

void ThreadPool::For(int64_t count, int64_t cost,
                     const std::function<void(int64_t, int64_t)>& body) {
  if (threads_ == 1 || !WorthSharing(count, cost)) return SerialFor(count, cost, body);
  const auto work = std::make_shared<SharedWork>(count, threads_, body);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_ = work;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work->Finish();
}

}  // namespace tfquant
