#include "machine.h"

#include <dirent.h>
#include <sys/utsname.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "file.h"

namespace edgepack {
namespace {

// The value of the first line "name : value" of a file such as /proc/cpuinfo.
std::string field(std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || line.substr(0, name.size()) != name) continue;
    if (line.find_first_not_of(" \t", name.size()) != colon) continue;
    const size_t value = line.find_first_not_of(" \t", colon + 1);
    return value == std::string_view::npos ? "" : std::string(line.substr(value));
  }
  return "";
}

// /proc files say that they have no size, so they are read until they end.
std::string read_proc(const char* path) {
  constexpr size_t kEnough = 1 << 16;
  std::string text(kEnough, '\0');
  const File file(std::fopen(path, "rb"));
  text.resize(file == nullptr ? 0 : std::fread(text.data(), 1, text.size(), file.get()));
  return text;
}

class ThisMachine final : public Machine {
 public:
  int64_t now_ns() override {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
  }

  // Not getrusage: its peak survives exec, so it would be that of the program which started this one.
  int64_t peak_rss_bytes() override {
    const std::string kib = field(read_proc("/proc/self/status"), "VmHWM");
    int64_t bytes = 0;
    for (size_t i = 0; i < kib.size() && kib[i] >= '0' && kib[i] <= '9'; ++i) bytes = bytes * 10 + (kib[i] - '0');
    return bytes * 1024;
  }

  std::string cpu() override {
    const std::string text = read_proc("/proc/cpuinfo");
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

  Status list_folder(const std::string& path, std::vector<std::string>* names) override {
    names->clear();
    DIR* folder = opendir(path.c_str());
    if (folder == nullptr) return {EDGEPACK_FILE_ERROR, path + ": " + std::strerror(errno)};
    while (const dirent* entry = readdir(folder)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names->push_back(name);
    }
    closedir(folder);
    std::sort(names->begin(), names->end());
    return ok();
  }
};

ThisMachine machine;  // has no state; inside the function it would be guarded by code that can throw

}  // namespace

Machine& this_machine() { return machine; }

}  // namespace edgepack
