// A picture becomes an input tensor, by the declaration in variant.txt. docs/preprocess.md has the rules and
// edgepack/preprocess.py is the same in numpy; both sides compute the same numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "descriptor.h"
#include "memory.h"
#include "pixels.h"

namespace edgepack {

// Sizes on the way, in pixels.
struct Geometry {
  int64_t source_height = 0, source_width = 0;
  int64_t resized_height = 0, resized_width = 0;
  int64_t first_row = 0, first_column = 0;  // of the crop, in the resized picture
  int64_t height = 0, width = 0;            // what the crop leaves
  int64_t top = 0, left = 0;                // where that lies in the result
  int64_t out_height = 0, out_width = 0;
};

// Refuses a crop that is larger than the picture, and a pad that is smaller.
Status plan_geometry(const edgepack_preprocess& how, int64_t height, int64_t width, Geometry* geometry);

// Pre-processing of one input: remembers what depends on the picture's size only, and allocates when that changes.
class ImageInput {
 public:
  // Write the whole input to `engine`. Fails before anything is written.
  Status set(const Tensor& tensor, const edgepack_image& image, void* engine, const Pixels& pixels = fast_pixels());

 private:
  // Elements from one to the next along each axis, in the engine's memory.
  struct Steps {
    size_t channel = 0, row = 0, column = 0;
  };

  Status plan(const Tensor& tensor, const edgepack_preprocess& how, int64_t height, int64_t width,
              const Pixels& pixels);
  Status check_shape(const Tensor& tensor, const edgepack_preprocess& how, const Geometry& geometry);
  bool allocate(const Tensor& tensor, const Geometry& geometry);
  void plan_columns();
  void fill_padding(const edgepack_preprocess& how, const Pixels& pixels);
  const float* source_line(const edgepack_image& image, int64_t row, int64_t keep, const Pixels& pixels);
  void compute_row(const edgepack_image& image, const edgepack_preprocess& how, int64_t row, const Pixels& pixels);
  void write_row(const Tensor& tensor, const Buffer& values, int64_t row, void* engine);

  bool planned_ = false;
  Geometry geometry_;
  Steps steps_;
  size_t channels_ = 0;
  bool bilinear_ = false;
  Buffer columns_;                   // int32: the source columns of the left neighbours, then of the right ones
  Buffer shares_;                    // float: of the right neighbour, per column
  Buffer bytes_;                     // uint8: Y, U, V, red, green, blue of `columns_`
  Buffer lines_;                     // float: two source rows at the picture's columns, three channels each
  int64_t line_rows_[2] = {-1, -1};  // which rows they are
  Buffer row_;                       // float: one row of the result, channel by channel
  Buffer padding_;                   // float: the same of nothing but padding
  Buffer rounded_;                   // a channel of a row in the source's dtype
};

}  // namespace edgepack
