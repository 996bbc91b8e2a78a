// For benchmarks/preprocess.py: how long edgepack_set_image takes. Each line on stdin is one call on the same frame;
// the answer is its time in nanoseconds.
//
//     time_image VARIANT FRAME FORMAT WIDTH HEIGHT
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "edgepack/edgepack.h"
#include "frame.h"

int main(int argc, char** argv) {
  edgepack_image image = {};
  if (argc != 6 || !edgepack::find_format(argv[3], &image.format)) return 2;
  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> frame((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  image.width = static_cast<uint32_t>(std::strtol(argv[4], nullptr, 10));
  image.height = static_cast<uint32_t>(std::strtol(argv[5], nullptr, 10));
  size_t at = 0;
  for (size_t index = 0; index < 3; ++index) {
    const edgepack::PlaneSize size = edgepack::plane_size(image.format, index, image.width, image.height);
    if (at + size.rows * size.row_bytes > frame.size()) return 2;
    image.planes[index] = {frame.data() + at, size.row_bytes, size.rows * size.row_bytes};
    at += size.rows * size.row_bytes;
  }
  edgepack_variant* variant = nullptr;
  edgepack_status status = edgepack_open(argv[1], nullptr, &variant);
  for (int c = std::getchar(); status == EDGEPACK_OK && c != EOF; c = std::getchar()) {
    if (c != '\n') continue;
    const auto start = std::chrono::steady_clock::now();
    status = edgepack_set_image(variant, 0, &image);
    const auto end = std::chrono::steady_clock::now();
    std::printf("%lld\n", static_cast<long long>(std::chrono::nanoseconds(end - start).count()));
    std::fflush(stdout);
  }
  std::fputs(edgepack_error(variant), stderr);
  edgepack_close(variant);
  return status == EDGEPACK_OK ? 0 : 1;
}
