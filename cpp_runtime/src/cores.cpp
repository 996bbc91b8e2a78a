// The CPUs that a measurement may use: chosen before the engine makes its threads, and checked afterwards.
#include <algorithm>

#include "commands.h"

namespace edgepack {
namespace {

std::string listed(const std::vector<int>& cpus) {
  std::string text;
  for (const int cpu : cpus) text += (text.empty() ? "" : ",") + std::to_string(cpu);
  return text;
}

}  // namespace

Status choose_cores(Machine* machine, const std::vector<int>& cores) {
  if (cores.empty()) return ok();
  const Status status = machine->set_affinity(cores);
  if (!status.ok()) return {status.code(), "--cores " + listed(cores) + ": " + status.text()};
  return verify_cores(machine, cores);
}

Status verify_cores(Machine* machine, const std::vector<int>& cores) {
  if (cores.empty()) return ok();
  const std::vector<int> allowed = machine->affinity();
  if (allowed != cores) {
    return {EDGEPACK_INVALID_ARGUMENT, "--cores " + listed(cores) + ": the threads of this process may run on " +
                                           listed(allowed) + ", so these figures would be those of other CPUs"};
  }
  const int now = machine->current_cpu();
  if (now < 0 || std::binary_search(cores.begin(), cores.end(), now)) return ok();
  return {EDGEPACK_INVALID_ARGUMENT,
          "--cores " + listed(cores) + ": this process runs on CPU " + std::to_string(now) + " all the same"};
}

}  // namespace edgepack
