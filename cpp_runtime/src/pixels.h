// The hot loops of pre-processing over rows of one channel: plain ones, and with NEON where the compiler has it.
//
// Compiled without contraction to fused multiply-add, so both give what numpy gives. The one exception is the division
// by std on 32-bit ARM, whose NEON has none: there it is a product with 1 / std, which may be off by 2^-23 of the
// value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgepack {

// y is first reduced by `black`, u and v by 128; products are scaled by 2^13. Green's numbers are subtracted.
struct YuvMatrix {
  int16_t black, y, red_v, green_u, green_v, blue_u;
};

// out[i] = from[columns[i] * step]
void gather(const uint8_t* from, size_t step, const int32_t* columns, size_t count, uint8_t* out);

// The same for what two columns share: out[i] = from[columns[i] / 2 * step]
void gather_pairs(const uint8_t* from, size_t step, const int32_t* columns, size_t count, uint8_t* out);

// The loops that come in two kinds.
struct Pixels {
  // out = a + (b - a) * share, one share per element.
  void (*blend_columns)(const uint8_t* a, const uint8_t* b, const float* share, size_t count, float* out);
  // out = a + (b - a) * share, one share for all.
  void (*blend_rows)(const float* a, const float* b, float share, size_t count, float* out);
  // out = (0.299 red + 0.587 green) + 0.114 blue; `out` may be `red`.
  void (*gray)(const float* red, const float* green, const float* blue, size_t count, float* out);
  // values = (values - mean) / std
  void (*normalize)(float* values, size_t count, float mean, float std);
  void (*yuv_to_rgb)(const uint8_t* y, const uint8_t* u, const uint8_t* v, size_t count, const YuvMatrix& matrix,
                     uint8_t* red, uint8_t* green, uint8_t* blue);
};

const Pixels& plain_pixels();

// Those with NEON where there is NEON, else the plain ones.
const Pixels& fast_pixels();

}  // namespace edgepack
