// The platform, as the commands see it. A test gives them another one.
// Not called platform.h: ncnn has a header of that name.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"
#include "sysfs.h"

namespace edgepack {

class Machine {
 public:
  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  virtual ~Machine() = default;

  // A clock that never goes back, in nanoseconds.
  virtual int64_t now_ns() = 0;

  // The memory that this process has now, and the most that it has had, in bytes; 0 where the system doesn't tell.
  virtual int64_t rss_bytes() = 0;
  virtual int64_t peak_rss_bytes() = 0;

  // The processor's name, or what is known of it, and its features by their names in /proc/cpuinfo.
  virtual std::string cpu() = 0;
  virtual std::vector<std::string> cpu_features() = 0;

  // Keep this thread, and those that it will make, on these CPUs.
  virtual Status set_affinity(const std::vector<int>& cpus) = 0;

  // The CPUs on which any thread of this process may run, sorted, and the one on which the caller runs now (-1:
  // unknown).
  virtual std::vector<int> affinity() = 0;
  virtual int current_cpu() = 0;

  // Clocks and temperatures now. Takes some milliseconds where there are many.
  virtual std::vector<Clock> clocks() = 0;
  virtual std::vector<Temperature> temperatures() = 0;

  // The names in a folder, without "." and "..", sorted.
  virtual Status list_folder(const std::string& path, std::vector<std::string>* names) = 0;
};

// The real one.
Machine& this_machine();

}  // namespace edgepack
