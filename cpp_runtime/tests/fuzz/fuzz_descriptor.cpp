// variant.txt: any bytes are refused or give a descriptor that the rest of the runtime can work with.
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "descriptor.h"
#include "tensor.h"

using namespace edgepack;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Descriptor descriptor;
  const Status status = parse_descriptor({reinterpret_cast<const char*>(data), size}, &descriptor);
  if (!status.ok()) {
    if (status.text().empty() || status.code() != EDGEPACK_BAD_DESCRIPTOR) std::abort();
    return 0;
  }
  constexpr size_t kSmall = 4096;
  for (const Tensor& tensor : descriptor.inputs) {
    if (tensor.bytes > kSmall || tensor.engine_bytes > kSmall) continue;
    std::vector<char> source(tensor.bytes, 1), engine(tensor.engine_bytes);
    to_engine(tensor, source.data(), engine.data());
    from_engine(tensor, engine.data(), source.data());
  }
  return 0;
}
