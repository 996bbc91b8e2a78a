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
  // Open `path`, or `<folder of the executable>/../lib/<name>` when `path` is empty.
  Status open(const std::string& path, const std::string& name);

  // The address of a function. An error names the library and the function.
  template <typename Function>
  Status find(const char* name, Function* function) const {
    void* address = nullptr;
    EDGEPACK_TRY(find_address(name, &address));
    *function = reinterpret_cast<Function>(address);
    return ok();
  }

  const std::string& path() const { return path_; }

 private:
  Status find_address(const char* name, void** address) const;

  // Never closed: engines leave threads and thread-local destructors behind that must not lose their code.
  void* handle_ = nullptr;
  std::string path_;
};

}  // namespace edgepack
