// Clocks and temperatures as Linux shows them below /sys. `root` stands before that path, so that a recorded tree can
// be read as well; it is empty for this machine. What the system doesn't show is left out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgepack {

struct Clock {
  int cpu = 0;
  int64_t khz = 0;  // what the governor asks for now: scaling_cur_freq
  std::string governor;
};

struct Temperature {
  std::string zone;  // "thermal_zone0"
  std::string type;  // "soc-thermal", as the board's device tree calls it
  int64_t millidegrees = 0;
};

std::vector<Clock> read_clocks(const std::string& root);
std::vector<Temperature> read_temperatures(const std::string& root);

// The whole of a file such as those of /proc and /sys, which don't say their size; "" when it can't be read.
std::string read_small(const std::string& path);

// The value of the first line "name : value" of a text such as /proc/cpuinfo; "" when there is none.
std::string field(std::string_view text, std::string_view name);

// The names in a folder without "." and "..", sorted; nothing when it can't be read.
std::vector<std::string> names_in(const std::string& path);

}  // namespace edgepack
