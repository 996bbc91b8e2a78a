// The processor's features by their names in /proc/cpuinfo.
#pragma once

#include <string>
#include <vector>

namespace edgepack {

// From the kernel's answer to this very program (AT_HWCAP): under an emulator /proc/cpuinfo is the host's. `cpuinfo` is
// that file's text, for x86_64, whose features are only there.
std::vector<std::string> cpu_features(const std::string& cpuinfo);

}  // namespace edgepack
