// The one thing in the runtime that differs between engines, in a file of its own.
#include "cpu.h"

namespace edgepack {

std::string_view needed_cpu_features() { return EDGEPACK_CPU_FEATURES; }

}  // namespace edgepack
