#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "tensor.h"

using namespace edgepack;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Tensor tensor(edgepack_dtype dtype, Shape shape, edgepack_dtype engine_dtype, std::vector<int> perm) {
  Tensor t;
  t.dtype = dtype;
  t.engine_dtype = engine_dtype;
  t.elements = 1;
  for (const int64_t size : shape) t.elements *= static_cast<size_t>(size);
  t.shape = std::move(shape);
  t.perm = std::move(perm);
  t.bytes = t.elements * info(dtype).size;
  t.engine_bytes = t.elements * info(engine_dtype).size;
  return t;
}

template <typename To, typename From>
std::vector<To> there(const Tensor& t, const std::vector<From>& source) {
  CHECK_EQ(t.bytes, source.size() * sizeof(From));
  std::vector<To> engine(t.elements);
  CHECK_EQ(t.engine_bytes, engine.size() * sizeof(To));
  to_engine(t, source.data(), engine.data());
  return engine;
}

template <typename To, typename From>
std::vector<To> back(const Tensor& t, const std::vector<From>& engine) {
  CHECK_EQ(t.engine_bytes, engine.size() * sizeof(From));
  std::vector<To> source(t.elements);
  CHECK_EQ(t.bytes, source.size() * sizeof(To));
  from_engine(t, engine.data(), source.data());
  return source;
}

template <typename To, typename From>
std::vector<To> cast(edgepack_dtype from, edgepack_dtype to, const std::vector<From>& values) {
  return there<To>(tensor(from, {static_cast<int64_t>(values.size())}, to, {0}), values);
}

template <typename T>
void check_same(const std::vector<T>& expected, const std::vector<T>& actual) {
  CHECK_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < expected.size() && i < actual.size(); ++i) CHECK_EQ(+expected[i], +actual[i]);
}

}  // namespace

TEST("NCHW becomes NHWC and comes back") {
  const Tensor t = tensor(EDGEPACK_FLOAT32, {1, 2, 2, 3}, EDGEPACK_FLOAT32, {0, 2, 3, 1});
  const std::vector<float> source = {0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15};
  const std::vector<float> engine = {0, 10, 1, 11, 2, 12, 3, 13, 4, 14, 5, 15};
  check_same(engine, there<float>(t, source));
  check_same(source, back<float>(t, engine));
}

TEST("every permutation of four axes agrees with the definition, for elements of 1, 2, 4 and 8 bytes") {
  const Shape shape = {2, 3, 4, 5};
  for (int code = 0; code < 256; ++code) {
    const std::vector<int> perm = {code & 3, (code >> 2) & 3, (code >> 4) & 3, (code >> 6) & 3};
    unsigned seen = 0;
    for (const int axis : perm) seen |= 1U << axis;
    if (seen != 15) continue;
    for (const edgepack_dtype dtype : {EDGEPACK_UINT8, EDGEPACK_INT16, EDGEPACK_FLOAT32, EDGEPACK_INT64}) {
      const Tensor t = tensor(dtype, shape, dtype, perm);
      std::vector<char> source(t.bytes), engine(t.bytes), again(t.bytes);
      for (size_t i = 0; i < t.bytes; ++i) source[i] = static_cast<char>(i * 7 + 1);
      to_engine(t, source.data(), engine.data());
      size_t at = 0;
      size_t index[4];
      const auto size = [&](size_t i) { return static_cast<size_t>(shape[static_cast<size_t>(perm[i])]); };
      for (index[0] = 0; index[0] < size(0); ++index[0]) {
        for (index[1] = 0; index[1] < size(1); ++index[1]) {
          for (index[2] = 0; index[2] < size(2); ++index[2]) {
            for (index[3] = 0; index[3] < size(3); ++index[3], ++at) {
              size_t where[4];
              for (size_t i = 0; i < 4; ++i) where[static_cast<size_t>(perm[i])] = index[i];
              const size_t from = ((where[0] * 3 + where[1]) * 4 + where[2]) * 5 + where[3];
              const size_t bytes = info(dtype).size;
              CHECK(std::memcmp(&source[from * bytes], &engine[at * bytes], bytes) == 0);
            }
          }
        }
      }
      from_engine(t, engine.data(), again.data());
      CHECK(source == again);
    }
  }
}

TEST("a single value and axes of size 1 need no care") {
  check_same({42.0F}, there<float>(tensor(EDGEPACK_FLOAT32, {}, EDGEPACK_FLOAT32, {}), std::vector<float>{42}));
  check_same({1.0F, 2.0F},
             there<float>(tensor(EDGEPACK_FLOAT32, {1, 2, 1}, EDGEPACK_FLOAT32, {2, 1, 0}), std::vector<float>{1, 2}));
}

TEST("quantizing divides in float32, rounds half to even and saturates, like numpy") {
  Tensor t = tensor(EDGEPACK_FLOAT32, {10}, EDGEPACK_INT8, {0});
  t.scale = 0.5F;
  t.zero_point = 1;
  check_same<int8_t>(
      {1, 1, 1, 3, 3, -1, 127, -128, 127, -128},
      there<int8_t>(t, std::vector<float>{0, 0.25F, -0.25F, 0.75F, 1.25F, -0.75F, 1e9F, -1e9F, kInf, -kInf}));
  t = tensor(EDGEPACK_FLOAT32, {4}, EDGEPACK_UINT8, {0});
  t.scale = 1.0F / 255;
  check_same<uint8_t>({0, 128, 255, 0}, there<uint8_t>(t, std::vector<float>{-1, 0.50001F, 1, kNan}));
  t = tensor(EDGEPACK_FLOAT32, {3}, EDGEPACK_INT32, {0});
  t.scale = 1e-3F;
  check_same<int32_t>({1000, 2147483647, -2147483647 - 1}, there<int32_t>(t, std::vector<float>{1, 1e9F, -1e9F}));
  t = tensor(EDGEPACK_FLOAT64, {2}, EDGEPACK_INT16, {0});
  t.scale = 2.0F;
  check_same<int16_t>({2, -32768}, there<int16_t>(t, std::vector<double>{5, -1e6}));
}

TEST("dequantizing subtracts the zero point and scales in float32") {
  Tensor t = tensor(EDGEPACK_FLOAT32, {3}, EDGEPACK_INT8, {0});
  t.scale = 0.0235F;
  t.zero_point = -3;
  check_same<float>({0, (127.0F + 3) * 0.0235F, (-128.0F + 3) * 0.0235F},
                    back<float>(t, std::vector<int8_t>{-3, 127, -128}));
  t.dtype = EDGEPACK_INT64;
  t.bytes = 3 * 8;
  check_same<int64_t>({0, 3, -2}, back<int64_t>(t, std::vector<int8_t>{-3, 127, -128}));
}

TEST("quantizing transposes as well") {
  Tensor t = tensor(EDGEPACK_FLOAT32, {2, 2}, EDGEPACK_INT8, {1, 0});
  t.scale = 1.0F;
  check_same<int8_t>({1, 3, 2, 4}, there<int8_t>(t, std::vector<float>{1, 2, 3, 4}));
  check_same<float>({1, 2, 3, 4}, back<float>(t, std::vector<int8_t>{1, 3, 2, 4}));
}

TEST("64-bit integers narrow with saturation and widen exactly") {
  constexpr int64_t kBig = std::numeric_limits<int64_t>::max();
  check_same<int32_t>({7, -7, 2147483647, -2147483647 - 1},
                      cast<int32_t>(EDGEPACK_INT64, EDGEPACK_INT32, std::vector<int64_t>{7, -7, kBig, -kBig}));
  check_same<int64_t>({kBig}, cast<int64_t>(EDGEPACK_UINT64, EDGEPACK_INT64, std::vector<uint64_t>{~uint64_t{0}}));
  check_same<uint64_t>({0, 5}, cast<uint64_t>(EDGEPACK_INT64, EDGEPACK_UINT64, std::vector<int64_t>{-1, 5}));
  check_same<int64_t>({9007199254740993},
                      cast<int64_t>(EDGEPACK_INT64, EDGEPACK_INT64, std::vector<int64_t>{9007199254740993}));
}

TEST("floats truncate to integers, and what does not fit saturates") {
  check_same<int64_t>(
      {1, -1, 0, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()},
      cast<int64_t>(EDGEPACK_FLOAT32, EDGEPACK_INT64, std::vector<float>{1.9F, -1.9F, kNan, kInf, -1e30F}));
  check_same<uint8_t>({255, 0, 200},
                      cast<uint8_t>(EDGEPACK_FLOAT64, EDGEPACK_UINT8, std::vector<double>{256, -0.5, 200.9}));
  check_same<uint64_t>({std::numeric_limits<uint64_t>::max(), 0},
                       cast<uint64_t>(EDGEPACK_FLOAT32, EDGEPACK_UINT64, std::vector<float>{1e30F, -1}));
}

TEST("bool is 0 or 1, and NaN is true") {
  check_same<uint8_t>({0, 1, 1, 1},
                      cast<uint8_t>(EDGEPACK_FLOAT32, EDGEPACK_BOOL, std::vector<float>{0, 0.1F, -3, kNan}));
  check_same<float>({0, 1, 1}, cast<float>(EDGEPACK_BOOL, EDGEPACK_FLOAT32, std::vector<uint8_t>{0, 1, 9}));
}

TEST("all 65536 halves survive the way to float32 and back") {
  for (uint32_t half = 0; half < 65536; ++half) {
    const float value = float_from_half(static_cast<uint16_t>(half));
    if (std::isnan(value)) {
      CHECK((half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0);
      CHECK((half_from_float(value) & 0x7e00) == 0x7e00);
    } else {
      CHECK_EQ(half, static_cast<uint32_t>(half_from_float(value)));
    }
  }
}

TEST("float32 rounds to half half-to-even, with subnormals and overflow") {
  const std::pair<float, int> known[] = {
      {1.0F, 0x3c00},      {1.00048828125F, 0x3c00}, {1.0014648F, 0x3c02},     {65504.0F, 0x7bff},  {65519.99F, 0x7bff},
      {65520.0F, 0x7c00},  {-kInf, 0xfc00},          {5.9604645e-08F, 1},      {2.9802322e-08F, 0}, {2.9802326e-08F, 1},
      {8.9406967e-08F, 2}, {6.097555e-05F, 0x03ff},  {6.1005353e-05F, 0x0400}, {-0.0F, 0x8000},     {0.1F, 0x2e66}};
  for (const auto& [value, half] : known) CHECK_EQ(half, static_cast<int>(half_from_float(value)));
}

CHECK_MAIN
