#include "metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor.h"

namespace edgepack {
namespace {

constexpr double kPerfectDb = 200;
constexpr double kNothing = 1e-6;

double sqnr(double signal, double noise) {
  if (noise == 0) return kPerfectDb;
  if (signal == 0) return -kPerfectDb;
  return std::clamp(10 * std::log10(signal / noise), -kPerfectDb, kPerfectDb);
}

}  // namespace

Metrics compare(edgepack_dtype dtype, const void* reference, const void* output, size_t count) {
  Metrics metrics;
  double wanted_power = 0, got_power = 0, product = 0, noise = 0;
  for (size_t i = 0; i < count; ++i) {
    const double wanted = element(dtype, reference, i), got = element(dtype, output, i);
    if (!std::isfinite(wanted) || !std::isfinite(got)) {
      const bool same = wanted == got || (std::isnan(wanted) && std::isnan(got));
      metrics.finite = metrics.finite && same;
      continue;
    }
    const double error = got - wanted;
    wanted_power += wanted * wanted;
    got_power += got * got;
    product += wanted * got;
    noise += error * error;
    metrics.max_abs = std::max(metrics.max_abs, std::fabs(error));
    metrics.reference_max = std::max(metrics.reference_max, std::fabs(wanted));
  }
  if (!metrics.finite) {  // no number says how far off that is
    metrics.cosine = metrics.sqnr_db = metrics.max_abs = std::numeric_limits<double>::quiet_NaN();
    return metrics;
  }
  const double norms = std::sqrt(wanted_power) * std::sqrt(got_power);
  if (norms == 0) {
    metrics.cosine = wanted_power == got_power ? 1 : 0;
  } else {
    metrics.cosine = std::min(1.0, product / norms);
  }
  metrics.sqnr_db = sqnr(wanted_power, noise);
  return metrics;
}

bool holds(const Metrics& metrics, double bound_cosine, double bound_sqnr_db) {
  if (!metrics.finite) return false;
  if (metrics.reference_max <= kNothing && metrics.max_abs <= kNothing) return true;
  const double cosine = std::max(0.5, 1 - 10 * (1 - bound_cosine));
  if (!(metrics.cosine >= cosine)) return false;  // written so that a NaN fails
  return std::isnan(bound_sqnr_db) || metrics.sqnr_db >= bound_sqnr_db - 10;
}

}  // namespace edgepack
