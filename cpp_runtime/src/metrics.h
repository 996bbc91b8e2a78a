// One output compared with its reference: the same numbers as edgepack/verify.py.
#pragma once

#include <cstddef>

#include "edgepack/edgepack.h"

namespace edgepack {

// cosine, sqnr_db and max_abs are NaN where `finite` is false.
struct Metrics {
  double cosine = 1;
  double sqnr_db = 0;  // 10 log10(reference power / error power), held within +-200
  double max_abs = 0;
  double reference_max = 0;  // the largest magnitude in the reference
  bool finite = true;        // false when a value is NaN or infinite where the reference is not, or the other way round
};

// Both arrays hold `count` elements of `dtype`. Where both have the same NaN or infinity, the pair is left out.
Metrics compare(edgepack_dtype dtype, const void* reference, const void* output, size_t count);

// Whether one sample holds a variant's bounds. These were held over many samples together; a single one may be ten
// times further off: 1 - cosine ten times as large (but cosine at least 0.5), SQNR 10 dB lower. A reference that is
// zero to within 1e-6 has no direction to compare; outputs as close to zero hold. `bound_sqnr_db` may be NaN.
bool holds(const Metrics& metrics, double bound_cosine, double bound_sqnr_db);

}  // namespace edgepack
