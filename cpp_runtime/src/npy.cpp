#include "npy.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string_view>

#include "file.h"

namespace edgepack {
namespace {

constexpr std::string_view kMagic{"\x93NUMPY", 6};
constexpr size_t kMaxHeader = 1 << 16;
constexpr size_t kMaxRank = 32;  // numpy's; a shape that is longer than ours is still read to be named

// What the header's dictionary says.
struct Header {
  std::string descr;
  bool fortran = false;
  Shape shape;
};

// Reads the header: the literal of a Python dictionary with exactly the keys descr, fortran_order and shape.
class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  bool parse(Header* header) {
    bool descr = false, fortran = false, shape = false;
    if (!eat('{')) return false;
    while (!eat('}')) {
      std::string key;
      if (!string(&key) || !eat(':')) return false;
      bool* seen = key == "descr" ? &descr : key == "fortran_order" ? &fortran : key == "shape" ? &shape : nullptr;
      if (seen == nullptr || *seen) return false;
      *seen = true;
      const bool good = seen == &descr     ? string(&header->descr)
                        : seen == &fortran ? boolean(&header->fortran)
                                           : tuple(&header->shape);
      if (!good) return false;
      if (eat(',')) continue;
      if (!eat('}')) return false;
      break;
    }
    skip_space();
    return descr && fortran && shape && rest_.empty();
  }

 private:
  void skip_space() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n')) rest_.remove_prefix(1);
  }

  bool eat(char c) {
    skip_space();
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  bool string(std::string* text) {
    skip_space();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) return false;
    const size_t end = rest_.find(rest_[0], 1);
    if (end == std::string_view::npos) return false;
    *text = rest_.substr(1, end - 1);
    rest_.remove_prefix(end + 1);
    return true;
  }

  bool boolean(bool* value) {
    skip_space();
    for (const auto& [word, meaning] : {std::pair{std::string_view("True"), true}, {"False", false}}) {
      if (rest_.substr(0, word.size()) == word) {
        rest_.remove_prefix(word.size());
        *value = meaning;
        return true;
      }
    }
    return false;
  }

  bool number(int64_t* value) {
    skip_space();
    size_t digits = 0;
    *value = 0;
    for (; digits < rest_.size() && rest_[digits] >= '0' && rest_[digits] <= '9'; ++digits) {
      if (digits == 18) return false;
      *value = *value * 10 + (rest_[digits] - '0');
    }
    rest_.remove_prefix(digits);
    return digits > 0;
  }

  bool tuple(Shape* shape) {
    if (!eat('(')) return false;
    bool comma = true;  // one single size needs its comma: (3) is a number, not a tuple
    while (!eat(')')) {
      int64_t size = 0;
      if (!comma || shape->size() == kMaxRank || !number(&size)) return false;
      shape->push_back(size);
      comma = eat(',');
    }
    return comma || shape->size() != 1;
  }

  std::string_view rest_;
};

Status damaged(const std::string& path, const std::string& why) {
  return {EDGEPACK_FILE_ERROR, path + " is not a usable .npy file: " + why};
}

Status read_header(const std::string& path, std::FILE* file, Header* header, size_t* size) {
  unsigned char start[12] = {};
  if (std::fread(start, 1, 8, file) != 8 || std::memcmp(start, kMagic.data(), kMagic.size()) != 0) {
    return damaged(path, "it does not begin with numpy's magic bytes");
  }
  const int version = start[6];
  if ((version != 1 && version != 2) || start[7] != 0) return damaged(path, "its version is neither 1.0 nor 2.0");
  const size_t width = version == 1 ? 2 : 4;
  if (std::fread(start + 8, 1, width, file) != width) return damaged(path, "its header is cut short");
  size_t length = 0;
  for (size_t i = 0; i < width; ++i) length |= static_cast<size_t>(start[8 + i]) << (8 * i);
  if (length > kMaxHeader) return damaged(path, "its header claims " + std::to_string(length) + " bytes");
  std::string text(length, '\0');
  if (std::fread(text.data(), 1, length, file) != length) return damaged(path, "its header is cut short");
  if (!Parser(text).parse(header)) return damaged(path, "its header can't be understood");
  *size = 8 + width + length;
  return ok();
}

// "<f4" -> "f4". Empty when the byte order is not this machine's.
std::string_view native(std::string_view descr) {
  if (descr.size() != 3) return {};
  const bool ordered = descr[0] == '<' || descr[0] == '=' || (descr[2] == '1' && (descr[0] == '|' || descr[0] == '>'));
  return ordered ? descr.substr(1) : std::string_view{};
}

Status check(const std::string& path, const Header& header, edgepack_dtype dtype, const Shape& shape) {
  if (header.fortran) return damaged(path, "it is in Fortran order; write it with numpy.ascontiguousarray");
  const std::string_view descr = native(header.descr);
  const auto* found = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const DtypeInfo& entry) { return entry.descr == descr; });
  if (found == std::end(kDtypes)) {
    return damaged(path, "its dtype '" + printable(header.descr) + "' is not one of the little-endian numbers");
  }
  if (found->dtype != dtype || header.shape != shape) {
    return {EDGEPACK_FILE_ERROR,
            path + " holds " + describe(found->dtype, header.shape) + ", wanted is " + describe(dtype, shape)};
  }
  return ok();
}

}  // namespace

Status read_npy(const std::string& path, edgepack_dtype dtype, const Shape& shape, void* data, size_t bytes) {
  File file;
  size_t size = 0, header_size = 0;
  EDGEPACK_TRY(open_file(path, &file, &size));
  Header header;
  EDGEPACK_TRY(read_header(path, file.get(), &header, &header_size));
  EDGEPACK_TRY(check(path, header, dtype, shape));
  // The wanted size is known and bounded, so nothing is allocated or added up on the file's word.
  if (size < header_size || size - header_size != bytes) {
    return damaged(path, "it has " + std::to_string(size < header_size ? 0 : size - header_size) +
                             " bytes of data, its shape needs " + std::to_string(bytes));
  }
  if (std::fread(data, 1, bytes, file.get()) != bytes) return damaged(path, "it can't be read to its end");
  if (dtype == EDGEPACK_BOOL) {  // any other byte than 0 and 1 is no bool to C++ or to an engine
    auto* values = static_cast<unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) values[i] = values[i] != 0;
  }
  return ok();
}

Status read_npy_shape(const std::string& path, Shape* shape) {
  File file;
  size_t size = 0, header_size = 0;
  EDGEPACK_TRY(open_file(path, &file, &size));
  Header header;
  EDGEPACK_TRY(read_header(path, file.get(), &header, &header_size));
  *shape = header.shape;
  return ok();
}

Status write_npy(const std::string& path, edgepack_dtype dtype, const Shape& shape, const void* data, size_t bytes) {
  constexpr size_t kAlignment = 64, kStart = 10;
  std::string header = std::string("{'descr': '") + (info(dtype).size == 1 ? '|' : '<') +
                       std::string(info(dtype).descr) + "', 'fortran_order': False, 'shape': (";
  for (size_t i = 0; i < shape.size(); ++i) {
    header += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  header += shape.size() == 1 ? ",), }" : "), }";
  const size_t used = kStart + header.size() + 1;
  header += std::string((kAlignment - used % kAlignment) % kAlignment, ' ') + '\n';

  std::string start(kMagic);
  start += {'\x01', '\x00', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  const auto failed = [&] { return Status{EDGEPACK_FILE_ERROR, path + ": " + std::strerror(errno)}; };
  File file(std::fopen(path.c_str(), "wb"));
  if (file == nullptr) return failed();
  const std::string text = start + header;
  bool good = std::fwrite(text.data(), 1, text.size(), file.get()) == text.size() &&
              std::fwrite(data, 1, bytes, file.get()) == bytes;
  // Closing writes what is still buffered: a full disk may show only here.
  good = std::fclose(file.release()) == 0 && good;
  if (good) return ok();
  Status status = failed();
  struct stat facts{};
  // Half a file must not pass for a result; a device such as /dev/stdout is not ours to remove.
  if (stat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode)) std::remove(path.c_str());
  return status;
}

}  // namespace edgepack
