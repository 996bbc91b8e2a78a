#include <atomic>
#include <cstring>
#include <thread>

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

TEST("of several variants the first one that takes the shapes is chosen") {
  const std::string good = variant();
  check::folder("other");
  check::write("other/variant.txt",
               "edgepack-variant 1\nengine name=tflite version=1 precision=int8\nbound cosine=0.99\nfile path=none\n"
               "input name=hex:61 dtype=float32 shape=1,2,4 engine_name=hex:61 engine_dtype=float32 "
               "engine_shape=2,4 perm=0,1,2\n"
               "output name=hex:63 dtype=float32 shape=1 engine_name=hex:63 engine_dtype=float32 engine_shape=1 "
               "perm=0\n");
  const std::string other = check::path("other"), missing = check::path("missing");
  const char* folders[] = {other.c_str(), good.c_str(), good.c_str(), missing.c_str()};
  edgepack_shape shapes[2] = {{3, {1, 2, 3}}, {0, {}}};
  size_t chosen = 9;
  CHECK_EQ(EDGEPACK_OK, edgepack_choose(folders, 4, shapes, 2, &chosen));
  CHECK_EQ(size_t{1}, chosen);

  shapes[0].sizes[2] = 4;
  CHECK_EQ(EDGEPACK_UNSUPPORTED, edgepack_choose(folders, 3, shapes, 2, &chosen));
  CHECK_EQ(EDGEPACK_OK, edgepack_choose(folders, 3, shapes, 1, &chosen));
  CHECK_EQ(size_t{0}, chosen);
  shapes[0].rank = 2;
  CHECK_EQ(EDGEPACK_FILE_ERROR, edgepack_choose(folders, 4, shapes, 1, &chosen));
  CHECK_EQ(EDGEPACK_UNSUPPORTED, edgepack_choose(folders, 3, nullptr, 0, &chosen));
  CHECK_EQ(EDGEPACK_UNSUPPORTED, edgepack_choose(folders, 0, shapes, 1, &chosen));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_choose(nullptr, 1, shapes, 1, &chosen));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_choose(folders, 1, nullptr, 1, &chosen));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_choose(folders, 1, shapes, 1, nullptr));
}

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

TEST("a tensor's layout and quantization inside the engine are described") {
  check::folder("variant");
  check::write("variant/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=int8\nbound cosine=0.9\nfile path=none\n"
               "input name=hex:61 dtype=float32 shape=1,3,4,5 engine_name=hex:61 engine_dtype=int8 "
               "engine_shape=4,5,3 perm=0,2,3,1 scale=0.5 zero_point=-3\n"
               "output name=hex:63 dtype=float32 shape=2 engine_name=hex:63 engine_dtype=float32 engine_shape=2 "
               "perm=0\n");
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(check::path("variant").c_str(), nullptr, &v));
  edgepack_tensor tensor;
  CHECK_EQ(EDGEPACK_OK, edgepack_input(v, 0, &tensor));
  CHECK_EQ(EDGEPACK_INT8, tensor.engine_dtype);
  CHECK_EQ(3U, tensor.engine_rank);
  CHECK((std::vector<int64_t>(tensor.engine_shape, tensor.engine_shape + 3) == std::vector<int64_t>{4, 5, 3}));
  CHECK((std::vector<uint32_t>(tensor.axes, tensor.axes + 4) == std::vector<uint32_t>{0, 2, 3, 1}));
  CHECK_EQ(0.5F, tensor.scale);
  CHECK_EQ(-3, tensor.zero_point);
  CHECK_EQ(EDGEPACK_OK, edgepack_output(v, 0, &tensor));
  CHECK_EQ(0.0F, tensor.scale);
  edgepack_close(v);
}

TEST("the runtime tells the version of its header") {
  CHECK_EQ(uint32_t{EDGEPACK_API_VERSION}, edgepack_api_version());
}

TEST("a profile needs inputs and a number of runs, and its operators are described one by one") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant().c_str(), nullptr, &v));
  edgepack_profile_summary summary;
  edgepack_operator op;
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_profile(v, 3, &summary));
  CHECK_EQ(std::string("input 0 has not been set"), edgepack_error(v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_profile_operator(v, 0, &op));
  CHECK_EQ(std::string("there is no operator 0: the profile has 0"), edgepack_error(v));
  const int64_t number = 1;
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 0, kImage, sizeof kImage));
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 1, &number, sizeof number));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_profile(v, 0, &summary));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_profile(v, 10001, &summary));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_profile(v, 3, nullptr));
  CHECK_EQ(EDGEPACK_OK, edgepack_profile(v, 3, &summary));
  CHECK_EQ(size_t{3}, summary.operators);
  CHECK_EQ(int64_t{18000}, summary.total_ns);
  CHECK_EQ(int64_t{18000}, summary.sum_ns);
  CHECK_EQ(std::string(""), summary.reason);
  CHECK_EQ(EDGEPACK_OK, edgepack_profile_operator(v, 1, &op));
  CHECK_EQ(std::string("relu"), std::string(op.name, op.name_size));
  CHECK_EQ(std::string("ReLU"), op.type);
  CHECK_EQ(int64_t{6000}, op.ns);
  CHECK_EQ(int64_t{3}, op.calls);
  float image[6];
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_get_output(v, 0, image, sizeof image));
  edgepack_close(v);
}

TEST("several threads may use one handle: calls come one after the other, and errors are whole sentences") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant().c_str(), nullptr, &v));
  const int64_t number = 5;
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 0, kImage, sizeof kImage));
  CHECK_EQ(EDGEPACK_OK, edgepack_set_input(v, 1, &number, sizeof number));
  CHECK_EQ(EDGEPACK_OK, edgepack_run(v));
  std::atomic<int> wrong{0};
  const auto work = [&](size_t self) {
    for (int i = 0; i < 300; ++i) {
      float image[6] = {};
      wrong += edgepack_set_input(v, 0, kImage, sizeof kImage) != EDGEPACK_OK;
      wrong += edgepack_run(v) != EDGEPACK_OK;
      wrong += edgepack_get_output(v, 0, image, sizeof image) != EDGEPACK_OK;
      wrong += std::memcmp(image, kImage, sizeof image) != 0;
      wrong += edgepack_get_output(v, self + 2, image, sizeof image) == EDGEPACK_OK;
      char text[80];
      edgepack_copy_error(v, text, sizeof text);
      wrong += std::strncmp(text, "there is no output ", 19) != 0;
    }
  };
  std::vector<std::thread> threads;
  for (size_t self = 0; self < 4; ++self) threads.emplace_back(work, self);
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(0, wrong.load());
  edgepack_close(v);
}

TEST("an error is copied as far as there is room") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant().c_str(), nullptr, &v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_run(v));
  char text[8] = "1234567";
  CHECK_EQ(std::strlen("input 0 has not been set"), edgepack_copy_error(v, text, sizeof text));
  CHECK_EQ(std::string("input 0"), text);
  CHECK_EQ(std::strlen("input 0 has not been set"), edgepack_copy_error(v, nullptr, 0));
  CHECK(edgepack_copy_error(nullptr, text, sizeof text) > 0);
  edgepack_close(v);
}

CHECK_MAIN
