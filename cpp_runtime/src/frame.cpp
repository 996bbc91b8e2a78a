#include "frame.h"

#include <cstring>
#include <iterator>

namespace edgepack {
namespace {

constexpr uint32_t kLongestSide = 1 << 16;

// Where the first pixel's parts lie and how far it is to the next pixel, in bytes.
struct Packed {
  size_t step, red, green, blue;
};

struct Format {
  const char* name;
  Packed packed;       // step 0: a YUV format
  size_t block_width;  // pixels that share a chroma sample
  size_t block_height;
};

// In the enum's order.
constexpr Format kFormats[] = {
    {"rgb", {3, 0, 1, 2}, 1, 1},  {"bgr", {3, 2, 1, 0}, 1, 1},  {"rgba", {4, 0, 1, 2}, 1, 1},
    {"bgra", {4, 2, 1, 0}, 1, 1}, {"gray", {1, 0, 0, 0}, 1, 1}, {"nv12", {}, 2, 2},
    {"nv21", {}, 2, 2},           {"i420", {}, 2, 2},           {"yuyv", {}, 2, 1},
    {"uyvy", {}, 2, 1},
};

// YUV to RGB times 2^13, by [bt709][full_range]; edgepack/frames.py says where the numbers come from.
constexpr YuvMatrix kMatrices[2][2] = {
    {{16, 9539, 13075, 3209, 6660, 16525}, {0, 8192, 11485, 2819, 5850, 14516}},
    {{16, 9539, 14686, 1747, 4366, 17305}, {0, 8192, 12901, 1535, 3835, 15201}},
};

const Format* find(edgepack_pixel_format format) {
  const auto index = static_cast<size_t>(format) - 1;
  return index < std::size(kFormats) ? &kFormats[index] : nullptr;
}

// Where a row's luma and chroma are; chroma is the same for the pixels x and x + 1 of a pair.
struct YuvRow {
  const uint8_t* y;
  const uint8_t* u;
  const uint8_t* v;
  size_t y_step, chroma_step;
};

YuvRow yuv_row(const edgepack_image& image, size_t row) {
  const auto at = [&](size_t plane, size_t line) {
    return static_cast<const uint8_t*>(image.planes[plane].data) + line * image.planes[plane].stride;
  };
  const uint8_t* first = at(0, row);
  switch (image.format) {
    case EDGEPACK_NV12: return {first, at(1, row / 2), at(1, row / 2) + 1, 1, 2};
    case EDGEPACK_NV21: return {first, at(1, row / 2) + 1, at(1, row / 2), 1, 2};
    case EDGEPACK_I420: return {first, at(1, row / 2), at(2, row / 2), 1, 1};
    case EDGEPACK_YUYV: return {first, first + 1, first + 3, 2, 4};
    default: return {first + 1, first, first + 2, 2, 4};  // UYVY
  }
}

// "nv12 640x480", of a known format.
std::string size_of(const edgepack_image& image) {
  return std::string(format_name(image.format)) + " " + std::to_string(image.width) + "x" +
         std::to_string(image.height);
}

}  // namespace

PlaneSize plane_size(edgepack_pixel_format format, size_t plane, size_t width, size_t height) {
  const Format* found = find(format);
  if (found == nullptr) return {};
  if (plane == 0) {
    const bool yuyv = format == EDGEPACK_YUYV || format == EDGEPACK_UYVY;
    return {height, width * (yuyv ? 2 : found->packed.step == 0 ? 1 : found->packed.step)};
  }
  switch (format) {
    case EDGEPACK_NV12:
    case EDGEPACK_NV21: return plane == 1 ? PlaneSize{height / 2, width} : PlaneSize{};
    case EDGEPACK_I420: return plane <= 2 ? PlaneSize{height / 2, width / 2} : PlaneSize{};
    default: return {};
  }
}

const char* format_name(edgepack_pixel_format format) {
  const Format* found = find(format);
  return found == nullptr ? nullptr : found->name;
}

bool find_format(std::string_view name, edgepack_pixel_format* format) {
  for (size_t i = 0; i < std::size(kFormats); ++i) {
    if (name != kFormats[i].name) continue;
    *format = static_cast<edgepack_pixel_format>(i + 1);
    return true;
  }
  return false;
}

Status check_size(const edgepack_image& image) {
  int32_t number = 0;  // the caller may have put anything there, which is no value of the enum
  static_assert(sizeof number == sizeof image.format);
  std::memcpy(&number, &image.format, sizeof number);
  if (number < EDGEPACK_RGB || number > EDGEPACK_UYVY) {
    return invalid("there is no pixel format " + std::to_string(number) + ": it must be one of edgepack_pixel_format");
  }
  const Format* format = find(image.format);
  if (image.width < 1 || image.height < 1 || image.width > kLongestSide || image.height > kLongestSide) {
    return invalid("a picture is 1 to 65536 pixels wide and high, not " + size_of(image));
  }
  if (image.width % format->block_width != 0 || image.height % format->block_height != 0) {
    const bool tall = format->block_height == 2;
    return invalid(std::string("one chroma sample stands for ") + (tall ? "2x2 pixels" : "two pixels of a row") +
                   ", so the " + (tall ? "width and height" : "width") + " must be even, not " + size_of(image));
  }
  return ok();
}

Status check_image(const edgepack_image& image) {
  EDGEPACK_TRY(check_size(image));
  for (size_t index = 0; index < 3; ++index) {
    const PlaneSize size = plane_size(image.format, index, image.width, image.height);
    if (size.rows == 0) break;
    const edgepack_plane& plane = image.planes[index];
    // Made only where it is needed: a good picture costs no allocation.
    const auto which = [&] { return "plane " + std::to_string(index) + " of " + size_of(image); };
    if (plane.data == nullptr) return invalid(which() + " is NULL");
    if (plane.stride < size.row_bytes) {
      return invalid(which() + ": a stride of " + std::to_string(plane.stride) + " bytes is less than a row of " +
                     std::to_string(size.row_bytes));
    }
    // Division instead of a product, which a huge stride could overflow.
    if (plane.bytes < size.row_bytes ||
        (size.rows > 1 && (plane.bytes - size.row_bytes) / (size.rows - 1) < plane.stride)) {
      return invalid(which() + " holds " + std::to_string(plane.bytes) + " bytes, too few for " +
                     std::to_string(size.rows) + " rows with a stride of " + std::to_string(plane.stride));
    }
  }
  return ok();
}

void read_pixels(const edgepack_image& image, size_t row, const int32_t* columns, size_t count, const Pixels& pixels,
                 uint8_t* scratch, const RgbRow& out) {
  const Packed packed = find(image.format)->packed;
  if (packed.step != 0) {
    const uint8_t* line = static_cast<const uint8_t*>(image.planes[0].data) + row * image.planes[0].stride;
    gather(line + packed.red, packed.step, columns, count, out.red);
    gather(line + packed.green, packed.step, columns, count, out.green);
    gather(line + packed.blue, packed.step, columns, count, out.blue);
    return;
  }
  const YuvRow yuv = yuv_row(image, row);
  uint8_t* const y = scratch;
  uint8_t* const u = y + count;
  uint8_t* const v = u + count;
  gather(yuv.y, yuv.y_step, columns, count, y);
  gather_pairs(yuv.u, yuv.chroma_step, columns, count, u);
  gather_pairs(yuv.v, yuv.chroma_step, columns, count, v);
  pixels.yuv_to_rgb(y, u, v, count, kMatrices[image.bt709 != 0][image.full_range != 0], out.red, out.green, out.blue);
}

}  // namespace edgepack
