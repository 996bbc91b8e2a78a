#include "tensor.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace edgepack {
namespace {

// One value of any dtype: integers stay exact, everything else is a double. A signed 64-bit value and an unsigned one
// need different types, so large unsigned values are marked.
struct Value {
  enum Kind { kSigned, kUnsigned, kReal } kind;
  int64_t i;
  uint64_t u;
  double f;
};

template <typename T>
T peek(const void* data, size_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void poke(void* data, size_t index, T value) {
  std::memcpy(static_cast<char*>(data) + index * sizeof(T), &value, sizeof(T));
}

Value load(edgepack_dtype dtype, const void* data, size_t index) {
  const auto integer = [](int64_t value) { return Value{Value::kSigned, value, 0, 0}; };
  const auto real = [](double value) { return Value{Value::kReal, 0, 0, value}; };
  switch (dtype) {
    case EDGEPACK_FLOAT32: return real(static_cast<double>(peek<float>(data, index)));
    case EDGEPACK_FLOAT16: return real(static_cast<double>(float_from_half(peek<uint16_t>(data, index))));
    case EDGEPACK_FLOAT64: return real(peek<double>(data, index));
    case EDGEPACK_INT8: return integer(peek<int8_t>(data, index));
    case EDGEPACK_INT16: return integer(peek<int16_t>(data, index));
    case EDGEPACK_INT32: return integer(peek<int32_t>(data, index));
    case EDGEPACK_INT64: return integer(peek<int64_t>(data, index));
    case EDGEPACK_UINT8: return integer(peek<uint8_t>(data, index));
    case EDGEPACK_UINT16: return integer(peek<uint16_t>(data, index));
    case EDGEPACK_UINT32: return integer(peek<uint32_t>(data, index));
    case EDGEPACK_UINT64: return {Value::kUnsigned, 0, peek<uint64_t>(data, index), 0};
    case EDGEPACK_BOOL: return integer(peek<uint8_t>(data, index) != 0);
  }
  return integer(0);
}

template <typename T>
T saturate(const Value& value) {
  using Limits = std::numeric_limits<T>;
  if (value.kind == Value::kSigned) {
    if (std::is_unsigned_v<T> && value.i < 0) return 0;
    if (std::is_unsigned_v<T>) {
      return static_cast<uint64_t>(value.i) > static_cast<uint64_t>(Limits::max()) ? Limits::max()
                                                                                   : static_cast<T>(value.i);
    }
    if (value.i < static_cast<int64_t>(Limits::min())) return Limits::min();
    return value.i > static_cast<int64_t>(Limits::max()) ? Limits::max() : static_cast<T>(value.i);
  }
  if (value.kind == Value::kUnsigned) {
    return value.u > static_cast<uint64_t>(Limits::max()) ? Limits::max() : static_cast<T>(value.u);
  }
  if (std::isnan(value.f)) return 0;
  // max + 1 is a power of two and so exact as a double, which max of a 64-bit type is not.
  const double past = std::ldexp(1.0, Limits::digits);
  if (value.f >= past) return Limits::max();
  if (value.f <= (std::is_signed_v<T> ? -past : 0.0)) return Limits::min();
  return static_cast<T>(value.f);
}

template <typename T>
T real(const Value& value) {
  switch (value.kind) {
    case Value::kSigned: return static_cast<T>(value.i);
    case Value::kUnsigned: return static_cast<T>(value.u);
    case Value::kReal: break;
  }
  return static_cast<T>(value.f);
}

bool truth(const Value& value) {
  switch (value.kind) {
    case Value::kSigned: return value.i != 0;
    case Value::kUnsigned: return value.u != 0;
    case Value::kReal: break;
  }
  return value.f != 0;  // NaN is true, as in numpy
}

void store(edgepack_dtype dtype, void* data, size_t index, const Value& value) {
  switch (dtype) {
    case EDGEPACK_FLOAT32: return poke(data, index, real<float>(value));
    case EDGEPACK_FLOAT16: return poke(data, index, half_from_float(real<float>(value)));
    case EDGEPACK_FLOAT64: return poke(data, index, real<double>(value));
    case EDGEPACK_INT8: return poke(data, index, saturate<int8_t>(value));
    case EDGEPACK_INT16: return poke(data, index, saturate<int16_t>(value));
    case EDGEPACK_INT32: return poke(data, index, saturate<int32_t>(value));
    case EDGEPACK_INT64: return poke(data, index, saturate<int64_t>(value));
    case EDGEPACK_UINT8: return poke(data, index, saturate<uint8_t>(value));
    case EDGEPACK_UINT16: return poke(data, index, saturate<uint16_t>(value));
    case EDGEPACK_UINT32: return poke(data, index, saturate<uint32_t>(value));
    case EDGEPACK_UINT64: return poke(data, index, saturate<uint64_t>(value));
    case EDGEPACK_BOOL: return poke(data, index, static_cast<uint8_t>(truth(value)));
  }
}

// A run of `count` elements, from every `from_step`-th element to every `to_step`-th.
struct Run {
  const void* from;
  size_t from_at, from_step;
  void* to;
  size_t to_at, to_step;
  size_t count;
};

template <typename T>
void copy_run(const Run& run) {
  if (run.from_step == 1 && run.to_step == 1) {
    std::memcpy(static_cast<char*>(run.to) + run.to_at * sizeof(T),
                static_cast<const char*>(run.from) + run.from_at * sizeof(T), run.count * sizeof(T));
    return;
  }
  for (size_t i = 0; i < run.count; ++i) {
    poke(run.to, run.to_at + i * run.to_step, peek<T>(run.from, run.from_at + i * run.from_step));
  }
}

void copy_same(size_t size, const Run& run) {
  switch (size) {
    case 1: return copy_run<uint8_t>(run);
    case 2: return copy_run<uint16_t>(run);
    case 4: return copy_run<uint32_t>(run);
    default: return copy_run<uint64_t>(run);
  }
}

void cast_run(edgepack_dtype from, edgepack_dtype to, const Run& run) {
  if (from == to) return copy_same(info(from).size, run);
  for (size_t i = 0; i < run.count; ++i) {
    store(to, run.to, run.to_at + i * run.to_step, load(from, run.from, run.from_at + i * run.from_step));
  }
}

template <typename T>
T quantize(float value, float scale, int32_t zero_point) {
  const float level = std::nearbyint(value / scale) + static_cast<float>(zero_point);
  return saturate<T>(Value{Value::kReal, 0, 0, static_cast<double>(level)});
}

// Half to even, as std::nearbyint: beside 1.5 * 2^23 a float has no room for a fraction. Without a call, so that the
// loops below become vector code. Larger values come back as they are, which all saturate to 16 bits or fewer.
float round_even(float value) {
  constexpr float kRoom = 12582912.0F;
  return std::fabs(value) < 4194304.0F ? (value + kRoom) - kRoom : value;
}

// float32 to an integer of at most 16 bits, whose limits are exact as floats.
template <typename T>
T small_integer(float value) {
  constexpr auto kLow = static_cast<float>(std::numeric_limits<T>::min());
  constexpr auto kHigh = static_cast<float>(std::numeric_limits<T>::max());
  const float level = value < kLow ? kLow : value > kHigh ? kHigh : value;
  return std::isnan(level) ? T{0} : static_cast<T>(level);
}

template <typename T>
void quantize_run(edgepack_dtype from, float scale, int32_t zero_point, const Run& run) {
  const auto zero = static_cast<float>(zero_point);
  if (from == EDGEPACK_FLOAT32 && sizeof(T) < 4) {  // the common case
    for (size_t i = 0; i < run.count; ++i) {
      const float value = peek<float>(run.from, run.from_at + i * run.from_step);
      poke(run.to, run.to_at + i * run.to_step, small_integer<T>(round_even(value / scale) + zero));
    }
    return;
  }
  for (size_t i = 0; i < run.count; ++i) {
    const auto value = real<float>(load(from, run.from, run.from_at + i * run.from_step));
    poke(run.to, run.to_at + i * run.to_step, quantize<T>(value, scale, zero_point));
  }
}

template <typename T>
void dequantize_run(edgepack_dtype to, float scale, int32_t zero_point, const Run& run) {
  const auto zero = static_cast<float>(zero_point);
  for (size_t i = 0; i < run.count; ++i) {
    const float value = (static_cast<float>(peek<T>(run.from, run.from_at + i * run.from_step)) - zero) * scale;
    if (to == EDGEPACK_FLOAT32) {
      poke(run.to, run.to_at + i * run.to_step, value);
    } else {
      store(to, run.to, run.to_at + i * run.to_step, Value{Value::kReal, 0, 0, static_cast<double>(value)});
    }
  }
}

void convert_to_engine(const Tensor& tensor, const Run& run) {
  if (!tensor.scale) return cast_run(tensor.dtype, tensor.engine_dtype, run);
  switch (tensor.engine_dtype) {
    case EDGEPACK_INT8: return quantize_run<int8_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    case EDGEPACK_UINT8: return quantize_run<uint8_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    case EDGEPACK_INT16: return quantize_run<int16_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    case EDGEPACK_UINT16: return quantize_run<uint16_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    default: return quantize_run<int32_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
  }
}

void convert_from_engine(const Tensor& tensor, const Run& run) {
  if (!tensor.scale) return cast_run(tensor.engine_dtype, tensor.dtype, run);
  switch (tensor.engine_dtype) {
    case EDGEPACK_INT8: return dequantize_run<int8_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    case EDGEPACK_UINT8: return dequantize_run<uint8_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    case EDGEPACK_INT16: return dequantize_run<int16_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    case EDGEPACK_UINT16: return dequantize_run<uint16_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
    default: return dequantize_run<int32_t>(tensor.dtype, *tensor.scale, tensor.zero_point, run);
  }
}

// The engine's axes in order, each with its size and its step in the source; axes that lie behind one another in the
// source as well are joined, so that an identity is one single run.
struct Axes {
  size_t rank = 0;
  size_t size[EDGEPACK_MAX_RANK + 1] = {};
  size_t step[EDGEPACK_MAX_RANK + 1] = {};
};

Axes engine_axes(const Tensor& tensor) {
  size_t steps[EDGEPACK_MAX_RANK] = {};
  size_t step = 1;
  for (size_t axis = tensor.shape.size(); axis-- > 0;) {
    steps[axis] = step;
    step *= static_cast<size_t>(tensor.shape[axis]);
  }
  Axes axes;
  for (const int axis : tensor.perm) {
    const auto from = static_cast<size_t>(axis);
    const auto size = static_cast<size_t>(tensor.shape[from]);
    if (size == 1) continue;
    if (axes.rank > 0 && axes.step[axes.rank - 1] == steps[from] * size) {
      axes.size[axes.rank - 1] *= size;
      axes.step[axes.rank - 1] = steps[from];
      continue;
    }
    axes.size[axes.rank] = size;
    axes.step[axes.rank] = steps[from];
    ++axes.rank;
  }
  if (axes.rank == 0) {
    axes.size[0] = axes.step[0] = axes.rank = 1;
  }
  return axes;
}

// Calls visit(engine offset, source offset, source step, count) for runs that cover the tensor.
template <typename Visit>
void walk(const Tensor& tensor, const Visit& visit) {
  const Axes axes = engine_axes(tensor);
  const size_t inner = axes.rank - 1;
  const size_t count = axes.size[inner];
  size_t at[EDGEPACK_MAX_RANK + 1] = {};
  size_t source = 0;
  for (size_t engine = 0; engine < tensor.elements; engine += count) {
    visit(engine, source, axes.step[inner], count);
    for (size_t axis = inner; axis-- > 0;) {
      source += axes.step[axis];
      if (++at[axis] < axes.size[axis]) break;
      source -= axes.step[axis] * axes.size[axis];
      at[axis] = 0;
    }
  }
}

}  // namespace

void to_engine(const Tensor& tensor, const void* source, void* engine) {
  walk(tensor, [&](size_t engine_at, size_t source_at, size_t source_step, size_t count) {
    convert_to_engine(tensor, {source, source_at, source_step, engine, engine_at, 1, count});
  });
}

void from_engine(const Tensor& tensor, const void* engine, void* source) {
  walk(tensor, [&](size_t engine_at, size_t source_at, size_t source_step, size_t count) {
    convert_from_engine(tensor, {engine, engine_at, 1, source, source_at, source_step, count});
  });
}

void to_engine_run(const Tensor& tensor, const void* source, size_t count, void* engine, size_t at, size_t step) {
  convert_to_engine(tensor, {source, 0, 1, engine, at, step, count});
}

void round_run(const float* values, size_t count, edgepack_dtype dtype, void* data) {
  if (dtype == EDGEPACK_UINT8) {  // the common case
    for (size_t i = 0; i < count; ++i) poke(data, i, small_integer<uint8_t>(round_even(values[i])));
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const auto value = static_cast<double>(values[i]);
    store(dtype, data, i, Value{Value::kReal, 0, 0, is_float(dtype) ? value : std::nearbyint(value)});
  }
}

uint16_t half_from_float(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return static_cast<uint16_t>(sign | 0x7e00U);   // NaN
  if (magnitude >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U);  // 65520 and more round to infinity
  if (magnitude < 0x38800000U) {                                               // below 2^-14: a subnormal half
    // Scaling by 2^24 leaves whole steps of the subnormal grid, which nearbyint rounds half to even.
    const float steps = std::nearbyint(std::ldexp(std::fabs(value), 24));
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(steps));
  }
  const uint32_t rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);  // half to even on the 13 bits that go
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

float float_from_half(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 0x3ff;
  float value = 0;
  if (exponent == 31) {
    value = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    value = std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
  }
  return (half & 0x8000) != 0 ? -value : value;
}

double element(edgepack_dtype dtype, const void* data, size_t index) { return real<double>(load(dtype, data, index)); }

}  // namespace edgepack
