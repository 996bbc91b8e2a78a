// Does this CPU have the instructions that the engine's code was compiled with? Asked before any of it runs: the answer
// afterwards would be SIGILL.
#pragma once

#include <string_view>

#include "status.h"

namespace edgepack {

// Whether this CPU has a feature, by its name in /proc/cpuinfo; true as well for names that nobody can be asked about.
bool cpu_has(std::string_view feature);

// Fails with the names of `wanted` (separated by commas) that `has` says no to.
Status check_cpu(std::string_view wanted, bool (*has)(std::string_view) = cpu_has);

// The features that this build of the runtime needs: what CMake was given as EDGEPACK_CPU_FEATURES.
std::string_view needed_cpu_features();

}  // namespace edgepack
