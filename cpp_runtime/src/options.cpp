#include "options.h"

#include <algorithm>
#include <string_view>

namespace edgepack {
namespace {

constexpr double kMaxSeconds = 3600;
constexpr int kMaxCpu = 1023;  // cpu_set_t's

// What a flag fills, and which commands have it: i(nfo), s(elf-test), r(un), b(ench), p(rofile).
struct Flag {
  std::string_view name;
  std::string_view commands;
  std::string_view required;
  std::string Options::* text = nullptr;
  int64_t Options::* whole = nullptr;
  int64_t least = 0, most = 0;
  double Options::* seconds = nullptr;
  std::vector<int> Options::* cores = nullptr;
};

constexpr Flag kFlags[] = {
    {"--variant", "isrbp", "isrbp", &Options::variant},
    {"--golden", "sbp", "sbp", &Options::golden},
    {"--inputs", "r", "", &Options::inputs},
    {"--image", "r", "", &Options::image},
    {"--format", "r", "", &Options::format},
    {"--size", "r", "", &Options::size},
    {"--yuv", "r", "", &Options::yuv},
    {"--stride", "r", "", nullptr, &Options::stride, 1, 1 << 20},
    {"--outputs", "r", "r", &Options::outputs},
    {"--library", "isrbp", "", &Options::library},
    {"--threads", "isrbp", "", nullptr, &Options::threads, 1, 256},
    {"--cores", "bp", "", nullptr, nullptr, 0, 0, nullptr, &Options::cores},
    {"--warmup", "b", "", nullptr, &Options::warmup, 0, 1000000},
    {"--min-seconds", "b", "", nullptr, nullptr, 0, 0, &Options::min_seconds},
    {"--min-runs", "b", "", nullptr, &Options::min_runs, 1, 1000000},
    {"--block-runs", "b", "", nullptr, &Options::block_runs, 1, 1000000},
    {"--runs", "p", "", nullptr, &Options::runs, 1, 10000},
};

// Digits with at most one point: what a person types.
bool parse_number(std::string_view text, bool whole, double* value) {
  double number = 0, scale = 1;
  bool point = false;
  if (text.empty() || text.size() > 12 || text == ".") return false;
  for (const char c : text) {
    if (c == '.' && !point && !whole) {
      point = true;
      continue;
    }
    if (c < '0' || c > '9') return false;
    number = number * 10 + (c - '0');
    if (point) scale *= 10;
  }
  *value = number / scale;
  return true;
}

bool parse_whole(std::string_view text, int64_t least, int64_t most, int64_t* value) {
  double number = 0;
  if (!parse_number(text, true, &number)) return false;
  *value = static_cast<int64_t>(number);
  return *value >= least && *value <= most;
}

}  // namespace

bool parse_cores(const std::string& text, std::vector<int>* cores) {
  cores->clear();
  std::string_view rest = text;
  while (true) {
    const size_t comma = rest.find(',');
    const std::string_view range = rest.substr(0, comma);
    const size_t dash = range.find('-');
    int64_t first = 0, last = 0;
    if (!parse_whole(range.substr(0, dash), 0, kMaxCpu, &first)) return false;
    last = first;
    if (dash != std::string_view::npos && !parse_whole(range.substr(dash + 1), first, kMaxCpu, &last)) return false;
    for (int64_t cpu = first; cpu <= last; ++cpu) cores->push_back(static_cast<int>(cpu));
    if (comma == std::string_view::npos) break;
    rest = rest.substr(comma + 1);
  }
  std::sort(cores->begin(), cores->end());
  cores->erase(std::unique(cores->begin(), cores->end()), cores->end());
  return true;
}

bool parse_options(int argc, const char* const* argv, Options* options, std::string* error) {
  const auto fail = [&](std::string text) {
    *error = std::move(text);
    return false;
  };
  if (argc < 2) return fail("no command given");
  options->command = argv[1];
  constexpr std::string_view kCommands[] = {"info", "self-test", "run", "bench", "profile"};
  char letter = 0;
  for (const std::string_view command : kCommands) {
    if (options->command == command) letter = command[0];
  }
  if (letter == 0) return fail("there is no command '" + options->command + "'");

  for (int i = 2; i < argc; i += 2) {
    const std::string name = argv[i];
    const Flag* flag = nullptr;
    for (const Flag& candidate : kFlags) {
      if (candidate.name == name && candidate.commands.find(letter) != std::string_view::npos) flag = &candidate;
    }
    if (flag == nullptr) return fail(options->command + " has no option '" + name + "'");
    if (i + 1 == argc) return fail(name + " needs a value");
    const std::string value = argv[i + 1];
    if (flag->text == &Options::variant && !options->variant.empty() && letter == 'b') {
      if (!options->other_variant.empty()) return fail("bench compares two variants, not more");
      options->other_variant = value;
    } else if (flag->text == &Options::variant && letter == 'r') {
      options->variant = value;
      options->choices.push_back(value);
    } else if (flag->text != nullptr) {
      options->*flag->text = value;
    } else if (flag->whole != nullptr) {
      if (!parse_whole(value, flag->least, flag->most, &(options->*flag->whole))) {
        return fail(name + " must be a whole number from " + std::to_string(flag->least) + " to " +
                    std::to_string(flag->most));
      }
    } else if (flag->cores != nullptr) {
      if (!parse_cores(value, &(options->*flag->cores))) {
        return fail(name + " must be CPU numbers such as 4-7 or 0,2,4-5");
      }
    } else {
      double number = 0;
      if (!parse_number(value, false, &number) || number > kMaxSeconds) {
        return fail(name + " must be seconds, at most 3600");
      }
      options->*flag->seconds = number;
    }
  }
  for (const Flag& flag : kFlags) {
    if (flag.required.find(letter) != std::string_view::npos && (options->*flag.text).empty()) {
      return fail(options->command + " needs " + std::string(flag.name));
    }
  }
  if (letter == 'r' && options->inputs.empty() == options->image.empty()) {
    return fail(options->image.empty() ? "run needs --inputs or --image" : "run takes --inputs or --image, not both");
  }
  if (options->choices.size() > 1 && !options->image.empty()) return fail("run takes one --variant with --image");
  return true;
}

}  // namespace edgepack
