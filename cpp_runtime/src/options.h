// The command line of the harness.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgepack {

inline constexpr char kUsage[] =
    "usage: edgepack-ENGINE info      --variant DIR\n"
    "       edgepack-ENGINE self-test --variant DIR --golden DIR [--threads N]\n"
    "       edgepack-ENGINE run       --variant DIR [--variant OTHER]... --inputs DIR --outputs DIR [--threads N]\n"
    "                                 Of several variants the first one whose shapes are those of the inputs\n"
    "       edgepack-ENGINE run       --variant DIR --image FILE --format FORMAT --size WIDTHxHEIGHT [--stride BYTES]\n"
    "                                 [--yuv bt601|bt601-full|bt709|bt709-full] --outputs DIR [--threads N]\n"
    "       edgepack-ENGINE bench     --variant DIR [--variant OTHER] --golden DIR [--threads N] [--cores 4-7,0]\n"
    "                                 [--warmup N] [--min-seconds S] [--min-runs N] [--block-runs N]\n"
    "       edgepack-ENGINE profile   --variant DIR --golden DIR [--threads N] [--cores 4-7,0] [--runs N]\n"
    "       Each also takes --library FILE: the engine's shared library, where it is not in ../lib beside the "
    "harness\n";

struct Options {
  std::string command;
  std::string variant;
  std::string other_variant;         // bench: the B of an A/B comparison
  std::vector<std::string> choices;  // run: all variants, of which `variant` becomes the one that takes the inputs
  size_t chosen = 0;                 // run: its place
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
  std::vector<int> cores;  // empty: where the system puts us
  int64_t warmup = -1;     // runs; -1: until steady
  double min_seconds = 1;
  int64_t min_runs = 10;
  int64_t block_runs = 5;  // of one variant before it is the other's turn
  int64_t runs = 20;       // of profile
};

// False when the line can't be understood; `error` then says why.
bool parse_options(int argc, const char* const* argv, Options* options, std::string* error);

// "4-7,0" as CPU numbers, sorted. False when it is anything else.
bool parse_cores(const std::string& text, std::vector<int>* cores);

}  // namespace edgepack
