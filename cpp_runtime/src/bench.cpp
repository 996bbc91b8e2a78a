// The `bench` command: load, first inference, warm-up and steady state, each with records of its own. Every run of the
// steady state is kept, in integer nanoseconds; percentiles are the host's business.
//
// Nothing is written between the first and the last timed run: the reader at the other end of the pipe would take its
// share of the processor.
#include <algorithm>

#include "commands.h"

namespace edgepack {
namespace {

constexpr size_t kMostRuns = 1000000;
constexpr int64_t kSecondNs = 1000000000;

struct Sample {
  int variant;
  int64_t block, ns;
};

// A look at the machine between two runs.
struct Reading {
  const char* when;
  size_t samples;  // that were there before
  int cpu;
  std::vector<Clock> clocks;
  std::vector<Temperature> temperatures;
  int64_t rss_bytes;
};

Reading read_machine(Machine* machine, const char* when, size_t samples) {
  return {when, samples, machine->current_cpu(), machine->clocks(), machine->temperatures(), machine->rss_bytes()};
}

void write_reading(Session* session, const Reading& reading) {
  std::vector<JsonLine> clocks, temperatures;
  for (const Clock& clock : reading.clocks) {
    clocks.push_back(JsonLine().integer("cpu", clock.cpu).integer("khz", clock.khz).text("governor", clock.governor));
  }
  for (const Temperature& each : reading.temperatures) {
    temperatures.push_back(
        JsonLine().text("zone", each.zone).text("kind", each.type).integer("millidegrees", each.millidegrees));
  }
  session->write(JsonLine()
                     .text("type", "machine")
                     .text("when", reading.when)
                     .integer("samples", static_cast<int64_t>(reading.samples))
                     .integer("cpu", reading.cpu)
                     .integer("rss_bytes", reading.rss_bytes)
                     .objects("clocks", clocks)
                     .objects("temperatures", temperatures));
}

// Load, first inference, golden outputs. Leaves the first golden inputs set.
Status prepare(Session* session, const Options& options, bool* passed) {
  Machine& machine = session->machine();
  EDGEPACK_TRY(session->open());
  std::vector<std::string> samples;
  EDGEPACK_TRY(list_golden(&machine, options.golden, &samples));
  EDGEPACK_TRY(session->set_inputs(samples.front()));
  int64_t first = 0;
  EDGEPACK_TRY(session->timed_run(&first));
  session->write(JsonLine()
                     .text("type", "first")
                     .integer("variant", session->index())
                     .integer("ns", first)
                     .integer("rss_bytes", machine.rss_bytes()));
  EDGEPACK_TRY(check_golden(session, samples, passed));
  return session->set_inputs(samples.front());
}

int64_t median(std::vector<int64_t> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Until two windows in a row have medians within 2 %, for at most 5 seconds; or a stated number of runs. A window has 8
// runs and 50 ms, longer than a clock governor's step.
Status warm_up(Session* session, const Options& options) {
  constexpr int64_t kMostNs = 5 * kSecondNs, kWindowNs = kSecondNs / 20;
  constexpr size_t kWindowRuns = 8;
  const bool counted = options.warmup >= 0;
  int64_t runs = 0, total = 0, window_ns = 0, last = 0;
  bool steady = false;
  std::vector<int64_t> window;
  while (counted ? runs < options.warmup : !steady && total < kMostNs) {
    int64_t ns = 0;
    EDGEPACK_TRY(session->timed_run(&ns));
    ++runs;
    total += ns;
    window_ns += ns;
    window.push_back(ns);
    if (window.size() < kWindowRuns || window_ns < kWindowNs) continue;
    const int64_t now = median(window), gap = now > last ? now - last : last - now;
    steady = last > 0 && gap * 50 <= last;
    last = now;
    window.clear();
    window_ns = 0;
  }
  JsonLine line;
  line.text("type", "warmup").integer("variant", session->index()).integer("runs", runs).integer("ns", total);
  counted ? line.null("steady") : line.boolean("steady", steady);
  session->write(line);
  return ok();
}

Status steady_state(Session* session, Session* other, const Options& options, std::vector<Sample>* samples,
                    std::vector<Reading>* readings) {
  Machine& machine = session->machine();
  // A B B A: what drifts during a block does the same to both. --min-runs counts for each variant.
  const bool both = other != nullptr;
  const std::vector<Session*> turns =
      both ? std::vector<Session*>{session, other, other, session} : std::vector<Session*>{session};
  const int64_t turn_runs = both ? options.block_runs : 1;
  const auto enough_ns = static_cast<int64_t>(options.min_seconds * 1e9);
  const size_t enough_runs = std::min(kMostRuns, static_cast<size_t>(options.min_runs) * (both ? 2 : 1));
  samples->reserve(enough_runs);
  const int64_t start = machine.now_ns();
  int64_t next_look = start, now = start;
  for (int64_t block = 0; samples->size() < enough_runs || (now - start < enough_ns && samples->size() < kMostRuns);
       ++block) {
    for (Session* turn : turns) {
      for (int64_t run = 0; run < turn_runs; ++run) {
        Sample sample{turn->index(), both ? block : 0, 0};
        EDGEPACK_TRY(turn->timed_run(&sample.ns));
        samples->push_back(sample);
        now = machine.now_ns();
        if (now < next_look) continue;
        readings->push_back(read_machine(&machine, "during", samples->size()));
        EDGEPACK_TRY(verify_cores(&machine, options.cores));
        next_look = machine.now_ns() + kSecondNs;
      }
    }
  }
  return ok();
}

}  // namespace

Status run_bench(Session* session, Session* other, const Options& options, bool* passed) {
  Machine& machine = session->machine();
  EDGEPACK_TRY(choose_cores(&machine, options.cores));
  const Reading before = read_machine(&machine, "before", 0);
  std::vector<Session*> sessions = {session};
  if (other != nullptr) sessions.push_back(other);
  for (Session* each : sessions) {
    EDGEPACK_TRY(prepare(each, options, passed));
    if (!*passed) return ok();  // outputs first, latency second
  }
  EDGEPACK_TRY(verify_cores(&machine, options.cores));
  const std::vector<int> allowed = machine.affinity();
  session->write(JsonLine()
                     .text("type", "affinity")
                     .boolean("chosen", !options.cores.empty())
                     .integers("cpus", {allowed.begin(), allowed.end()}));
  write_reading(session, before);
  for (Session* each : sessions) EDGEPACK_TRY(warm_up(each, options));

  std::vector<Sample> samples;
  std::vector<Reading> readings;
  EDGEPACK_TRY(steady_state(session, other, options, &samples, &readings));
  readings.push_back(read_machine(&machine, "after", samples.size()));

  for (const Sample& sample : samples) {
    session->write(JsonLine()
                       .text("type", "sample")
                       .integer("variant", sample.variant)
                       .integer("block", sample.block)
                       .integer("ns", sample.ns));
  }
  for (const Reading& reading : readings) write_reading(session, reading);
  return ok();
}

}  // namespace edgepack
