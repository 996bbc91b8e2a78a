// Pre-processing: refusals, edges, every format inside exactly its own memory (a sanitizer watches), and the NEON loops
// against the plain ones. That the numbers are numpy's is shown by tests/integration/test_preprocess_cpp.py.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "check.h"
#include "edgepack/edgepack.h"
#include "frame.h"
#include "image.h"

using namespace edgepack;

// Counts what is allocated, for the test that nothing is.
static size_t allocations = 0;
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(size);
}
void* operator new(size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

// Small and the same on every machine.
struct Random {
  uint32_t state = 12345;
  uint8_t byte() {
    state = state * 1664525U + 1013904223U;
    return static_cast<uint8_t>(state >> 24);
  }
};

// A picture whose planes are blocks of their own, exactly as large as they must be.
struct Picture {
  edgepack_image image = {};
  std::unique_ptr<uint8_t[]> memory[3];

  Picture(edgepack_pixel_format format, uint32_t width, uint32_t height, size_t gap = 0, uint32_t seed = 1) {
    image.format = format;
    image.width = width, image.height = height;
    Random random{seed};
    for (size_t i = 0; i < 3; ++i) {
      const PlaneSize size = plane_size(format, i, width, height);
      if (size.rows == 0) break;
      const size_t stride = size.row_bytes + gap, bytes = stride * (size.rows - 1) + size.row_bytes;
      memory[i] = std::make_unique<uint8_t[]>(bytes);
      for (size_t at = 0; at < bytes; ++at) memory[i][at] = random.byte();
      image.planes[i] = {memory[i].get(), stride, bytes};
    }
  }
};

constexpr edgepack_pixel_format kFormats[] = {EDGEPACK_RGB,  EDGEPACK_BGR,  EDGEPACK_RGBA, EDGEPACK_BGRA,
                                              EDGEPACK_GRAY, EDGEPACK_NV12, EDGEPACK_NV21, EDGEPACK_I420,
                                              EDGEPACK_YUYV, EDGEPACK_UYVY};

edgepack_preprocess plain() {
  edgepack_preprocess how = {};
  how.layout = "HWC", how.color = "RGB", how.fit = "stretch", how.method = "bilinear", how.pad_place = "center";
  for (float& value : how.std) value = 1;
  return how;
}

Tensor tensor(const edgepack_preprocess& how, Shape shape, edgepack_dtype dtype = EDGEPACK_FLOAT32) {
  Tensor made;
  made.name = made.engine_name = "x";
  made.dtype = made.engine_dtype = dtype;
  made.shape = made.engine_shape = std::move(shape);
  made.elements = 1;
  for (const int64_t size : made.shape) {
    made.perm.push_back(static_cast<int>(made.perm.size()));
    made.elements *= static_cast<size_t>(size);
  }
  made.bytes = made.engine_bytes = made.elements * info(dtype).size;
  made.preprocess = Preprocess{"", how};
  return made;
}

// Runs a declaration; the memory behind the result is exactly the tensor's.
Status run(const Tensor& input, const edgepack_image& image, std::vector<float>* values,
           const Pixels& pixels = fast_pixels()) {
  ImageInput inside;
  values->assign(input.elements, -1);
  return inside.set(input, image, values->data(), pixels);
}

std::vector<float> good(const edgepack_preprocess& how, const Shape& shape, const edgepack_image& image,
                        const Pixels& pixels = fast_pixels()) {
  std::vector<float> values;
  CHECK_OK(run(tensor(how, shape), image, &values, pixels));
  return values;
}

Status refusal(const edgepack_preprocess& how, const Shape& shape, const edgepack_image& image) {
  std::vector<float> values;
  return run(tensor(how, shape), image, &values);
}

}  // namespace

TEST("packed formats give their bytes as red, green, blue") {
  const uint8_t bytes[] = {10, 20, 30, 40};
  const std::vector<float> forward = {10, 20, 30}, backward = {30, 20, 10}, gray = {10, 10, 10};
  const std::pair<edgepack_pixel_format, std::vector<float>> known[] = {{EDGEPACK_RGB, forward},
                                                                        {EDGEPACK_BGR, backward},
                                                                        {EDGEPACK_RGBA, forward},
                                                                        {EDGEPACK_BGRA, backward},
                                                                        {EDGEPACK_GRAY, gray}};
  for (const auto& [format, expected] : known) {
    edgepack_image image = {};
    image.format = format, image.width = image.height = 1;
    image.planes[0] = {bytes, 4, 4};
    CHECK(good(plain(), {1, 1, 3}, image) == expected);
  }
}

TEST("the YUV formats find their samples: black, white, red, and blue in full range") {
  // Two rows of two pixels share a chroma sample, or two pixels of a row do.
  const struct {
    uint8_t y, u, v;
    int32_t full;
    std::vector<float> rgb;
  } known[] = {{16, 128, 128, 0, {0, 0, 0}},
               {235, 128, 128, 0, {255, 255, 255}},
               {81, 90, 240, 0, {254, 0, 0}},
               {29, 255, 107, 1, {0, 0, 254}}};
  for (const auto& color : known) {
    const uint8_t y[4] = {color.y, color.y, color.y, color.y}, uv[2] = {color.u, color.v}, vu[2] = {color.v, color.u};
    const uint8_t yuyv[8] = {color.y, color.u, color.y, color.v, color.y, color.u, color.y, color.v};
    const uint8_t uyvy[8] = {color.u, color.y, color.v, color.y, color.u, color.y, color.v, color.y};
    const std::pair<edgepack_pixel_format, std::vector<edgepack_plane>> images[] = {
        {EDGEPACK_NV12, {{y, 2, 4}, {uv, 2, 2}}},
        {EDGEPACK_NV21, {{y, 2, 4}, {vu, 2, 2}}},
        {EDGEPACK_I420, {{y, 2, 4}, {uv, 1, 1}, {uv + 1, 1, 1}}},
        {EDGEPACK_YUYV, {{yuyv, 4, 8}}},
        {EDGEPACK_UYVY, {{uyvy, 4, 8}}}};
    for (const auto& [format, planes] : images) {
      edgepack_image image = {};
      image.format = format, image.width = image.height = 2, image.full_range = color.full;
      for (size_t i = 0; i < planes.size(); ++i) image.planes[i] = planes[i];
      const std::vector<float> found = good(plain(), {2, 2, 3}, image);
      for (size_t i = 0; i < 12; ++i) CHECK_EQ(color.rgb[i % 3], found[i]);
    }
  }
}

TEST("no format is read beyond its planes at any size, with and without a gap between rows") {
  for (const edgepack_pixel_format format : kFormats) {
    for (const auto& [width, height] : {std::pair{1U, 1U}, {2U, 3U}, {17U, 31U}, {31U, 17U}, {64U, 48U}}) {
      const bool yuv = format >= EDGEPACK_NV12;
      for (const size_t gap : {size_t{0}, size_t{5}}) {
        const Picture picture(format, yuv ? width * 2 : width, yuv ? height * 2 : height, gap);
        for (const char* method : {"bilinear", "nearest"}) {
          edgepack_preprocess how = plain();
          how.method = method;
          how.resize[0] = 13, how.resize[1] = 29;
          CHECK_EQ(size_t{13} * 29 * 3, good(how, {13, 29, 3}, picture.image).size());
          how.resize[0] = 70, how.resize[1] = 5, how.crop[0] = 3, how.crop[1] = 4;
          CHECK_EQ(size_t{3} * 4 * 3, good(how, {3, 4, 3}, picture.image).size());
        }
      }
    }
  }
}

TEST("a picture that is described wrongly is refused, and the sentence names the plane and the numbers") {
  const auto refused = [](edgepack_image image) {
    std::vector<float> values;
    return run(tensor(plain(), {2, 4, 3}), image, &values);
  };
  const Picture rgb(EDGEPACK_RGB, 4, 2), nv12(EDGEPACK_NV12, 4, 2), i420(EDGEPACK_I420, 4, 2);
  const auto with = [](const Picture& picture, auto change) {
    edgepack_image image = picture.image;
    change(&image);
    return image;
  };
  for (const int number : {0, 11, -1}) {
    CHECK_SAYS("no pixel format " + std::to_string(number),
               refused(with(rgb, [&](edgepack_image* image) { std::memcpy(&image->format, &number, sizeof number); })));
  }
  CHECK_SAYS("1 to 65536 pixels", refused(with(rgb, [](edgepack_image* i) { i->width = 0; })));
  CHECK_SAYS("1 to 65536 pixels", refused(with(rgb, [](edgepack_image* i) { i->height = 65537; })));
  CHECK_SAYS("plane 0 of rgb 4x2 is NULL", refused(with(rgb, [](edgepack_image* i) { i->planes[0].data = nullptr; })));
  CHECK_SAYS("a stride of 11 bytes is less than a row of 12",
             refused(with(rgb, [](edgepack_image* i) { i->planes[0].stride = 11; })));
  CHECK_SAYS("holds 23 bytes, too few for 2 rows with a stride of 12",
             refused(with(rgb, [](edgepack_image* i) { i->planes[0].bytes = 23; })));
  CHECK_SAYS("too few", refused(with(rgb, [](edgepack_image* i) { i->planes[0].stride = SIZE_MAX; })));
  CHECK_SAYS("plane 1 of nv12 4x2 is NULL", refused(with(nv12, [](edgepack_image* i) { i->planes[1] = {}; })));
  CHECK_SAYS("plane 2 of i420 4x2 holds 1 bytes",
             refused(with(i420, [](edgepack_image* i) { i->planes[2].bytes = 1; })));
  CHECK_SAYS("stands for 2x2 pixels, so the width and height must be even, not nv12 4x3",
             refused(with(nv12, [](edgepack_image* i) { i->height = 3; })));
  CHECK_SAYS("so the width must be even, not yuyv 5x3",
             refused(with(nv12, [](edgepack_image* i) { i->format = EDGEPACK_YUYV, i->width = 5, i->height = 3; })));
  CHECK_OK(refused(rgb.image));
}

TEST("a declaration that does not lead to the input is refused with both sizes") {
  const Picture rgb(EDGEPACK_RGB, 20, 10);
  edgepack_preprocess how = plain();
  CHECK_SAYS("a picture of [10, 20] becomes float32 [10, 20, 3], the input is float32 [9, 20, 3]",
             refusal(how, {9, 20, 3}, rgb.image));
  CHECK_SAYS("layout HWC does not describe the input", refusal(how, {10, 20}, rgb.image));
  how.layout = "HW";
  CHECK_SAYS("layout HW has no channel axis, but color RGB has 3", refusal(how, {10, 20}, rgb.image));
  how = plain();
  how.crop[0] = 11, how.crop[1] = 5;
  CHECK_SAYS("crop [11, 5] is larger than the picture, which is [10, 20] after resize",
             refusal(how, {11, 5, 3}, rgb.image));
  how = plain();
  how.pad[0] = 32, how.pad[1] = 19;
  CHECK_SAYS("pad [32, 19] is smaller than the picture, which is [10, 20] by then",
             refusal(how, {32, 19, 3}, rgb.image));
  std::vector<float> values;
  Tensor bare = tensor(plain(), {10, 20, 3});
  bare.preprocess.reset();
  CHECK_SAYS("no pre-processing was declared for the input x", run(bare, rgb.image, &values));
  CHECK_SAYS("which a picture can't become", run(tensor(plain(), {10, 20, 3}, EDGEPACK_BOOL), rgb.image, &values));
}

TEST("a letterbox keeps the whole picture in the middle of the padding, which goes through mean and std") {
  Picture gray(EDGEPACK_GRAY, 4, 2);
  std::memset(gray.memory[0].get(), 200, 8);
  edgepack_preprocess how = plain();
  how.layout = "HW", how.color = "GRAY", how.fit = "inside";
  how.resize[0] = how.pad[0] = 7, how.resize[1] = how.pad[1] = 6;
  how.pad_value[0] = 114, how.mean[0] = 100, how.std[0] = 2;
  // 4x2 fits 6x7 (width, height) as 6x3; (7 - 3) / 2 = 2 rows above it.
  const std::vector<float> found = good(how, {7, 6}, gray.image);
  for (size_t row = 0; row < 7; ++row) {
    const bool inside = row >= 2 && row < 5;
    for (size_t column = 0; column < 6; ++column) CHECK(std::fabs(found[row * 6 + column] - (inside ? 50 : 7)) < 1e-4F);
  }
  how.pad_place = "top_left";
  CHECK(std::fabs(good(how, {7, 6}, gray.image)[2 * 6 + 5] - 50) < 1e-4F);
  CHECK_EQ(7.0F, good(how, {7, 6}, gray.image)[3 * 6]);
}

TEST("sizes are those of the rules, also where they end in halves") {
  const auto sizes = [](const char* fit, int32_t tall, int32_t wide, int64_t height, int64_t width) {
    edgepack_preprocess how = plain();
    how.fit = fit;
    how.resize[0] = tall, how.resize[1] = wide;
    Geometry g;
    CHECK_OK(plan_geometry(how, height, width, &g));
    return std::to_string(g.resized_height) + "x" + std::to_string(g.resized_width);
  };
  CHECK_EQ("256x455", sizes("stretch", 256, 0, 1080, 1920));
  CHECK_EQ("640x640", sizes("stretch", 640, 640, 1080, 1920));
  CHECK_EQ("360x640", sizes("inside", 640, 640, 1080, 1920));
  CHECK_EQ("360x640", sizes("inside", 640, 640, 721, 1280));  // 360.5: half to even
  CHECK_EQ("362x640", sizes("inside", 640, 640, 723, 1280));  // 361.5
  CHECK_EQ("1x640", sizes("inside", 640, 640, 1, 9000));
  CHECK_EQ("640x1", sizes("inside", 640, 640, 9000, 1));
  CHECK_EQ("48x97", sizes("height", 48, 320, 100, 201));  // 96.48: rounded up
  CHECK_EQ("48x320", sizes("height", 48, 320, 10, 2000));
}

TEST("another size, and the first one again, give what a fresh start gives") {
  const Picture large(EDGEPACK_NV12, 64, 48), small(EDGEPACK_NV12, 10, 6, 3, 7);
  edgepack_preprocess how = plain();
  how.fit = "inside";
  how.resize[0] = how.pad[0] = 20, how.resize[1] = how.pad[1] = 30;
  const Tensor input = tensor(how, {20, 30, 3});
  ImageInput kept;
  std::vector<float> values(input.elements);
  for (const Picture* picture : {&large, &small, &large, &large}) {
    CHECK_OK(kept.set(input, picture->image, values.data()));
    CHECK(values == good(how, {20, 30, 3}, picture->image));
  }
}

TEST("a second picture of the same size allocates nothing") {
  const Picture picture(EDGEPACK_NV12, 64, 48);
  edgepack_preprocess how = plain();
  how.resize[0] = how.resize[1] = 20;
  const Tensor input = tensor(how, {20, 20, 3});
  ImageInput kept;
  std::vector<float> values(input.elements);
  CHECK_OK(kept.set(input, picture.image, values.data()));
  const size_t before = allocations;
  const bool fine = kept.set(input, picture.image, values.data()).ok();
  const size_t after = allocations;
  CHECK(fine);
  CHECK_EQ(before, after);
}

TEST("the loops for this processor give what the plain ones give, at every length") {
  Random random;
  for (size_t count = 0; count < 40; ++count) {
    std::vector<uint8_t> a(count), b(count), c(count), rgb[2][3];
    std::vector<float> x(count), y(count), z(count), share(count), out[2];
    for (size_t i = 0; i < count; ++i) {
      a[i] = random.byte(), b[i] = random.byte(), c[i] = random.byte();
      const auto real = [&](float scale) { return static_cast<float>(random.byte()) * scale; };
      x[i] = real(0.7F), y[i] = real(1.1F), z[i] = real(0.3F), share[i] = real(1 / 256.0F);
    }
    const Pixels* const both[] = {&plain_pixels(), &fast_pixels()};
    const auto compare = [&](const auto& call) {
      for (size_t which = 0; which < 2; ++which) {
        out[which] = x;
        call(*both[which], out[which].data());
      }
      return out[0] == out[1];
    };
    CHECK(compare([&](const Pixels& p, float* to) { p.blend_columns(a.data(), b.data(), share.data(), count, to); }));
    CHECK(compare([&](const Pixels& p, float* to) { p.blend_rows(x.data(), y.data(), 0.3F, count, to); }));
    CHECK(compare([&](const Pixels& p, float* to) { p.gray(x.data(), y.data(), z.data(), count, to); }));
    compare([&](const Pixels& p, float* to) { p.normalize(to, count, 123.675F, 58.395F); });
    for (size_t i = 0; i < count; ++i) CHECK(std::fabs(out[0][i] - out[1][i]) <= std::fabs(out[0][i]) * 0x1p-22F);
    const YuvMatrix matrix = {16, 9539, 14686, 1747, 4366, 17305};
    for (size_t which = 0; which < 2; ++which) {
      for (std::vector<uint8_t>& plane : rgb[which]) plane.assign(count, 0);
      both[which]->yuv_to_rgb(a.data(), b.data(), c.data(), count, matrix, rgb[which][0].data(), rgb[which][1].data(),
                              rgb[which][2].data());
    }
    for (size_t plane = 0; plane < 3; ++plane) CHECK(rgb[0][plane] == rgb[1][plane]);
  }
  if (&plain_pixels() != &fast_pixels()) std::printf("with NEON\n");
}

TEST("whole pictures come out the same with the plain loops") {
  for (const edgepack_pixel_format format : kFormats) {
    const Picture picture(format, 62, 46, 2);
    for (const char* color : {"RGB", "BGR", "GRAY"}) {
      edgepack_preprocess how = plain();
      how.color = color;
      how.resize[0] = 33, how.resize[1] = 21;
      const int64_t channels = color[0] == 'G' ? 1 : 3;
      CHECK(good(how, {33, 21, channels}, picture.image, plain_pixels()) ==
            good(how, {33, 21, channels}, picture.image));
    }
  }
}

namespace {

std::string variant(const std::string& preprocess) {
  check::folder("variant");
  check::write("variant/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=fp32\nbound cosine=0.99\nfile path=none\n"
               "input name=hex:61 dtype=float32 shape=1,3,2,2 engine_name=hex:61 engine_dtype=float32 "
               "engine_shape=2,2,3 perm=0,2,3,1\n"
               "output name=hex:63 dtype=float32 shape=1,3,2,2 engine_name=hex:63 engine_dtype=float32 "
               "engine_shape=2,2,3 perm=0,2,3,1\n" +
                   preprocess);
  return check::path("variant");
}

}  // namespace

TEST("through the public API: the declaration can be read, and a picture becomes the input") {
  edgepack_variant* v = nullptr;
  const std::string declared =
      "input=0 layout=NCHW color=BGR resize=2 fit=stretch method=nearest crop=2,2 mean=0,10,20 std=2";
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant("preprocess " + declared + "\n").c_str(), nullptr, &v));
  edgepack_preprocess how;
  CHECK_EQ(EDGEPACK_OK, edgepack_get_preprocess(v, 0, &how));
  CHECK_EQ(declared, how.text);
  CHECK_EQ(std::string("BGR"), how.color);
  CHECK_EQ(2, how.resize[0]);
  CHECK_EQ(0, how.resize[1]);
  CHECK_EQ(20.0F, how.mean[2]);
  CHECK_EQ(2.0F, how.std[2]);
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_get_preprocess(v, 1, &how));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_get_preprocess(v, 0, nullptr));

  const uint8_t pixels[12] = {2, 10, 20, 4, 10, 20, 6, 10, 20, 8, 10, 20};
  edgepack_image image = {};
  image.format = EDGEPACK_RGB, image.width = image.height = 2;
  image.planes[0] = {pixels, 6, sizeof pixels};
  CHECK_EQ(EDGEPACK_OK, edgepack_set_image(v, 0, &image));
  CHECK_EQ(EDGEPACK_OK, edgepack_run(v));
  float found[12] = {};
  CHECK_EQ(EDGEPACK_OK, edgepack_get_output(v, 0, found, sizeof found));
  const float expected[12] = {10, 10, 10, 10, 0, 0, 0, 0, -9, -8, -7, -6};
  CHECK(std::memcmp(expected, found, sizeof found) == 0);

  image.planes[0].bytes = 11;
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_image(v, 0, &image));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_run(v));
  CHECK_EQ(std::string("input 0 has not been set"), edgepack_error(v));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_image(v, 0, nullptr));
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_image(v, 1, &image));
  edgepack_close(v);
}

TEST("without a declaration there is none to read, and a picture is refused") {
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant("").c_str(), nullptr, &v));
  edgepack_preprocess how;
  CHECK_EQ(EDGEPACK_OK, edgepack_get_preprocess(v, 0, &how));
  CHECK(how.text == nullptr && how.layout == nullptr);
  const Picture picture(EDGEPACK_RGB, 2, 2);
  CHECK_EQ(EDGEPACK_INVALID_ARGUMENT, edgepack_set_image(v, 0, &picture.image));
  CHECK(std::string(edgepack_error(v)).find("--preprocess") != std::string::npos);
  edgepack_close(v);
}

CHECK_MAIN
