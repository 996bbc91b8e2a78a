#include "pixels.h"

namespace edgepack {
namespace {

void blend_columns(const uint8_t* a, const uint8_t* b, const float* share, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) {
    const auto from = static_cast<float>(a[i]);
    out[i] = from + (static_cast<float>(b[i]) - from) * share[i];
  }
}

void blend_rows(const float* a, const float* b, float share, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = a[i] + (b[i] - a[i]) * share;
}

void gray(const float* red, const float* green, const float* blue, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = (0.299F * red[i] + 0.587F * green[i]) + 0.114F * blue[i];
}

void normalize(float* values, size_t count, float mean, float std) {
  for (size_t i = 0; i < count; ++i) values[i] = (values[i] - mean) / std;
}

uint8_t to_byte(int32_t scaled) {
  const int32_t value = scaled >> 13;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

void yuv_to_rgb(const uint8_t* y, const uint8_t* u, const uint8_t* v, size_t count, const YuvMatrix& matrix,
                uint8_t* red, uint8_t* green, uint8_t* blue) {
  const YuvMatrix m = matrix;  // a copy, so that the compiler need not expect writes to change it
  for (size_t i = 0; i < count; ++i) {
    const int32_t light = (y[i] - m.black) * m.y + (1 << 12);
    const int32_t ub = u[i] - 128, vr = v[i] - 128;
    red[i] = to_byte(light + vr * m.red_v);
    green[i] = to_byte(light - ub * m.green_u - vr * m.green_v);
    blue[i] = to_byte(light + ub * m.blue_u);
  }
}

constexpr Pixels kPlain = {blend_columns, blend_rows, gray, normalize, yuv_to_rgb};

}  // namespace

const Pixels& plain_pixels() { return kPlain; }

}  // namespace edgepack

#if defined(__ARM_NEON)
#include "pixels_neon.h"
#else
const edgepack::Pixels& edgepack::fast_pixels() { return kPlain; }
#endif
