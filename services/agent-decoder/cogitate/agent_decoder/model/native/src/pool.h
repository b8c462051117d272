// A few threads that share the tasks of one region after another.
//
// One 64-bit word holds (region number, number of tasks, next task): whoever adds to it has claimed
// a task of exactly that region, so a thread that wakes late finds the region of now or nothing, and
// nobody ever waits for a thread that has claimed nothing. A task may be claimed by any thread: where
// another process takes a core, the other core does the rest. Waiting is a short pause loop, then
// giving the core away, then sleeping on a futex: an idle pool costs no CPU.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <thread>
#include <vector>

namespace cogitate {

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

class Pool {
 public:
  using Task = void (*)(void* context, int task, int thread);

  explicit Pool(int threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    stopping_.store(true);
    wake_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return int(workers_.size()) + 1; }

  // Calls task(i, thread) for i in 0 .. count - 1 and returns when all have returned.
  template <class F>
  void run(int count, F&& task) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
      for (int i = 0; i < count; i++) task(i, 0);
      return;
    }
    const uint32_t number = ++number_;
    Region& region = regions_[number % kRegions];
    region.task = [](void* context, int i, int thread) {
      (*static_cast<std::remove_reference_t<F>*>(context))(i, thread);
    };
    region.context = &task;
    region.done.store(0, std::memory_order_relaxed);
    word_.store(uint64_t(number) << 40 | uint64_t(count) << 20);
    if (sleeping_.load() > 0) wake_all();
    while (claim_and_run(0)) {
    }
    for (int spins = 0; region.done.load(std::memory_order_acquire) != count; spins++)
      spins < kSpins ? relax() : void(sched_yield());
  }

 private:
  static constexpr int kRegions = 4, kSpins = 400, kYields = 50;
  static constexpr uint64_t kMask = (1 << 20) - 1;

  struct Region {
    Task task;
    void* context;
    std::atomic<int> done{0};
  };

  bool has_task() const {
    const uint64_t word = word_.load(std::memory_order_relaxed);
    return (word & kMask) < (word >> 20 & kMask);
  }

  bool claim_and_run(int thread) {
    if (!has_task()) return false;
    const uint64_t word = word_.fetch_add(1);
    const int index = int(word & kMask), count = int(word >> 20 & kMask);
    if (index >= count) return false;
    Region& region = regions_[(word >> 40) % kRegions];
    region.task(region.context, index, thread);
    region.done.fetch_add(1, std::memory_order_release);
    return true;
  }

  void work(int thread) {
    int idle = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
      if (claim_and_run(thread)) {
        idle = 0;
      } else if (++idle < kSpins) {
        relax();
      } else if (idle < kSpins + kYields) {
        sched_yield();
      } else {
        sleep();
        idle = 0;
      }
    }
  }

  void sleep() {
    sleeping_.fetch_add(1);
    const int32_t seen = wakes_.load();
    if (!has_task() && !stopping_.load()) futex(FUTEX_WAIT_PRIVATE, seen);
    sleeping_.fetch_sub(1);
  }

  void wake_all() {
    wakes_.fetch_add(1);
    futex(FUTEX_WAKE_PRIVATE, INT_MAX);
  }

  void futex(int operation, int32_t value) {
    syscall(SYS_futex, reinterpret_cast<int32_t*>(&wakes_), operation, value, nullptr, nullptr, 0);
  }

  Region regions_[kRegions];
  uint32_t number_ = 0;  // wraps at 2^24 in the word; only the slot is derived from it
  std::atomic<uint64_t> word_{0};
  std::atomic<int32_t> wakes_{0};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace cogitate
