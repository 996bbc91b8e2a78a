#include "machine.h"

#include <dirent.h>
#include <sched.h>
#include <sys/utsname.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "hwcap.h"

namespace edgepack {
namespace {

// A line of /proc/self/status such as "VmHWM:  1234 kB", in bytes.
int64_t own_memory(std::string_view name) {
  const std::string kib = field(read_small("/proc/self/status"), name);
  int64_t bytes = 0;
  for (size_t i = 0; i < kib.size() && kib[i] >= '0' && kib[i] <= '9'; ++i) bytes = bytes * 10 + (kib[i] - '0');
  return bytes * 1024;
}

class ThisMachine final : public Machine {
 public:
  int64_t now_ns() override {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
  }

  int64_t rss_bytes() override { return own_memory("VmRSS"); }

  // Not getrusage: its peak survives exec, so it would be that of the program which started this one.
  int64_t peak_rss_bytes() override { return own_memory("VmHWM"); }

  std::string cpu() override {
    const std::string text = read_small("/proc/cpuinfo");
    std::string name = field(text, "model name");
    if (name.empty()) name = field(text, "uarch");  // RISC-V
    if (name.empty() && !field(text, "CPU part").empty()) {
      // Arm kernels give numbers; together they name the core (0x41 0xd0b is a Cortex-A76).
      name = field(text, "CPU implementer") + " " + field(text, "CPU part");
    }
    utsname system{};
    if (name.empty() && uname(&system) == 0) name = system.machine;
    return name;
  }

  std::vector<std::string> cpu_features() override { return edgepack::cpu_features(read_small("/proc/cpuinfo")); }

  Status set_affinity(const std::vector<int>& cpus) override {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : cpus) CPU_SET(static_cast<size_t>(cpu), &set);
    if (sched_setaffinity(0, sizeof set, &set) == 0) return ok();
    return {EDGEPACK_INVALID_ARGUMENT, std::string("the system refuses these CPUs: ") + std::strerror(errno)};
  }

  std::vector<int> affinity() override {
    cpu_set_t all;
    CPU_ZERO(&all);
    for (const std::string& thread : names_in("/proc/self/task")) {
      cpu_set_t set;
      CPU_ZERO(&set);
      if (sched_getaffinity(static_cast<pid_t>(std::strtol(thread.c_str(), nullptr, 10)), sizeof set, &set) == 0)
        CPU_OR(&all, &all, &set);
    }
    std::vector<int> cpus;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(static_cast<size_t>(cpu), &all)) cpus.push_back(cpu);
    }
    return cpus;
  }

  int current_cpu() override { return sched_getcpu(); }

  std::vector<Clock> clocks() override { return read_clocks(""); }
  std::vector<Temperature> temperatures() override { return read_temperatures(""); }

  Status list_folder(const std::string& path, std::vector<std::string>* names) override {
    DIR* folder = opendir(path.c_str());
    if (folder == nullptr) return {EDGEPACK_FILE_ERROR, path + ": " + std::strerror(errno)};
    closedir(folder);
    *names = names_in(path);
    return ok();
  }
};

ThisMachine machine;  // has no state; inside the function it would be guarded by code that can throw

}  // namespace

Machine& this_machine() { return machine; }

}  // namespace edgepack
