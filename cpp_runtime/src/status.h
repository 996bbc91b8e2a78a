// How functions fail: a code of the public API and a sentence. No exceptions.
#pragma once

#include <string>
#include <utility>

#include "edgepack/edgepack.h"

namespace edgepack {

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(edgepack_status code, std::string text) : code_(code), text_(std::move(text)) {}

  bool ok() const { return code_ == EDGEPACK_OK; }
  edgepack_status code() const { return code_; }
  const std::string& text() const { return text_; }

 private:
  edgepack_status code_ = EDGEPACK_OK;
  std::string text_;
};

inline Status ok() { return {}; }
inline Status invalid(std::string text) { return {EDGEPACK_INVALID_ARGUMENT, std::move(text)}; }

}  // namespace edgepack

// Return from the calling function when `expression` failed.
#define EDGEPACK_TRY(expression)                         \
  do {                                                   \
    ::edgepack::Status edgepack_status_ = (expression);  \
    if (!edgepack_status_.ok()) return edgepack_status_; \
  } while (false)
