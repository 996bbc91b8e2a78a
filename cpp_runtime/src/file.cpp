#include "file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

namespace edgepack {

Status open_file(const std::string& path, File* file, size_t* size) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) != 0) return {EDGEPACK_FILE_ERROR, path + ": " + std::strerror(errno)};
  if (!S_ISREG(facts.st_mode)) return {EDGEPACK_FILE_ERROR, path + " is not a regular file"};
  file->reset(std::fopen(path.c_str(), "rb"));
  if (*file == nullptr) return {EDGEPACK_FILE_ERROR, path + ": " + std::strerror(errno)};
  *size = static_cast<size_t>(facts.st_size);
  return ok();
}

Status read_text(const std::string& path, size_t limit, std::string* text) {
  File file;
  size_t size = 0;
  EDGEPACK_TRY(open_file(path, &file, &size));
  if (size > limit) {
    return {EDGEPACK_FILE_ERROR,
            path + " has " + std::to_string(size) + " bytes, at most " + std::to_string(limit) + " are read"};
  }
  text->resize(size);
  if (std::fread(text->data(), 1, size, file.get()) != size) {
    return {EDGEPACK_FILE_ERROR, path + " can't be read to its end"};
  }
  return ok();
}

}  // namespace edgepack
