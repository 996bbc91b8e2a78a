// numpy's .npy files of versions 1 and 2: exactly the array that is asked for, or an error that says what was found.
#pragma once

#include <cstddef>
#include <string>

#include "descriptor.h"

namespace edgepack {

// Read `path` into `data`, which holds `bytes`. Refuses another dtype or shape, big-endian and Fortran order, a damaged
// header, missing and surplus bytes.
Status read_npy(const std::string& path, edgepack_dtype dtype, const Shape& shape, void* data, size_t bytes);

// The shape that the header of `path` tells.
Status read_npy_shape(const std::string& path, Shape* shape);

// Write `path`, version 1, as numpy.save does. A file that can't be written whole is removed.
Status write_npy(const std::string& path, edgepack_dtype dtype, const Shape& shape, const void* data, size_t bytes);

}  // namespace edgepack
