// The timed loop. Every run is kept, in integer nanoseconds; percentiles are the host's business.
#include "commands.h"

namespace edgepack {

Status run_bench(Session* session, const Options& options) {
  constexpr size_t kMostRuns = 1000000;
  Machine& machine = session->machine();
  const auto enough_ns = static_cast<int64_t>(options.min_seconds * 1e9);
  std::vector<int64_t> samples;
  samples.reserve(static_cast<size_t>(options.min_runs));
  EDGEPACK_TRY(session->run());  // warm-up on these inputs
  const int64_t start = machine.now_ns();
  int64_t before = start;
  do {
    EDGEPACK_TRY(session->run());
    const int64_t after = machine.now_ns();
    samples.push_back(after - before);
    before = machine.now_ns();
  } while (samples.size() < kMostRuns &&
           (before - start < enough_ns || samples.size() < static_cast<size_t>(options.min_runs)));
  // Written after the loop: the pipe's reader must not disturb the runs.
  for (const int64_t sample : samples) session->write(JsonLine().text("type", "sample").integer("ns", sample));
  return ok();
}

}  // namespace edgepack
