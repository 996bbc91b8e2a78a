// .npy: any bytes are refused, or read as the array that was asked for and written again the same.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "npy.h"

using namespace edgepack;

namespace {

// A file in memory, under a name that open() takes.
struct MemoryFile {
  int number = memfd_create("fuzz", 0);
  std::string path = "/proc/self/fd/" + std::to_string(number);
  MemoryFile() = default;
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { close(number); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static MemoryFile file, copy;
  if (ftruncate(file.number, 0) != 0 || pwrite(file.number, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  const Shape shape = {1, 3};
  for (const edgepack_dtype dtype : {EDGEPACK_FLOAT32, EDGEPACK_INT64, EDGEPACK_BOOL}) {
    char values[3 * sizeof(int64_t)] = {}, again[sizeof values] = {};
    const size_t bytes = 3 * info(dtype).size;
    const Status status = read_npy(file.path, dtype, shape, values, bytes);
    if (!status.ok()) {
      if (status.text().empty()) std::abort();
      continue;
    }
    if (!write_npy(copy.path, dtype, shape, values, bytes).ok()) std::abort();
    if (!read_npy(copy.path, dtype, shape, again, bytes).ok() || std::memcmp(values, again, bytes) != 0) std::abort();
  }
  return 0;
}
