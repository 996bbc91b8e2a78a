#include "hwcap.h"

#include <sys/auxv.h>

#include <string_view>

#include "sysfs.h"

namespace edgepack {
namespace {

#if defined(__aarch64__)
// Bit by bit; the kernel's ABI, which never changes.
constexpr std::string_view kHwcap =
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 "
    "asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg";
constexpr std::string_view kHwcap2 =
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 "
    "dgh "
    "rng bti mte ecv afp rpres mte3 sme";
#elif defined(__arm__)
constexpr std::string_view kHwcap =
    "swp half thumb 26bit fastmult fpa vfp edsp java iwmmxt crunch thumbee neon vfpv3 vfpv3d16 tls vfpv4 idiva idivt "
    "vfpd32 lpae evtstrm fphp asimdhp asimddp asimdfhm asimdbf16 i8mm";
constexpr std::string_view kHwcap2 = "aes pmull sha1 sha2 crc32 sb ssbs";
#elif defined(__riscv)
// A bit for each single-letter extension.
constexpr std::string_view kHwcap = "a b c d e f g h i j k l m n o p q r s t u v w x y z";
constexpr std::string_view kHwcap2;
#else
constexpr std::string_view kHwcap, kHwcap2;
#endif

// The words of `text`; with `bits`, only those whose bit is set.
void add_words(std::string_view text, const unsigned long* bits, std::vector<std::string>* words) {
  for (unsigned long bit = 0; !text.empty(); ++bit) {
    const size_t space = text.find(' ');
    if (bits == nullptr || (*bits >> bit & 1) != 0) words->emplace_back(text.substr(0, space));
    text = space == std::string_view::npos ? std::string_view{} : text.substr(space + 1);
  }
}

}  // namespace

std::vector<std::string> cpu_features(const std::string& cpuinfo) {
  std::vector<std::string> words;
  if (kHwcap.empty()) {
    add_words(field(cpuinfo, "flags"), nullptr, &words);
    return words;
  }
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  add_words(kHwcap, &first, &words);
  add_words(kHwcap2, &second, &words);
  return words;
}

}  // namespace edgepack
