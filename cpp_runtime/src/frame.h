// Pictures and camera frames in memory, as RGB. edgepack/frames.py is the same in numpy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "pixels.h"
#include "status.h"

namespace edgepack {

// Rows and bytes a row of one plane; both 0 for a plane that the format does not have.
struct PlaneSize {
  size_t rows = 0;
  size_t row_bytes = 0;
};
PlaneSize plane_size(edgepack_pixel_format format, size_t plane, size_t width, size_t height);

// "nv12" and so on; nullptr for a number that is no format.
const char* format_name(edgepack_pixel_format format);
bool find_format(std::string_view name, edgepack_pixel_format* format);

// Refuse an unknown format and a size that it can't have.
Status check_size(const edgepack_image& image);

// Refuse a picture whose description does not hold together. After it, reading any pixel stays inside the planes.
Status check_image(const edgepack_image& image);

// Red, green and blue of chosen pixels of one row: `count` bytes each.
struct RgbRow {
  uint8_t* red;
  uint8_t* green;
  uint8_t* blue;
};

// Read the pixels at `columns` of row `row`. `scratch` has room for `count` bytes three times.
void read_pixels(const edgepack_image& image, size_t row, const int32_t* columns, size_t count, const Pixels& pixels,
                 uint8_t* scratch, const RgbRow& out);

}  // namespace edgepack
