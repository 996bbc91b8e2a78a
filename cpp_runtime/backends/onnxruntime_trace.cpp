#include "onnxruntime_trace.h"

#include <map>
#include <string>
#include <vector>

namespace edgepack {
namespace {

constexpr int64_t kMicrosecond = 1000;

// The text between `before` and `after`, from position *at on, which moves behind it.
bool between(std::string_view text, std::string_view before, std::string_view after, size_t* at,
             std::string_view* found) {
  const size_t start = text.find(before, *at);
  if (start == std::string_view::npos) return false;
  const size_t from = start + before.size();
  const size_t end = text.find(after, from);
  if (end == std::string_view::npos) return false;
  *found = text.substr(from, end - from);
  *at = end;
  return true;
}

bool parse_whole(std::string_view text, int64_t* value) {
  if (text.empty() || text.size() > 15) return false;
  *value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    *value = *value * 10 + (c - '0');
  }
  return true;
}

struct Event {
  int64_t start, duration;
};

}  // namespace

Status read_trace(std::string_view text, int skipped, Profile* profile) {
  constexpr std::string_view kEvent = "{\"cat\" : \"", kNode = "{\"cat\" : \"Node\"", kRun = "\"name\" :\"model_run\"";
  std::map<std::string, size_t, std::less<>> seen;
  std::vector<Event> ended;  // of those that may lie inside one that ends later
  for (size_t at = text.find(kEvent); at != std::string_view::npos;) {
    size_t next = text.find(kEvent, at + 1);
    const std::string_view event = text.substr(at, next == std::string_view::npos ? next : next - at);
    at = next;
    if (event.substr(0, kNode.size()) != kNode) {
      if (event.find(kRun) != std::string_view::npos) --skipped;  // comes after its nodes
      continue;
    }
    if (skipped > 0) continue;
    std::string_view duration, start, name, type;
    size_t field = 0;
    Event now{};
    if (!between(event, "\"dur\" :", ",", &field, &duration) || !between(event, "\"ts\" :", ",", &field, &start) ||
        !between(event, "\"name\" :\"", "_kernel_time\",", &field, &name) ||
        !between(event, "\"op_name\" : \"", "\"", &field, &type) || !parse_whole(duration, &now.duration) ||
        !parse_whole(start, &now.start)) {
      continue;
    }
    int64_t inside = 0;
    while (!ended.empty() && ended.back().start >= now.start) {
      inside += ended.back().duration;
      ended.pop_back();
    }
    ended.push_back(now);
    const std::string key = std::string(type) + '\0' + std::string(name);
    const size_t index = seen.emplace(key, profile->operators.size()).first->second;
    add_call(profile, index, std::string(name), std::string(type), (now.duration - inside) * kMicrosecond);
  }
  if (!profile->operators.empty()) return ok();
  return {EDGEPACK_ENGINE_ERROR, "ONNX Runtime's profile holds no operator: its format is not the one of release " +
                                     std::string(EDGEPACK_ENGINE_VERSION)};
}

}  // namespace edgepack
