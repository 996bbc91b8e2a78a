// variant.txt: what a variant is, and how the source model's tensors appear inside the engine's files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dtype.h"
#include "status.h"

namespace edgepack {

using Shape = std::vector<int64_t>;

// How a picture becomes an input: what the API shows, and the text that it was read from (`text` is set when asked).
struct Preprocess {
  std::string text;
  edgepack_preprocess declared = {};
};

// engine = quantize_or_cast(transpose(source, perm)).reshape(engine_shape); outputs go the other way.
struct Tensor {
  std::string name;  // any bytes
  edgepack_dtype dtype = EDGEPACK_FLOAT32;
  Shape shape;
  std::string engine_name;  // no NUL
  edgepack_dtype engine_dtype = EDGEPACK_FLOAT32;
  Shape engine_shape;
  std::vector<int> perm;       // engine axis i (before the reshape) is source axis perm[i]
  std::optional<float> scale;  // quantized when set; engine_dtype is then an integer
  int32_t zero_point = 0;
  size_t elements = 0;                   // the same on both sides
  size_t bytes = 0;                      // on the source's side
  size_t engine_bytes = 0;               // on the engine's side
  std::optional<Preprocess> preprocess;  // of an input, where the user declared one
};

struct Descriptor {
  std::string engine;
  std::string version;
  std::string precision;
  double bound_cosine = 0;
  std::optional<double> bound_sqnr_db;
  std::vector<std::string> files;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
};

// Parse the text of a variant.txt. Strict: an unknown, missing or repeated key is an error that names the line.
Status parse_descriptor(std::string_view text, Descriptor* descriptor);

// Read and parse a file.
Status read_descriptor(const std::string& path, Descriptor* descriptor);

// How an engine's own description of a tensor is compared with the descriptor's, and the error when they differ.
Status check_engine_tensor(const Tensor& tensor, edgepack_dtype dtype, const Shape& shape);

// "float32 [1, 3, 224, 224]", for messages.
std::string describe(edgepack_dtype dtype, const Shape& shape);

// A name for messages: printable ASCII as it is, everything else as \xNN, shortened.
std::string printable(std::string_view name);

}  // namespace edgepack
