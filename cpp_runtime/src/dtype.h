// Element types: numpy's names, sizes and kinds.
#pragma once

#include <cstddef>
#include <string_view>

#include "edgepack/edgepack.h"

namespace edgepack {

struct DtypeInfo {
  edgepack_dtype dtype;
  std::string_view name;   // numpy's name, as in variant.txt
  std::string_view descr;  // as in an .npy header, without the byte order
  size_t size;
};

inline constexpr DtypeInfo kDtypes[] = {
    {EDGEPACK_FLOAT32, "float32", "f4", 4}, {EDGEPACK_FLOAT16, "float16", "f2", 2},
    {EDGEPACK_FLOAT64, "float64", "f8", 8}, {EDGEPACK_INT8, "int8", "i1", 1},
    {EDGEPACK_INT16, "int16", "i2", 2},     {EDGEPACK_INT32, "int32", "i4", 4},
    {EDGEPACK_INT64, "int64", "i8", 8},     {EDGEPACK_UINT8, "uint8", "u1", 1},
    {EDGEPACK_UINT16, "uint16", "u2", 2},   {EDGEPACK_UINT32, "uint32", "u4", 4},
    {EDGEPACK_UINT64, "uint64", "u8", 8},   {EDGEPACK_BOOL, "bool", "b1", 1},
};

// The table is in the enum's order.
inline const DtypeInfo& info(edgepack_dtype dtype) { return kDtypes[static_cast<size_t>(dtype) - 1]; }

inline const DtypeInfo* find_dtype(std::string_view name) {
  for (const DtypeInfo& entry : kDtypes) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

inline bool is_float(edgepack_dtype dtype) {
  return dtype == EDGEPACK_FLOAT16 || dtype == EDGEPACK_FLOAT32 || dtype == EDGEPACK_FLOAT64;
}

}  // namespace edgepack
