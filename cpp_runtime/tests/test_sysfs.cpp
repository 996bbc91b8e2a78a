// Trees as recorded on boards: an RK3588 with two kinds of cores, a machine without any of it, and odd ones.
#include "check.h"
#include "hwcap.h"
#include "machine.h"
#include "sysfs.h"

using namespace edgepack;

namespace {

void folders(const std::string& path) {
  for (size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    check::folder(path.substr(0, slash));
  }
}

void put(const std::string& file, const std::string& text) {
  folders(file);
  check::write(file, text);
}

void put_cpu(const std::string& root, int cpu, const std::string& khz, const std::string& governor) {
  const std::string folder = root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/scaling_";
  put(folder + "cur_freq", khz);
  put(folder + "governor", governor);
}

void put_zone(const std::string& root, const std::string& zone, const std::string& type, const std::string& temp) {
  put(root + "/sys/class/thermal/" + zone + "/type", type);
  put(root + "/sys/class/thermal/" + zone + "/temp", temp);
}

}  // namespace

TEST("an RK3588's clocks come in the order of its CPUs, with their governors") {
  for (int cpu = 0; cpu < 12; ++cpu) put_cpu("rk", cpu, cpu < 4 ? "1800000\n" : "2304000\n", "performance\n");
  put("rk/sys/devices/system/cpu/cpufreq/boost", "0\n");
  put("rk/sys/devices/system/cpu/cpuidle/current_driver", "psci_idle\n");
  const std::vector<Clock> clocks = read_clocks(check::path("rk"));
  CHECK_EQ(size_t{12}, clocks.size());
  for (size_t i = 0; i < clocks.size(); ++i) CHECK_EQ(static_cast<int>(i), clocks[i].cpu);
  CHECK_EQ(int64_t{1800000}, clocks[3].khz);
  CHECK_EQ(int64_t{2304000}, clocks[10].khz);
  CHECK_EQ("performance", clocks[10].governor);
}

TEST("zones come with the type that the board gives them, below zero as well, in the order of their numbers") {
  put_zone("rk", "thermal_zone10", "gpu-thermal\n", "-2500\n");
  put_zone("rk", "thermal_zone2", "bigcore1-thermal\n", "62846\n");
  put_zone("rk", "thermal_zone0", "soc-thermal\n", "41615\n");
  put("rk/sys/class/thermal/cooling_device0/type", "pwm-fan\n");
  const std::vector<Temperature> zones = read_temperatures(check::path("rk"));
  CHECK_EQ(size_t{3}, zones.size());
  CHECK_EQ("soc-thermal", zones[0].type);
  CHECK_EQ("thermal_zone2", zones[1].zone);
  CHECK_EQ(int64_t{62846}, zones[1].millidegrees);
  CHECK_EQ(int64_t{-2500}, zones[2].millidegrees);
}

TEST("what isn't there or isn't a number is left out, not guessed") {
  CHECK(read_clocks(check::path("nowhere")).empty());
  CHECK(read_temperatures(check::path("nowhere")).empty());
  put_cpu("odd", 0, "<unknown>\n", "schedutil\n");
  put_cpu("odd", 1, "", "schedutil\n");
  put_cpu("odd", 2, "600000 kHz\n", "schedutil\n");
  put("odd/sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq", "600000\n");
  put_zone("odd", "thermal_zone0", "off\n", "N/A\n");
  put("odd/sys/class/thermal/thermal_zone1/type", "no temp\n");
  const std::vector<Clock> clocks = read_clocks(check::path("odd"));
  CHECK_EQ(size_t{1}, clocks.size());
  CHECK_EQ(3, clocks[0].cpu);
  CHECK_EQ("", clocks[0].governor);
  CHECK(read_temperatures(check::path("odd")).empty());
}

TEST("a field of cpuinfo is found by its whole name") {
  const std::string text = "processor\t: 0\nflags extra\t: no\nflags\t\t: fpu sse2\nempty\t:\n";
  CHECK_EQ("fpu sse2", field(text, "flags"));
  CHECK_EQ("", field(text, "empty"));
  CHECK_EQ("", field(text, "fla"));
}

TEST("this machine keeps to the CPU that it is told, and knows its memory and features") {
  Machine& machine = this_machine();
  const std::vector<int> all = machine.affinity();
  CHECK(!all.empty());
  CHECK_OK(machine.set_affinity({all.back()}));
  CHECK((machine.affinity() == std::vector<int>{all.back()}));
  CHECK_EQ(all.back(), machine.current_cpu());
  CHECK_OK(machine.set_affinity(all));
  CHECK(!machine.set_affinity({1023}).ok());
  CHECK(machine.rss_bytes() > 0 && machine.rss_bytes() <= machine.peak_rss_bytes());
  CHECK(!machine.cpu_features().empty());
}

CHECK_MAIN
