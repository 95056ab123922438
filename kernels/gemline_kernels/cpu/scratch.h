// Memory that a thread keeps between calls: it grows to the largest need and is never handed back.
#pragma once

#include <cstdlib>
#include <new>

#include "panels.h"

namespace gemline {

class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  // At least num_bytes, aligned to a cache line; what an earlier call returned is gone.
  void* take(int64_t num_bytes) {
    if (num_bytes > size_) {
      std::free(memory_);
      size_ = up_to(num_bytes, 4096);
      memory_ = std::aligned_alloc(4096, size_);
      if (!memory_) throw std::bad_alloc();
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace gemline
