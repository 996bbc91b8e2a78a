// Files through C's stdio.
#pragma once

#include <cstddef>
#include <cstdio>
#include <memory>
#include <string>

#include "status.h"

namespace edgepack {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// Open for reading. Refuses folders, pipes and devices, and says why a file can't be opened.
Status open_file(const std::string& path, File* file, size_t* size);

// Read a whole file of at most `limit` bytes.
Status read_text(const std::string& path, size_t limit, std::string* text);

}  // namespace edgepack
