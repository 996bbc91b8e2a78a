// What every backend's profile() needs.
#include "edgepack/backend.h"

#include <chrono>

namespace edgepack {

int64_t steady_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void add_call(Profile* profile, size_t index, const std::string& name, const std::string& type, int64_t ns) {
  if (index == profile->operators.size()) profile->operators.push_back({name, type, 0, 0});
  profile->operators[index].ns += ns;
  ++profile->operators[index].calls;
}

}  // namespace edgepack
