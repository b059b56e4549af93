#include "thread_pool.h"

#include <algorithm>

namespace tfquant {
namespace {

constexpr int kSpins = 20000;  // looks for more work before sleeping, some 50 microseconds

}  // namespace

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

void ThreadPool::Help(Work* work) {
  while (true) {
    const int64_t begin = work->next.fetch_add(work->chunk);
    if (begin >= work->count) return;
    const int64_t end = std::min(work->count, begin + work->chunk);
    work->body(begin, end);
    work->done.fetch_add(end - begin);
  }
}

void ThreadPool::Worker() {
  uint64_t seen = 0;
  while (true) {
    for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) {
      std::this_thread::yield();
    }
    std::shared_ptr<Work> work;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      seen = generation_.load();
      if (stop_) return;
      work = work_;
    }
    if (work) Help(work.get());
  }
}

void ThreadPool::For(int64_t count, int64_t cost,
                     const std::function<void(int64_t, int64_t)>& body) {
  constexpr int64_t kWorthwhile = 20000;  // nanoseconds
  if (threads_ == 1 || count <= 1 || count * cost < kWorthwhile)
    return SerialFor(count, cost, body);
  const auto work = std::make_shared<Work>();
  work->body = body;
  work->count = count;
  work->chunk = std::max<int64_t>(1, count / (threads_ * 8));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    work_ = work;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  Help(work.get());
  while (work->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

}  // namespace tfquant
