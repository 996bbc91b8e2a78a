#include "sysfs.h"

#include <dirent.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "file.h"

namespace edgepack {
namespace {

// The first line of a file.
std::string line_of(const std::string& path) {
  const std::string text = read_small(path);
  return text.substr(0, text.find('\n'));
}

bool whole_line(const std::string& path, int64_t* value) {
  const std::string text = line_of(path);
  char* end = nullptr;
  errno = 0;
  *value = std::strtoll(text.c_str(), &end, 10);
  return !text.empty() && *end == '\0' && errno == 0;
}

std::string join(std::string folder, const std::string& name) { return folder.append("/").append(name); }

// "cpu12" is 12; -1 for all that isn't a prefix and a number.
int number_after(const std::string& name, std::string_view prefix) {
  constexpr size_t kMostDigits = 4;
  if (name.size() <= prefix.size() || name.size() > prefix.size() + kMostDigits) return -1;
  if (std::string_view(name).substr(0, prefix.size()) != prefix) return -1;
  int number = 0;
  for (const char c : name.substr(prefix.size())) {
    if (c < '0' || c > '9') return -1;
    number = number * 10 + (c - '0');
  }
  return number;
}

}  // namespace

std::vector<Clock> read_clocks(const std::string& root) {
  const std::string folder = root + "/sys/devices/system/cpu";
  std::vector<Clock> clocks;
  for (const std::string& name : names_in(folder)) {
    Clock clock;
    clock.cpu = number_after(name, "cpu");
    const std::string scaling = join(folder, name + "/cpufreq");
    if (clock.cpu < 0 || !whole_line(join(scaling, "scaling_cur_freq"), &clock.khz)) continue;
    clock.governor = line_of(join(scaling, "scaling_governor"));
    clocks.push_back(clock);
  }
  std::sort(clocks.begin(), clocks.end(), [](const Clock& a, const Clock& b) { return a.cpu < b.cpu; });
  return clocks;
}

std::vector<Temperature> read_temperatures(const std::string& root) {
  const std::string folder = root + "/sys/class/thermal";
  std::vector<Temperature> temperatures;
  for (const std::string& name : names_in(folder)) {
    Temperature temperature;
    const std::string zone = join(folder, name);
    // A zone whose sensor is switched off fails to be read.
    if (number_after(name, "thermal_zone") < 0 || !whole_line(join(zone, "temp"), &temperature.millidegrees)) continue;
    temperature.zone = name;
    temperature.type = line_of(join(zone, "type"));
    temperatures.push_back(temperature);
  }
  std::sort(temperatures.begin(), temperatures.end(), [](const Temperature& a, const Temperature& b) {
    return number_after(a.zone, "thermal_zone") < number_after(b.zone, "thermal_zone");
  });
  return temperatures;
}

std::string read_small(const std::string& path) {
  constexpr size_t kEnough = 1 << 16;
  std::string text(kEnough, '\0');
  const File file(std::fopen(path.c_str(), "rb"));
  text.resize(file == nullptr ? 0 : std::fread(text.data(), 1, text.size(), file.get()));
  return text;
}

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

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  DIR* folder = opendir(path.c_str());
  if (folder == nullptr) return names;
  while (const dirent* entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(folder);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace edgepack
