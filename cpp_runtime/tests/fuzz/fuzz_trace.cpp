// The trace that ONNX Runtime writes, with names of the model unescaped in it: read or refused, whatever they are.
#include <cstdint>
#include <cstdlib>

#include "onnxruntime_trace.h"

using namespace edgepack;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  Profile profile;
  const Status status = read_trace({reinterpret_cast<const char*>(data) + 1, size - 1}, data[0] % 4, &profile);
  if (!status.ok() && status.text().empty()) std::abort();
  return 0;
}
