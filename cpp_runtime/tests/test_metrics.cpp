#include <cmath>
#include <limits>

#include "check.h"
#include "metrics.h"

using namespace edgepack;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

Metrics measure(const std::vector<float>& reference, const std::vector<float>& output) {
  return compare(EDGEPACK_FLOAT32, reference.data(), output.data(), reference.size());
}

bool near(double a, double b) { return std::fabs(a - b) < 1e-12; }

}  // namespace

TEST("equal outputs are perfect") {
  const Metrics m = measure({1, -2, 3}, {1, -2, 3});
  CHECK(near(m.cosine, 1));
  CHECK_EQ(200.0, m.sqnr_db);
  CHECK_EQ(0.0, m.max_abs);
  CHECK(m.finite);
}

TEST("the numbers are those of the definitions") {
  const Metrics m = measure({3, 4}, {4, 3});
  CHECK(near(m.cosine, 24.0 / 25));
  CHECK(near(m.sqnr_db, 10 * std::log10(25.0 / 2)));
  CHECK_EQ(1.0, m.max_abs);
}

TEST("zeros have no direction: alike they are perfect, else they are off") {
  CHECK_EQ(1.0, measure({0, 0}, {0, 0}).cosine);
  CHECK_EQ(0.0, measure({0, 0}, {1, 0}).cosine);
  CHECK_EQ(-200.0, measure({0, 0}, {1, 0}).sqnr_db);
  CHECK_EQ(0.0, measure({1, 0}, {0, 0}).sqnr_db);
}

TEST("NaN and infinity count only where the reference has none, or another one") {
  CHECK(!measure({1, 2}, {1, kNan}).finite);
  CHECK(!measure({1, 2}, {1, kInf}).finite);
  CHECK(!measure({1, kInf}, {1, 2}).finite);
  CHECK(!measure({1, kInf}, {1, -kInf}).finite);
  CHECK(!measure({1, kInf}, {1, kNan}).finite);
  CHECK(measure({1, kInf, kNan}, {1, kInf, kNan}).finite);
  CHECK(near(measure({1, kInf, kNan}, {1, kInf, kNan}).cosine, 1));
}

TEST("integers and halves are compared too") {
  const int64_t a[] = {1, 2, 3}, b[] = {1, 2, 4};
  CHECK_EQ(1.0, compare(EDGEPACK_INT64, a, b, 3).max_abs);
  const uint16_t h[] = {0x3c00, 0x4000}, g[] = {0x3c00, 0x3c00};
  CHECK_EQ(1.0, compare(EDGEPACK_FLOAT16, h, g, 2).max_abs);
}

TEST("one sample may be ten times further off than the bound, not more") {
  Metrics m;
  m.reference_max = m.max_abs = 1;
  m.cosine = 0.991;
  m.sqnr_db = 15;
  const double none = std::numeric_limits<double>::quiet_NaN();
  CHECK(holds(m, 0.999, none));
  CHECK(!holds(m, 0.9999, none));
  CHECK(holds(m, 0.999, 24));
  CHECK(!holds(m, 0.999, 26));
  m.finite = false;
  CHECK(!holds(m, 0.5, none));
  m.finite = true;
  m.cosine = std::numeric_limits<double>::quiet_NaN();
  CHECK(!holds(m, -1, none));
  m.cosine = 0.49;
  CHECK(!holds(m, 0.9, none));
}

TEST("an output that is nothing but rounding noise around zero holds") {
  const double none = std::numeric_limits<double>::quiet_NaN();
  CHECK(holds(measure({0, 0}, {5e-9F, 0}), 0.999, none));
  CHECK(!holds(measure({0, 0}, {5e-3F, 0}), 0.999, none));
  CHECK(!holds(measure({1, 0}, {0, 0}), 0.999, none));
}

CHECK_MAIN
