#include <cstring>

#include "check.h"
#include "edgepack/edgepack.h"

namespace {

// Two inputs and two outputs for the null engine: output i is input i where the bytes agree in number.
std::string variant(const std::string& engine = "null") {
  check::folder("variant");
  check::write(
      "variant/variant.txt",
      "edgepack-variant 1\nengine name=" + engine +
          " version=1 precision=fp32\nbound cosine=0.99\nfile path=none\n"
          "input name=hex:22220a dtype=float32 shape=1,2,3 engine_name=hex:61 engine_dtype=float32 "
          "engine_shape=2,3 perm=0,1,2\n"
          "input name=hex:62 dtype=int64 shape= engine_name=hex:62 engine_dtype=int32 engine_shape=1 perm=\n"
          "output name=hex:63 dtype=float32 shape=1,2,3 engine_name=hex:63 engine_dtype=float32 "
          "engine_shape=2,3 perm=0,1,2\n"
          "output name=hex:64 dtype=int64 shape= engine_name=hex:64 engine_dtype=int32 engine_shape=1 perm=\n");
  return check::path("variant");
}

const float kImage[6] = {1, 2, 3, 4, 5, 6};

}  // namespace

TEST("open, describe, set, run, read, close") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant().c_str(), nullptr, &v));
  CHECK_EQ(std::string(""), edgepack_error(v));
  edgepack_about about;
  CHECK_EQ(EDGEPACK_OK, edgepack_describe(v, &about));
  CHECK_EQ(std::string("null"), about.engine);
  CHECK_EQ(std::string("fp32"), about.precision);
  CHECK_EQ(size_t{2}, about.inputs);
  CHECK(about.bound_sqnr_db != about.bound_sqnr_db);
  edgepack_tensor tensor;
  CHECK_EQ(EDGEPACK_OK, edgepack_input(v, 0, &tensor));
  CHECK_EQ(std::string("\"\"\n"), std::string(tensor.name, tensor.name_size));
  CHECK_EQ(3U, tensor.rank);
  CHECK_EQ(int64_t{3}, tensor.shape[2]);
  CHECK_EQ(sizeof kImage, tensor.bytes);
  CHECK_EQ(EDGEPACK_OK, edgepack_output(v, 1, &tensor));
  CHECK_EQ(EDGEPACK_INT64, tensor.dtype);
  CHECK_EQ(0U, tensor.rank);

  const int64_t number = -77;
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 0, kImage, sizeof kImage));
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 1, &number, sizeof number));
  for (int run = 0; run < 2; ++run) {
    CHECK_EQ(EDGEPACK_OK, edgepack_run(v));
    float image[6] = {};
    int64_t got = 0;
    CHECK_EQ(EDGEPACK_OK, edgepack_get_output(v, 0, image, sizeof image));
    CHECK_EQ(EDGEPACK_OK, edgepack_get_output(v, 1, &got, sizeof got));
    CHECK(std::memcmp(kImage, image, sizeof image) == 0);
    CHECK_EQ(number, got);
  }
  edgepack_close(v);
}

TEST("the wrong order, index, size or pointer is an error with a sentence, and the handle stays usable") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant().c_str(), nullptr, &v));
  float image[6] = {};
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_run(v));
  CHECK_EQ(std::string("input 0 has not been set"), edgepack_error(v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_get_output(v, 0, image, sizeof image));
  CHECK_EQ(std::string("there is no output: the model has not been run"), edgepack_error(v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_input(v, 2, kImage, sizeof kImage));
  CHECK_EQ(std::string("there is no input 2: the model has 2"), edgepack_error(v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_input(v, 0, kImage, sizeof kImage - 1));
  CHECK_EQ(std::string("\"\"\\x0a is float32 [1, 2, 3] of 24 bytes, given are 23"), edgepack_error(v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_input(v, 0, nullptr, sizeof kImage));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_input(v, 9, nullptr));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_describe(v, nullptr));
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 0, kImage, sizeof kImage));
  edgepack_close(v);
}

TEST("a variant that can't be opened keeps the reason, and every call on it fails") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_FILE_ERROR, edgepack_open(check::path("nowhere").c_str(), nullptr, &v));
  CHECK(std::string(edgepack_error(v)).find("variant.txt: No such file") != std::string::npos);
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_run(v));
  edgepack_close(v);
  CHECK_EQ(EDGEPACK_BAD_DESCRIPTOR, edgepack_open(variant("ncnn").c_str(), nullptr, &v));
  CHECK(std::string(edgepack_error(v)).find("use bin/edgepack-ncnn") != std::string::npos);
  edgepack_close(v);
  edgepack_options options = {};
  options.threads = 1000;
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_open(variant().c_str(), &options, &v));
  edgepack_close(v);
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_open(nullptr, nullptr, &v));
  edgepack_close(v);
}

TEST("no handle at all is no crash") {
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_open("x", nullptr, nullptr));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_run(nullptr));
  CHECK_EQ(std::string("there is no open variant"), edgepack_error(nullptr));
  edgepack_close(nullptr);
}

CHECK_MAIN
