// What the three direct programs share: arguments MODEL INPUT THREADS WARMUP RUNS, raw input, one line a run.
// INPUT holds the engine's own bytes of the first input. Prints the first output value last, on stderr, for a check.
#pragma once

#include <time.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

struct Arguments {
  std::string model, input;
  int threads, warmup, runs;
};

inline Arguments parse(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "usage: %s MODEL INPUT THREADS WARMUP RUNS ...\n", argv[0]);
    std::exit(2);
  }
  return {argv[1], argv[2], std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5])};
}

inline std::vector<char> read_all(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) std::exit(3);
  std::fseek(file, 0, SEEK_END);
  std::vector<char> bytes(static_cast<size_t>(std::ftell(file)));
  std::rewind(file);
  if (std::fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) std::exit(3);
  std::fclose(file);
  return bytes;
}

inline int64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

// Runs and prints; nothing is printed between two runs.
template <typename Run>
void measure(const Arguments& arguments, const Run& run) {
  std::vector<int64_t> samples;
  samples.reserve(static_cast<size_t>(arguments.runs));
  for (int i = 0; i < arguments.warmup; ++i) run();
  for (int i = 0; i < arguments.runs; ++i) {
    const int64_t start = now_ns();
    run();
    samples.push_back(now_ns() - start);
  }
  for (const int64_t ns : samples) std::printf("%lld\n", static_cast<long long>(ns));
}

inline void expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "%s failed\n", what);
  std::exit(3);
}
