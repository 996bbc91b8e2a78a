#include "image.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "frame.h"
#include "tensor.h"

namespace edgepack {
namespace {

std::string size_text(int64_t height, int64_t width) {
  return "[" + std::to_string(height) + ", " + std::to_string(width) + "]";
}

// dividend / divisor to the nearest whole number, half to even.
int64_t nearest_whole(int64_t dividend, int64_t divisor) {
  const int64_t whole = dividend / divisor, rest = dividend % divisor;
  return whole + static_cast<int64_t>(2 * rest > divisor || (2 * rest == divisor && whole % 2 == 1));
}

void plan_resize(const edgepack_preprocess& how, Geometry* g) {
  const int64_t height = g->source_height, width = g->source_width;
  const int64_t tall = how.resize[0], wide = how.resize[1];
  const std::string_view fit = how.fit;
  if (tall == 0) {
    g->resized_height = height, g->resized_width = width;
  } else if (wide == 0) {
    const int64_t shorter = std::min(height, width);
    g->resized_height = height * tall / shorter, g->resized_width = width * tall / shorter;
  } else if (fit == "height") {
    g->resized_height = tall, g->resized_width = std::min(wide, (width * tall + height - 1) / height);
  } else if (fit == "inside" && wide * height < tall * width) {
    g->resized_height = std::max<int64_t>(1, nearest_whole(height * wide, width)), g->resized_width = wide;
  } else if (fit == "inside") {
    g->resized_height = tall, g->resized_width = std::max<int64_t>(1, nearest_whole(width * tall, height));
  } else {
    g->resized_height = tall, g->resized_width = wide;
  }
}

// The two source places that output place `index` is blended from, and the share of the upper one.
struct Neighbours {
  int64_t low, high;
  float share;
};

Neighbours neighbours(int64_t index, int64_t source, int64_t wanted) {
  const double scale = static_cast<double>(source) / static_cast<double>(wanted);
  const double last = static_cast<double>(source) - 1.0;
  const double at = std::min(std::max((static_cast<double>(index) + 0.5) * scale - 0.5, 0.0), last);
  const double low = std::floor(at);
  const auto whole = static_cast<int64_t>(low);
  return {whole, std::min(whole + 1, source - 1), static_cast<float>(at - low)};
}

int64_t nearest(int64_t index, int64_t source, int64_t wanted) { return (2 * index + 1) * source / (2 * wanted); }

// The declared layout with one letter per axis of the tensor: a batch axis may be left out or added.
bool axes_of(std::string_view layout, size_t rank, std::string* axes) {
  const std::string_view inner = layout[0] == 'N' ? layout.substr(1) : layout;
  if (rank == layout.size()) {
    *axes = layout;
  } else if (rank == inner.size()) {
    *axes = inner;
  } else {
    *axes = "N" + std::string(inner);
  }
  return axes->size() == rank;
}

float* floats(Buffer& buffer) { return static_cast<float*>(buffer.data()); }

}  // namespace

Status plan_geometry(const edgepack_preprocess& how, int64_t height, int64_t width, Geometry* geometry) {
  Geometry g;
  g.source_height = height, g.source_width = width;
  plan_resize(how, &g);
  g.height = g.resized_height, g.width = g.resized_width;
  if (how.crop[0] != 0) {
    if (how.crop[0] > g.height || how.crop[1] > g.width) {
      return invalid("crop " + size_text(how.crop[0], how.crop[1]) + " is larger than the picture, which is " +
                     size_text(g.height, g.width) + " after resize");
    }
    g.height = how.crop[0], g.width = how.crop[1];
    g.first_row = (g.resized_height - g.height) / 2, g.first_column = (g.resized_width - g.width) / 2;
  }
  g.out_height = g.height, g.out_width = g.width;
  if (how.pad[0] != 0) {
    if (g.height > how.pad[0] || g.width > how.pad[1]) {
      return invalid("pad " + size_text(how.pad[0], how.pad[1]) + " is smaller than the picture, which is " +
                     size_text(g.height, g.width) + " by then");
    }
    g.out_height = how.pad[0], g.out_width = how.pad[1];
    if (how.pad_place == std::string_view("center")) {
      g.top = (g.out_height - g.height) / 2, g.left = (g.out_width - g.width) / 2;
    }
  }
  *geometry = g;
  return ok();
}

Status ImageInput::set(const Tensor& tensor, const edgepack_image& image, void* engine, const Pixels& pixels) {
  if (!tensor.preprocess) {
    return invalid("no pre-processing was declared for the input " + printable(tensor.name) +
                   ": build the bundle with --preprocess, or give the tensor itself to edgepack_set_input");
  }
  const edgepack_preprocess& how = tensor.preprocess->declared;
  EDGEPACK_TRY(check_image(image));
  if (!planned_ || geometry_.source_height != image.height || geometry_.source_width != image.width) {
    EDGEPACK_TRY(plan(tensor, how, image.height, image.width, pixels));
  }
  line_rows_[0] = line_rows_[1] = -1;
  for (int64_t row = 0; row < geometry_.out_height; ++row) {
    const int64_t inside = row - geometry_.top;
    if (inside < 0 || inside >= geometry_.height) {
      write_row(tensor, padding_, row, engine);
      continue;
    }
    compute_row(image, how, geometry_.first_row + inside, pixels);
    write_row(tensor, row_, row, engine);
  }
  return ok();
}

Status ImageInput::plan(const Tensor& tensor, const edgepack_preprocess& how, int64_t height, int64_t width,
                        const Pixels& pixels) {
  Geometry geometry;
  EDGEPACK_TRY(plan_geometry(how, height, width, &geometry));
  EDGEPACK_TRY(check_shape(tensor, how, geometry));
  planned_ = false;  // until all of it fits together
  bilinear_ = how.method == std::string_view("bilinear") &&
              (geometry.resized_height != height || geometry.resized_width != width);
  if (!allocate(tensor, geometry)) return {EDGEPACK_OUT_OF_MEMORY, "no memory for pre-processing"};
  geometry_ = geometry;
  plan_columns();
  fill_padding(how, pixels);
  planned_ = true;
  return ok();
}

Status ImageInput::check_shape(const Tensor& tensor, const edgepack_preprocess& how, const Geometry& geometry) {
  const std::string found = describe(tensor.dtype, tensor.shape);
  if (tensor.dtype == EDGEPACK_BOOL) return invalid("the input is " + found + ", which a picture can't become");
  std::string axes;
  if (!axes_of(how.layout, tensor.shape.size(), &axes)) {
    return invalid("layout " + std::string(how.layout) + " does not describe the input, which is " + found);
  }
  channels_ = how.color == std::string_view("GRAY") ? 1 : 3;
  if (channels_ != 1 && axes.find('C') == std::string::npos) {
    return invalid("layout " + axes + " has no channel axis, but color " + how.color + " has 3 channels");
  }
  // What each axis must be, and its step in the engine's memory.
  size_t steps[EDGEPACK_MAX_RANK] = {};
  size_t step = 1;
  for (size_t at = tensor.perm.size(); at-- > 0;) {
    const auto axis = static_cast<size_t>(tensor.perm[at]);
    steps[axis] = step;
    step *= static_cast<size_t>(tensor.shape[axis]);
  }
  steps_ = {};
  Shape wanted;
  for (size_t axis = 0; axis < axes.size(); ++axis) {
    switch (axes[axis]) {
      case 'N': wanted.push_back(1); break;
      case 'C':
        wanted.push_back(static_cast<int64_t>(channels_));
        steps_.channel = steps[axis];
        break;
      case 'H':
        wanted.push_back(geometry.out_height);
        steps_.row = steps[axis];
        break;
      default: wanted.push_back(geometry.out_width); steps_.column = steps[axis];
    }
  }
  if (wanted == tensor.shape) return ok();
  return invalid("a picture of " + size_text(geometry.source_height, geometry.source_width) + " becomes " +
                 describe(tensor.dtype, wanted) + ", the input is " + found);
}

bool ImageInput::allocate(const Tensor& tensor, const Geometry& geometry) {
  const auto width = static_cast<size_t>(geometry.width), out_width = static_cast<size_t>(geometry.out_width);
  const size_t read = bilinear_ ? 2 * width : width;
  return columns_.allocate(read * sizeof(int32_t)) && shares_.allocate(width * sizeof(float)) &&
         bytes_.allocate(6 * read) && lines_.allocate(6 * width * sizeof(float)) &&
         row_.allocate(3 * out_width * sizeof(float)) && padding_.allocate(3 * out_width * sizeof(float)) &&
         rounded_.allocate(out_width * info(tensor.dtype).size);
}

void ImageInput::plan_columns() {
  const Geometry& g = geometry_;
  auto* const columns = static_cast<int32_t*>(columns_.data());
  for (int64_t i = 0; i < g.width; ++i) {
    if (!bilinear_) {
      columns[i] = static_cast<int32_t>(nearest(g.first_column + i, g.source_width, g.resized_width));
      continue;
    }
    const Neighbours found = neighbours(g.first_column + i, g.source_width, g.resized_width);
    columns[i] = static_cast<int32_t>(found.low);
    columns[g.width + i] = static_cast<int32_t>(found.high);
    floats(shares_)[i] = found.share;
  }
}

// Pad values go through mean and std as pixels do. A row's own pixels are written over them later.
void ImageInput::fill_padding(const edgepack_preprocess& how, const Pixels& pixels) {
  const auto width = static_cast<size_t>(geometry_.out_width);
  for (size_t channel = 0; channel < channels_; ++channel) {
    float* const values = floats(padding_) + channel * width;
    std::fill_n(values, width, how.pad_value[channel]);
    pixels.normalize(values, width, how.mean[channel], how.std[channel]);
    std::copy_n(values, width, floats(row_) + channel * width);
  }
}

// Row `row` of the source at the picture's columns. The row `keep`, if it is there, stays for the next call.
const float* ImageInput::source_line(const edgepack_image& image, int64_t row, int64_t keep, const Pixels& pixels) {
  const auto width = static_cast<size_t>(geometry_.width);
  for (size_t slot = 0; slot < 2; ++slot) {
    if (line_rows_[slot] == row) return floats(lines_) + slot * 3 * width;
  }
  const size_t slot = line_rows_[0] == keep ? 1 : 0;
  line_rows_[slot] = row;
  float* const line = floats(lines_) + slot * 3 * width;
  const size_t read = bilinear_ ? 2 * width : width;
  auto* const bytes = static_cast<uint8_t*>(bytes_.data());
  uint8_t* const rgb = bytes + 3 * read;
  read_pixels(image, static_cast<size_t>(row), static_cast<const int32_t*>(columns_.data()), read, pixels, bytes,
              {rgb, rgb + read, rgb + 2 * read});
  for (size_t channel = 0; channel < 3; ++channel) {
    const uint8_t* const from = rgb + channel * read;
    if (bilinear_) {
      pixels.blend_columns(from, from + width, floats(shares_), width, line + channel * width);
    } else {
      std::copy_n(from, width, line + channel * width);
    }
  }
  return line;
}

// Row `row` of the resized picture: resize, colour, mean and std.
void ImageInput::compute_row(const edgepack_image& image, const edgepack_preprocess& how, int64_t row,
                             const Pixels& pixels) {
  const Geometry& g = geometry_;
  const auto width = static_cast<size_t>(g.width), out_width = static_cast<size_t>(g.out_width);
  Neighbours place{nearest(row, g.source_height, g.resized_height), 0, 0};
  if (bilinear_) place = neighbours(row, g.source_height, g.resized_height);
  const float* const upper = source_line(image, place.low, place.high, pixels);
  const float* const lower = bilinear_ ? source_line(image, place.high, place.low, pixels) : upper;

  float* const out = floats(row_) + g.left;
  const bool reversed = how.color == std::string_view("BGR");
  if (channels_ == 3) {
    for (size_t channel = 0; channel < 3; ++channel) {
      const size_t from = (reversed ? 2 - channel : channel) * width;
      pixels.blend_rows(upper + from, lower + from, place.share, width, out + channel * out_width);
      pixels.normalize(out + channel * out_width, width, how.mean[channel], how.std[channel]);
    }
    return;
  }
  // Three channels become one: the two that are not in the result wait in the unused parts of the row.
  for (size_t channel = 0; channel < 3; ++channel) {
    pixels.blend_rows(upper + channel * width, lower + channel * width, place.share, width, out + channel * out_width);
  }
  pixels.gray(out, out + out_width, out + 2 * out_width, width, out);
  pixels.normalize(out, width, how.mean[0], how.std[0]);
}

void ImageInput::write_row(const Tensor& tensor, const Buffer& values, int64_t row, void* engine) {
  const auto width = static_cast<size_t>(geometry_.out_width);
  for (size_t channel = 0; channel < channels_; ++channel) {
    const float* const from = static_cast<const float*>(values.data()) + channel * width;
    const void* source = from;
    if (tensor.dtype != EDGEPACK_FLOAT32) {
      round_run(from, width, tensor.dtype, rounded_.data());
      source = rounded_.data();
    }
    to_engine_run(tensor, source, width, engine, channel * steps_.channel + static_cast<size_t>(row) * steps_.row,
                  steps_.column);
  }
}

}  // namespace edgepack
