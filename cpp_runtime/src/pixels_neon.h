// pixels.cpp's loops with NEON, four or eight elements at a time; what is left over goes through the plain ones.
#pragma once

#include <arm_neon.h>

namespace edgepack {
namespace {

// Eight bytes as two vectors of floats.
float32x4x2_t floats(const uint8_t* bytes) {
  const uint16x8_t wide = vmovl_u8(vld1_u8(bytes));
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide))), vcvtq_f32_u32(vmovl_u16(vget_high_u16(wide)))};
}

float32x4_t blend(float32x4_t a, float32x4_t b, float32x4_t share) {
  return vaddq_f32(a, vmulq_f32(vsubq_f32(b, a), share));
}

void neon_blend_columns(const uint8_t* a, const uint8_t* b, const float* share, size_t count, float* out) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const float32x4x2_t from = floats(a + i), to = floats(b + i);
    vst1q_f32(out + i, blend(from.val[0], to.val[0], vld1q_f32(share + i)));
    vst1q_f32(out + i + 4, blend(from.val[1], to.val[1], vld1q_f32(share + i + 4)));
  }
  blend_columns(a + i, b + i, share + i, count - i, out + i);
}

void neon_blend_rows(const float* a, const float* b, float share, size_t count, float* out) {
  const float32x4_t all = vdupq_n_f32(share);
  size_t i = 0;
  for (; i + 4 <= count; i += 4) vst1q_f32(out + i, blend(vld1q_f32(a + i), vld1q_f32(b + i), all));
  blend_rows(a + i, b + i, share, count - i, out + i);
}

void neon_gray(const float* red, const float* green, const float* blue, size_t count, float* out) {
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t warm =
        vaddq_f32(vmulq_n_f32(vld1q_f32(red + i), 0.299F), vmulq_n_f32(vld1q_f32(green + i), 0.587F));
    vst1q_f32(out + i, vaddq_f32(warm, vmulq_n_f32(vld1q_f32(blue + i), 0.114F)));
  }
  gray(red + i, green + i, blue + i, count - i, out + i);
}

void neon_normalize(float* values, size_t count, float mean, float std) {
  const float32x4_t less = vdupq_n_f32(mean);
#if defined(__aarch64__)
  const float32x4_t by = vdupq_n_f32(std);
#else
  const float32x4_t by = vdupq_n_f32(1 / std);
#endif
  size_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t centred = vsubq_f32(vld1q_f32(values + i), less);
#if defined(__aarch64__)
    vst1q_f32(values + i, vdivq_f32(centred, by));
#else
    vst1q_f32(values + i, vmulq_f32(centred, by));
#endif
  }
  normalize(values + i, count - i, mean, std);
}

uint8x8_t to_bytes(int32x4_t low, int32x4_t high) {
  return vqmovun_s16(vcombine_s16(vqmovn_s32(vshrq_n_s32(low, 13)), vqmovn_s32(vshrq_n_s32(high, 13))));
}

void neon_yuv_to_rgb(const uint8_t* y, const uint8_t* u, const uint8_t* v, size_t count, const YuvMatrix& m,
                     uint8_t* red, uint8_t* green, uint8_t* blue) {
  const auto less = [](const uint8_t* bytes, int16_t by) {
    return vsubq_s16(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(bytes))), vdupq_n_s16(by));
  };
  const int32x4_t half = vdupq_n_s32(1 << 12);
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const int16x8_t luma = less(y + i, m.black), cb = less(u + i, 128), cr = less(v + i, 128);
    int32x4_t r[2], g[2], b[2];
    for (int part = 0; part < 2; ++part) {
      const auto of = [&](int16x8_t all) { return part == 0 ? vget_low_s16(all) : vget_high_s16(all); };
      const int32x4_t light = vmlal_n_s16(half, of(luma), m.y);
      r[part] = vmlal_n_s16(light, of(cr), m.red_v);
      g[part] = vmlsl_n_s16(vmlsl_n_s16(light, of(cb), m.green_u), of(cr), m.green_v);
      b[part] = vmlal_n_s16(light, of(cb), m.blue_u);
    }
    vst1_u8(red + i, to_bytes(r[0], r[1]));
    vst1_u8(green + i, to_bytes(g[0], g[1]));
    vst1_u8(blue + i, to_bytes(b[0], b[1]));
  }
  yuv_to_rgb(y + i, u + i, v + i, count - i, m, red + i, green + i, blue + i);
}

constexpr Pixels kNeon = {neon_blend_columns, neon_blend_rows, neon_gray, neon_normalize, neon_yuv_to_rgb};

}  // namespace

const Pixels& fast_pixels() { return kNeon; }

}  // namespace edgepack
