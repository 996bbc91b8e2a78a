// The command line, one word a line: understood within its bounds, or refused with a reason.
#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "options.h"

using namespace edgepack;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::istringstream text(std::string(reinterpret_cast<const char*>(data), size));
  std::vector<std::string> words = {"edgepack-null"};
  for (std::string word; std::getline(text, word);) words.push_back(word);
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  Options options;
  std::string error;
  const bool good = parse_options(static_cast<int>(argv.size()), argv.data(), &options, &error);
  if (good == !error.empty()) std::abort();
  if (good && (options.threads < 1 || options.threads > 256 || !(options.min_seconds >= 0))) std::abort();
  return 0;
}
