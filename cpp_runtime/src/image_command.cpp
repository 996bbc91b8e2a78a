// `run --image`: a raw frame in a file becomes the model's input.
#include <cstdio>

#include "commands.h"
#include "descriptor.h"
#include "file.h"
#include "frame.h"

namespace edgepack {
namespace {

struct Yuv {
  const char* name;
  int32_t full_range, bt709;
};
constexpr Yuv kYuv[] = {{"bt601", 0, 0}, {"bt601-full", 1, 0}, {"bt709", 0, 1}, {"bt709-full", 1, 1}};

// "640x480": digits, an x, digits.
bool parse_size(const std::string& text, uint32_t* width, uint32_t* height) {
  uint32_t* const sides[] = {width, height};
  size_t side = 0, digits = 0;
  *width = *height = 0;
  for (const char c : text) {
    if (c == 'x' && side == 0 && digits > 0) {
      side = 1, digits = 0;
      continue;
    }
    if (c < '0' || c > '9' || ++digits > 6) return false;
    *sides[side] = *sides[side] * 10 + static_cast<uint32_t>(c - '0');
  }
  return side == 1 && digits > 0;
}

Status describe_frame(const Options& options, edgepack_image* image) {
  if (!find_format(options.format, &image->format)) {
    std::string known;
    for (int number = EDGEPACK_RGB; number <= EDGEPACK_UYVY; ++number) {
      known +=
          std::string(number == EDGEPACK_RGB ? "" : ", ") + format_name(static_cast<edgepack_pixel_format>(number));
    }
    return invalid("--format must be one of " + known + ", not '" + printable(options.format) + "'");
  }
  if (!parse_size(options.size, &image->width, &image->height)) {
    return invalid("--size must be WIDTHxHEIGHT in pixels, such as 640x480, not '" + printable(options.size) + "'");
  }
  for (const Yuv& yuv : kYuv) {
    if (options.yuv != yuv.name) continue;
    image->full_range = yuv.full_range, image->bt709 = yuv.bt709;
    return ok();
  }
  return invalid("--yuv must be bt601, bt601-full, bt709 or bt709-full, not '" + printable(options.yuv) + "'");
}

}  // namespace

Status Session::set_image() {
  if (inputs_.size() != 1) {
    return invalid("--image is for a model with one input; this one has " + std::to_string(inputs_.size()));
  }
  edgepack_image image = {};
  EDGEPACK_TRY(describe_frame(options_, &image));
  EDGEPACK_TRY(check_size(image));
  File file;
  size_t size = 0;
  EDGEPACK_TRY(open_file(options_.image, &file, &size));

  // The planes follow one another; with a stride of their own, I420's chroma planes have half of it.
  size_t wanted = 0;
  size_t starts[3] = {};
  for (size_t index = 0; index < 3; ++index) {
    const PlaneSize plane = plane_size(image.format, index, image.width, image.height);
    if (plane.rows == 0) break;
    const auto given = static_cast<size_t>(options_.stride);
    const size_t stride = given == 0 ? plane.row_bytes : index > 0 && image.format == EDGEPACK_I420 ? given / 2 : given;
    image.planes[index].stride = stride;
    if (stride != 0 && plane.rows > (SIZE_MAX - wanted) / stride)
      return invalid("the frame is too large for this machine");
    image.planes[index].bytes = stride * plane.rows;
    starts[index] = wanted;
    wanted += stride * plane.rows;
  }
  if (size != wanted) {
    return {EDGEPACK_FILE_ERROR, options_.image + " has " + std::to_string(size) + " bytes; a frame of " +
                                     options_.format + " " + options_.size + " has " + std::to_string(wanted) +
                                     (options_.stride == 0 ? "" : " with this stride")};
  }
  Buffer frame;
  if (!frame.allocate(size)) return {EDGEPACK_OUT_OF_MEMORY, "no memory for the frame"};
  if (std::fread(frame.data(), 1, size, file.get()) != size) {
    return {EDGEPACK_FILE_ERROR, options_.image + " can't be read whole"};
  }
  for (size_t index = 0; index < 3; ++index) {
    image.planes[index].data = static_cast<const char*>(frame.data()) + starts[index];
  }
  const edgepack_status code = edgepack_set_image(variant_, 0, &image);
  return code == EDGEPACK_OK ? ok() : failure(code);
}

const char* Session::preprocess(size_t index) {
  edgepack_preprocess declared = {};
  return edgepack_get_preprocess(variant_, index, &declared) == EDGEPACK_OK ? declared.text : nullptr;
}

}  // namespace edgepack
