// One JSON object a line, built key by key.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgepack {

class JsonLine {
 public:
  JsonLine& text(std::string_view key, std::string_view value);  // bytes that are not ASCII come out as \u00NN
  JsonLine& integer(std::string_view key, int64_t value);
  JsonLine& number(std::string_view key, double value);  // NaN and infinity become null
  JsonLine& boolean(std::string_view key, bool value);
  JsonLine& null(std::string_view key);
  JsonLine& integers(std::string_view key, const std::vector<int64_t>& values);
  JsonLine& texts(std::string_view key, const std::vector<std::string>& values);
  JsonLine& objects(std::string_view key, const std::vector<JsonLine>& values);

  // The whole line with its LF.
  std::string str() const { return "{" + body_ + "}\n"; }

 private:
  void key(std::string_view name);

  std::string body_;
};

}  // namespace edgepack
