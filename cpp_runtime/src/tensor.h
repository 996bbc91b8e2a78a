// Between the source model's layout and the engine's: transpose, cast, quantize. See `Tensor` in descriptor.h.
//
// The numbers are those of numpy in edgepack/artifact.py: quantization divides and rounds in float32, half to even, and
// saturates. Casts to integers truncate; where numpy would wrap or leave the result open, they saturate (NaN gives 0).
#pragma once

#include <cstdint>

#include "descriptor.h"

namespace edgepack {

// `source` holds tensor.bytes, `engine` tensor.engine_bytes; both contiguous.
void to_engine(const Tensor& tensor, const void* source, void* engine);
void from_engine(const Tensor& tensor, const void* engine, void* source);

// Part of to_engine: the `count` source elements that `source` holds in a row become the engine's elements `at`,
// `at + step` ...
void to_engine_run(const Tensor& tensor, const void* source, size_t count, void* engine, size_t at, size_t step);

// float32 values as elements of another type: whole numbers are rounded half to even and saturated.
void round_run(const float* values, size_t count, edgepack_dtype dtype, void* data);

// IEEE 754 half precision, rounding to nearest even.
uint16_t half_from_float(float value);
float float_from_half(uint16_t half);

// Element `index` of an array as a double (exact but for the largest 64-bit integers).
double element(edgepack_dtype dtype, const void* data, size_t index);

}  // namespace edgepack
