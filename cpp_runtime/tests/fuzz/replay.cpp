// Runs a fuzz target over files, without libFuzzer: what was once found stays found, with any compiler.
#include <dirent.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  DIR* folder = opendir(argv[1]);
  if (folder == nullptr) return 2;
  int count = 0;
  while (const dirent* entry = readdir(folder)) {
    const std::string name = entry->d_name;
    if (name[0] == '.') continue;
    std::printf("%s\n", name.c_str());
    std::fflush(stdout);  // so that the last line names the file that it died of
    std::ifstream file(std::string(argv[1]) + "/" + name, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    ++count;
  }
  closedir(folder);
  return count == 0 ? 1 : 0;
}
