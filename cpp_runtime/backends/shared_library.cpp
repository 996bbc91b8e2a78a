#include "shared_library.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "file.h"

namespace edgepack {
namespace {

constexpr char kThisProgram[] = "/proc/self/exe";

std::string executable_folder() {
  char path[4096];
  const ssize_t size = readlink(kThisProgram, path, sizeof path);
  if (size <= 0 || static_cast<size_t>(size) == sizeof path) return ".";
  const std::string text(path, static_cast<size_t>(size));
  return text.substr(0, text.rfind('/'));
}

std::string machine_name(int machine, int bits) {
  switch (machine) {
    case EM_X86_64: return "x86_64";
    case EM_386: return "32-bit x86";
    case EM_AARCH64: return "aarch64";
    case EM_ARM: return "32-bit Arm";
    case EM_RISCV: return bits == ELFCLASS32 ? "riscv32" : "riscv64";
    default: return "the processor with the ELF number " + std::to_string(machine);
  }
}

// What an ELF file says of its processor. The start of the header is the same in 32 and 64 bits.
struct Identity {
  int bits = 0, order = 0, machine = 0;
  bool operator==(const Identity& other) const {
    return bits == other.bits && order == other.order && machine == other.machine;
  }
};

bool read_identity(std::FILE* file, Identity* identity) {
  unsigned char start[20] = {};
  if (std::fseek(file, 0, SEEK_SET) != 0 || std::fread(start, 1, sizeof start, file) != sizeof start ||
      std::memcmp(start, ELFMAG, SELFMAG) != 0) {
    return false;
  }
  const bool big = start[EI_DATA] == ELFDATA2MSB;
  *identity = {start[EI_CLASS], start[EI_DATA], big ? start[18] * 256 + start[19] : start[19] * 256 + start[18]};
  return true;
}

// Whether all that the loader would map is in the file. Mapping what is not there kills the program.
bool is_whole(std::FILE* file, size_t size) {
  ElfW(Ehdr) header{};
  if (std::fseek(file, 0, SEEK_SET) != 0 || std::fread(&header, sizeof header, 1, file) != 1 ||
      header.e_phentsize != sizeof(ElfW(Phdr)))
    return false;
  if (header.e_phoff > size) return false;
  std::vector<ElfW(Phdr)> segments(header.e_phnum);
  if (std::fseek(file, static_cast<long>(header.e_phoff), SEEK_SET) != 0 ||
      std::fread(segments.data(), sizeof(ElfW(Phdr)), segments.size(), file) != segments.size()) {
    return false;
  }
  for (const ElfW(Phdr) & segment : segments) {
    if (segment.p_filesz > size || segment.p_offset > size - segment.p_filesz) return false;
  }
  return true;
}

}  // namespace

std::string library_problem(const std::string& path) {
  File file;
  size_t size = 0;
  if (const Status status = open_file(path, &file, &size); !status.ok()) return status.text();
  if (size == 0) return path + " is empty";
  Identity found, mine;
  if (!read_identity(file.get(), &found)) return path + " is not a shared library";
  const File program(std::fopen(kThisProgram, "rb"));
  // Where the system doesn't show the program, the loader has the last word.
  if (program != nullptr && read_identity(program.get(), &mine) && !(found == mine)) {
    return path + " is for " + machine_name(found.machine, found.bits) + ", this harness is for " +
           machine_name(mine.machine, mine.bits);
  }
  if (!is_whole(file.get(), size)) return path + " is cut short or damaged";
  return "";
}

Status SharedLibrary::open(const std::string& path, const std::string& name, const std::string& wanted) {
  wanted_ = wanted;
  path_ = path;
  const std::string needs = "the harness needs " + wanted_ + ", but ";
  if (path_.empty()) {
    const std::string folder = executable_folder();
    const std::string places[] = {folder + "/../lib/" + name, folder + "/" + name};
    for (const std::string& place : places) {
      if (path_.empty() && access(place.c_str(), F_OK) == 0) path_ = place;
    }
    if (path_.empty()) {
      return {EDGEPACK_ENGINE_MISSING, needs + "there is no " + places[0] + " and no " + places[1] +
                                           ": copy the bundle's lib folder with its bin folder"};
    }
  }
  const std::string problem = library_problem(path_);
  if (!problem.empty()) return {EDGEPACK_ENGINE_MISSING, needs + problem};
  handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ != nullptr) return ok();
  const char* reason = dlerror();
  return {EDGEPACK_ENGINE_MISSING,
          needs + path_ + " can't be loaded: " + (reason == nullptr ? "unknown error" : reason)};
}

Status SharedLibrary::wrong_version(const std::string& found) const {
  return {EDGEPACK_ENGINE_MISSING, "the harness needs " + wanted_ + ", but " + path_ + " is " + found +
                                       ": use the library that the bundle was built with"};
}

Status SharedLibrary::find_address(const char* name, void** address) const {
  *address = dlsym(handle_, name);
  if (*address != nullptr) return ok();
  return wrong_version(std::string("another library or version: it has no function ") + name);
}

}  // namespace edgepack
