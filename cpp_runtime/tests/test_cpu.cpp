// Features by name, and the sentence about those that are missing.
#include "check.h"
#include "cpu.h"

using edgepack::check_cpu;

namespace {

bool only_asimd(std::string_view feature) { return feature == "asimd"; }

}  // namespace

TEST("a CPU with everything that is needed is fine, and so is a program that needs nothing") {
  CHECK_OK(check_cpu("", only_asimd));
  CHECK_OK(check_cpu("asimd", only_asimd));
}

TEST("what is missing is named, and nothing else") {
  CHECK_SAYS("for a CPU with asimddp, asimdhp, which this one lacks", check_cpu("asimddp,asimd,asimdhp", only_asimd));
}

TEST("a feature that this machine can't be asked about doesn't stop a program") {
  CHECK(edgepack::cpu_has("of-another-architecture"));
}

CHECK_MAIN
