// Frames: a picture's description and a declaration that don't fit each other are refused, and nothing outside the
// planes is read, nor outside the input written. 16 bytes describe the picture, the rest is a variant.txt.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "descriptor.h"
#include "frame.h"
#include "image.h"

using namespace edgepack;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHead = 16, kMostBytes = 1 << 16;
  if (size < kHead) return 0;
  const auto word = [&](size_t at) { return static_cast<size_t>(data[at]) | static_cast<size_t>(data[at + 1]) << 8; };
  edgepack_image image = {};
  image.format = static_cast<edgepack_pixel_format>(data[0] % 12);
  image.full_range = data[1] & 1;
  image.bt709 = data[1] & 2;
  image.width = data[2], image.height = data[3];
  std::vector<uint8_t> planes[3];  // blocks of their own, so that reading past one shows
  for (size_t i = 0; i < 3; ++i) {
    planes[i].assign(word(4 + 4 * i) % kMostBytes, data[1]);
    image.planes[i] = {planes[i].data(), word(6 + 4 * i), planes[i].size()};
  }
  Descriptor descriptor;
  if (!parse_descriptor({reinterpret_cast<const char*>(data) + kHead, size - kHead}, &descriptor).ok()) return 0;
  for (const Tensor& tensor : descriptor.inputs) {
    if (!tensor.preprocess || tensor.engine_bytes > kMostBytes) continue;
    std::vector<char> engine(tensor.engine_bytes);
    ImageInput input;
    for (int again = 0; again < 2; ++again) {
      const Status status = input.set(tensor, image, engine.data());
      if (!status.ok() && status.text().empty()) std::abort();
    }
  }
  return 0;
}
