// A block of memory whose allocation can fail without an exception.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace edgepack {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      std::free(data_);
      data_ = other.data_;
      size_ = other.size_;
      other.data_ = nullptr;
      other.size_ = 0;
    }
    return *this;
  }
  ~Buffer() { std::free(data_); }

  // Hold `size` zeroed bytes at an address that every engine accepts. False when memory runs out.
  [[nodiscard]] bool allocate(size_t size) {
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
    if (rounded < size) return false;
    if (posix_memalign(&data_, kAlignment, rounded == 0 ? kAlignment : rounded) != 0) {
      data_ = nullptr;
      return false;
    }
    std::memset(data_, 0, rounded);
    size_ = size;
    return true;
  }

  void* data() { return data_; }
  const void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kAlignment = 64;  // LiteRT's demand on host memory; a cache line elsewhere

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace edgepack
