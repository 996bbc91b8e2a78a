// The command line of the harness.
#pragma once

#include <cstdint>
#include <string>

namespace edgepack {

inline constexpr char kUsage[] =
    "usage: edgepack-ENGINE info      --variant DIR\n"
    "       edgepack-ENGINE self-test --variant DIR --golden DIR [--threads N]\n"
    "       edgepack-ENGINE run       --variant DIR --inputs DIR --outputs DIR [--threads N]\n"
    "       edgepack-ENGINE run       --variant DIR --image FILE --format FORMAT --size WIDTHxHEIGHT [--stride BYTES]\n"
    "                                 [--yuv bt601|bt601-full|bt709|bt709-full] --outputs DIR [--threads N]\n"
    "       edgepack-ENGINE bench     --variant DIR --golden DIR [--threads N] [--min-time SECONDS] [--min-runs N]\n"
    "       Each also takes --library FILE: the engine's shared library, where it is not in ../lib beside the "
    "harness\n";

struct Options {
  std::string command;
  std::string variant;
  std::string golden;
  std::string inputs;
  std::string outputs;
  std::string image;  // a raw frame instead of inputs
  std::string format;
  std::string size;
  std::string yuv = "bt601";
  int64_t stride = 0;  // 0: rows lie close together
  std::string library;
  int64_t threads = 1;
  double min_seconds = 1;
  int64_t min_runs = 10;
};

// False when the line can't be understood; `error` then says why.
bool parse_options(int argc, const char* const* argv, Options* options, std::string* error);

}  // namespace edgepack
