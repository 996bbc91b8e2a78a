#include "cpu.h"

#include <string>

#if defined(__linux__) && (defined(__aarch64__) || defined(__arm__) || defined(__riscv))
#include <sys/auxv.h>
#endif

namespace edgepack {
namespace {

// A feature and its bit in AT_HWCAP, or in AT_HWCAP2 where `second`. The kernel's ABI: these never change.
struct Bit {
  std::string_view name;
  int bit;
  bool second = false;
};

#if defined(__aarch64__)
constexpr Bit kBits[] = {{"asimd", 1},    {"atomics", 8},   {"fphp", 9},        {"asimdhp", 10},   {"sve", 22},
                         {"asimddp", 20}, {"asimdfhm", 23}, {"i8mm", 13, true}, {"bf16", 14, true}};
#elif defined(__arm__)
constexpr Bit kBits[] = {{"neon", 12}, {"vfpv4", 16}};
#elif defined(__riscv)
constexpr Bit kBits[] = {{"v", 'v' - 'a'}};
#endif

}  // namespace

bool cpu_has(std::string_view feature) {
#if defined(__x86_64__)
  // The compiler asks CPUID, and whether the system saves the registers. It takes its own names only, as constants.
  __builtin_cpu_init();
  if (feature == "avx") return __builtin_cpu_supports("avx") != 0;
  if (feature == "f16c") return __builtin_cpu_supports("avx") != 0;  // every CPU with FMA has it, and g++ 9 can't ask
  if (feature == "fma") return __builtin_cpu_supports("fma") != 0;
  if (feature == "avx2") return __builtin_cpu_supports("avx2") != 0;
  if (feature == "avx512f") return __builtin_cpu_supports("avx512f") != 0;
  if (feature == "avx512cd") return __builtin_cpu_supports("avx512cd") != 0;
  if (feature == "avx512bw") return __builtin_cpu_supports("avx512bw") != 0;
  if (feature == "avx512dq") return __builtin_cpu_supports("avx512dq") != 0;
  if (feature == "avx512vl") return __builtin_cpu_supports("avx512vl") != 0;
  if (feature == "avx512_vnni") return __builtin_cpu_supports("avx512vnni") != 0;
#elif defined(__linux__) && (defined(__aarch64__) || defined(__arm__) || defined(__riscv))
  for (const Bit& each : kBits) {
    if (each.name == feature) return (getauxval(each.second ? AT_HWCAP2 : AT_HWCAP) >> each.bit & 1) != 0;
  }
#else
  (void)feature;
#endif
  return true;
}

Status check_cpu(std::string_view wanted, bool (*has)(std::string_view)) {
  std::string lacking;
  while (!wanted.empty()) {
    const size_t comma = wanted.find(',');
    const std::string_view feature = wanted.substr(0, comma);
    wanted = comma == std::string_view::npos ? std::string_view{} : wanted.substr(comma + 1);
    if (feature.empty() || has(feature)) continue;
    if (!lacking.empty()) lacking += ", ";
    lacking += feature;
  }
  if (lacking.empty()) return ok();
  return {EDGEPACK_WRONG_CPU, "this program was compiled for a CPU with " + lacking +
                                  ", which this one lacks: build the bundle for a target that describes this device"};
}

}  // namespace edgepack
