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

// __restrict: to check at run time that no two of six pointers overlap is more than compilers do.
void yuv_to_rgb(const uint8_t* y, const uint8_t* u, const uint8_t* v, size_t count, const YuvMatrix& matrix,
                uint8_t* __restrict red, uint8_t* __restrict green, uint8_t* __restrict blue) {
  const YuvMatrix m = matrix;  // a copy, so that the compiler need not expect writes to change it
  for (size_t i = 0; i < count; ++i) {
    // 16 bits hold these, and their products are what small vector units multiply fastest.
    const auto luma = static_cast<int16_t>(y[i] - m.black);
    const auto ub = static_cast<int16_t>(u[i] - 128), vr = static_cast<int16_t>(v[i] - 128);
    const int32_t light = luma * m.y + (1 << 12);
    red[i] = to_byte(light + vr * m.red_v);
    green[i] = to_byte(light - ub * m.green_u - vr * m.green_v);
    blue[i] = to_byte(light + ub * m.blue_u);
  }
}

constexpr Pixels kPlain = {blend_columns, blend_rows, gray, normalize, yuv_to_rgb};

}  // namespace

void gather(const uint8_t* from, size_t step, const int32_t* columns, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = from[static_cast<size_t>(columns[i]) * step];
}

void gather_pairs(const uint8_t* from, size_t step, const int32_t* columns, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = from[static_cast<size_t>(columns[i]) / 2 * step];
}

const Pixels& plain_pixels() { return kPlain; }

}  // namespace edgepack

#if defined(__ARM_NEON)
#include "pixels_neon.h"
#else
const edgepack::Pixels& edgepack::fast_pixels() { return kPlain; }
#endif
