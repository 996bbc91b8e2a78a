// The platform, as the commands see it. A test gives them another one.
// Not called platform.h: ncnn has a header of that name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace edgepack {

class Machine {
 public:
  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  virtual ~Machine() = default;

  // A clock that never goes back, in nanoseconds.
  virtual int64_t now_ns() = 0;

  // The most memory that this process has had, in bytes; 0 where the system doesn't tell.
  virtual int64_t peak_rss_bytes() = 0;

  // The processor's name, or what is known of it.
  virtual std::string cpu() = 0;

  // The names in a folder, without "." and "..", sorted.
  virtual Status list_folder(const std::string& path, std::vector<std::string>* names) = 0;
};

// The real one.
Machine& this_machine();

}  // namespace edgepack
