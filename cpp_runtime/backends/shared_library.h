// An engine that comes as a shared library: found beside the harness, opened at run time.
//
// Opening at run time, not linking: libonnxruntime.so versions its symbols, so a linked program would accept exactly
// one release, and a missing library would end the program before it could say which one.
#pragma once

#include <string>

#include "status.h"

namespace edgepack {

class SharedLibrary {
 public:
  // Open `path` when it is given. Otherwise `name` in ../lib as seen from the executable's folder, where a bundle has
  // it, then in the executable's folder. Nowhere else: a library that the system happens to have is another version.
  // `wanted` says what is looked for, as in "LiteRT 2.3.0"; every error names it.
  Status open(const std::string& path, const std::string& name, const std::string& wanted);

  // The address of a function. An error names the library and the function.
  template <typename Function>
  Status find(const char* name, Function* function) const {
    void* address = nullptr;
    EDGEPACK_TRY(find_address(name, &address));
    *function = reinterpret_cast<Function>(address);
    return ok();
  }

  // That the file is another version, or none that is known.
  Status wrong_version(const std::string& found) const;

  const std::string& path() const { return path_; }

 private:
  Status find_address(const char* name, void** address) const;

  // Never closed: engines leave threads and thread-local destructors behind that must not lose their code.
  void* handle_ = nullptr;
  std::string path_;
  std::string wanted_;
};

// Why the file can't be a library for this machine, as a clause; "" when nothing speaks against it. The system's loader
// says "no such file" of a library for another processor, and dies of one that is cut short.
std::string library_problem(const std::string& path);

}  // namespace edgepack
