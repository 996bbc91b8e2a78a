#include "json.h"

#include <cmath>
#include <cstdio>

namespace edgepack {
namespace {

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (byte < 0x20 || byte > 0x7e) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(byte));
      out += escape;
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace

void JsonLine::key(std::string_view name) {
  if (!body_.empty()) body_ += ',';
  body_ += quoted(name) + ":";
}

JsonLine& JsonLine::text(std::string_view name, std::string_view value) {
  key(name);
  body_ += quoted(value);
  return *this;
}

JsonLine& JsonLine::integer(std::string_view name, int64_t value) {
  key(name);
  body_ += std::to_string(value);
  return *this;
}

JsonLine& JsonLine::number(std::string_view name, double value) {
  key(name);
  if (!std::isfinite(value)) {
    body_ += "null";
    return *this;
  }
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.17g", value);
  for (char* c = digits; *c != '\0'; ++c) {
    if (*c == ',') *c = '.';  // a locale's decimal comma is not JSON
  }
  body_ += digits;
  return *this;
}

JsonLine& JsonLine::boolean(std::string_view name, bool value) {
  key(name);
  body_ += value ? "true" : "false";
  return *this;
}

JsonLine& JsonLine::null(std::string_view name) {
  key(name);
  body_ += "null";
  return *this;
}

JsonLine& JsonLine::integers(std::string_view name, const std::vector<int64_t>& values) {
  key(name);
  body_ += '[';
  for (size_t i = 0; i < values.size(); ++i) body_ += (i == 0 ? "" : ",") + std::to_string(values[i]);
  body_ += ']';
  return *this;
}

JsonLine& JsonLine::texts(std::string_view name, const std::vector<std::string>& values) {
  key(name);
  body_ += '[';
  for (size_t i = 0; i < values.size(); ++i) body_ += (i == 0 ? "" : ",") + quoted(values[i]);
  body_ += ']';
  return *this;
}

JsonLine& JsonLine::objects(std::string_view name, const std::vector<JsonLine>& values) {
  key(name);
  body_ += '[';
  for (size_t i = 0; i < values.size(); ++i) body_ += (i == 0 ? "{" : ",{") + values[i].body_ + "}";
  body_ += ']';
  return *this;
}

}  // namespace edgepack
