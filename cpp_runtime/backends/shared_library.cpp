#include "shared_library.h"

#include <dlfcn.h>
#include <unistd.h>

namespace edgepack {
namespace {

std::string executable_folder() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  if (size <= 0 || static_cast<size_t>(size) == sizeof path) return ".";
  const std::string text(path, static_cast<size_t>(size));
  return text.substr(0, text.rfind('/'));
}

}  // namespace

Status SharedLibrary::open(const std::string& path, const std::string& name) {
  path_ = path.empty() ? executable_folder() + "/../lib/" + name : path;
  handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle_ != nullptr) return ok();
  const char* reason = dlerror();
  return {EDGEPACK_ENGINE_MISSING,
          "the engine's library can't be loaded from " + path_ + ": " + (reason == nullptr ? "unknown error" : reason)};
}

Status SharedLibrary::find_address(const char* name, void** address) const {
  *address = dlsym(handle_, name);
  if (*address != nullptr) return ok();
  return {EDGEPACK_ENGINE_MISSING, path_ + " has no function " + name + ": it is not the version that is wanted (" +
                                       EDGEPACK_ENGINE_VERSION + ")"};
}

}  // namespace edgepack
