#include "options.h"

#include <string_view>

namespace edgepack {
namespace {

constexpr double kMaxSeconds = 3600;

// What a flag fills, and which commands have it: i(nfo), s(elf-test), r(un), b(ench).
struct Flag {
  std::string_view name;
  std::string_view commands;
  std::string_view required;
  std::string Options::* text = nullptr;
  int64_t Options::* whole = nullptr;
  int64_t most = 0;
  double Options::* seconds = nullptr;
};

constexpr Flag kFlags[] = {
    {"--variant", "isrb", "isrb", &Options::variant},
    {"--golden", "sb", "sb", &Options::golden},
    {"--inputs", "r", "", &Options::inputs},
    {"--image", "r", "", &Options::image},
    {"--format", "r", "", &Options::format},
    {"--size", "r", "", &Options::size},
    {"--yuv", "r", "", &Options::yuv},
    {"--stride", "r", "", nullptr, &Options::stride, 1 << 20},
    {"--outputs", "r", "r", &Options::outputs},
    {"--library", "isrb", "", &Options::library},
    {"--threads", "isrb", "", nullptr, &Options::threads, 256},
    {"--min-runs", "b", "", nullptr, &Options::min_runs, 1000000},
    {"--min-time", "b", "", nullptr, nullptr, 0, &Options::min_seconds},
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

}  // namespace

bool parse_options(int argc, const char* const* argv, Options* options, std::string* error) {
  const auto fail = [&](std::string text) {
    *error = std::move(text);
    return false;
  };
  if (argc < 2) return fail("no command given");
  options->command = argv[1];
  constexpr std::string_view kCommands[] = {"info", "self-test", "run", "bench"};
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
    double number = 0;
    if (flag->text != nullptr) {
      options->*flag->text = value;
    } else if (flag->whole != nullptr) {
      if (!parse_number(value, true, &number) || number < 1 || number > static_cast<double>(flag->most)) {
        return fail(name + " must be a whole number from 1 to " + std::to_string(flag->most));
      }
      options->*flag->whole = static_cast<int64_t>(number);
    } else {
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
  return true;
}

}  // namespace edgepack
