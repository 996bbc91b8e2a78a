#include "descriptor.h"

#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <map>

#include "file.h"

namespace edgepack {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxTensors = 256;
constexpr size_t kMaxFiles = 64;
constexpr uint64_t kMaxTensorBytes = (uint64_t{1} << 31) - 1;
constexpr int64_t kMaxSide = 1 << 16;         // pixels
constexpr double kMostNumber = 1.0000001e30;  // of mean and std: as in Python, rounded to float
constexpr float kLeastStd = 0.9999999e-30F;

using Fields = std::map<std::string_view, std::string_view>;

// One record: its kind, its key=value tokens and where it is.
struct Record {
  size_t line = 0;
  std::string_view kind;
  Fields fields;

  Status error(const std::string& text) const {
    return {EDGEPACK_BAD_DESCRIPTOR, "variant.txt line " + std::to_string(line) + ": " + text};
  }
};

Status split(std::string_view text, Record* record) {
  bool first = true;
  while (!text.empty()) {
    const size_t end = text.find(' ');
    const std::string_view token = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    if (token.empty()) return record->error("two spaces in a row");
    if (first) {
      record->kind = token;
      first = false;
      continue;
    }
    const size_t equals = token.find('=');
    if (equals == std::string_view::npos || equals == 0) {
      return record->error("'" + printable(token) + "' is not key=value");
    }
    if (!record->fields.emplace(token.substr(0, equals), token.substr(equals + 1)).second) {
      return record->error("the key '" + printable(token.substr(0, equals)) + "' comes twice");
    }
  }
  return ok();
}

// Takes the value of a key that must be there, so that what is left over is unknown.
Status take(Record* record, std::string_view key, std::string_view* value) {
  const auto found = record->fields.find(key);
  if (found == record->fields.end()) return record->error("the key '" + std::string(key) + "' is missing");
  *value = found->second;
  record->fields.erase(found);
  return ok();
}

Status finish(const Record& record) {
  if (record.fields.empty()) return ok();
  return record.error("the key '" + printable(record.fields.begin()->first) + "' is unknown");
}

bool parse_integer(std::string_view text, int64_t low, int64_t high, int64_t* value) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative) text.remove_prefix(1);
  if (text.empty() || text.size() > 18) return false;
  int64_t number = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    number = number * 10 + (c - '0');
  }
  *value = negative ? -number : number;
  return *value >= low && *value <= high;
}

// A plain decimal such as 0.0235 or 3.5e-05. Not strtod, which follows the process's locale.
bool parse_decimal(std::string_view text, double* value) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative) text.remove_prefix(1);
  uint64_t digits = 0;
  int exponent = 0, count = 0, significant = 0;
  bool point = false;
  size_t at = 0;
  for (; at < text.size() && text[at] != 'e'; ++at) {
    const char c = text[at];
    if (c == '.') {
      if (point) return false;
      point = true;
      continue;
    }
    if (c < '0' || c > '9') return false;
    ++count;
    if (digits != 0 || c != '0') ++significant;
    if (significant > 17) return false;  // more than a double holds; also keeps `digits` from overflowing
    digits = digits * 10 + static_cast<uint64_t>(c - '0');
    if (point) --exponent;
  }
  if (count == 0 || count > 400) return false;
  if (at < text.size()) {
    std::string_view tail = text.substr(at + 1);
    if (!tail.empty() && tail[0] == '+') tail.remove_prefix(1);
    int64_t power = 0;
    if (!parse_integer(tail, -400, 400, &power)) return false;
    exponent += static_cast<int>(power);
  }
  // Up to 10^22 both factors are exact doubles, so one division or product rounds correctly.
  const auto number = static_cast<double>(digits);
  *value = exponent < 0 ? number / std::pow(10.0, -exponent) : number * std::pow(10.0, exponent);
  if (negative) *value = -*value;
  return std::isfinite(*value);
}

bool parse_hex(std::string_view text, std::string* bytes) {
  constexpr std::string_view kPrefix = "hex:";
  if (text.substr(0, kPrefix.size()) != kPrefix) return false;
  text.remove_prefix(kPrefix.size());
  if (text.size() % 2 != 0) return false;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  bytes->clear();
  for (size_t i = 0; i < text.size(); i += 2) {
    const int high = digit(text[i]), low = digit(text[i + 1]);
    if (high < 0 || low < 0) return false;
    bytes->push_back(static_cast<char>(high * 16 + low));
  }
  return true;
}

bool parse_list(std::string_view text, int64_t low, int64_t high, Shape* values) {
  values->clear();
  if (text.empty()) return true;
  while (true) {
    const size_t comma = text.find(',');
    int64_t value = 0;
    if (values->size() == EDGEPACK_MAX_RANK || !parse_integer(text.substr(0, comma), low, high, &value)) return false;
    values->push_back(value);
    if (comma == std::string_view::npos) return true;
    text = text.substr(comma + 1);
  }
}

// False when the tensor is larger than the limit.
bool count_elements(const Shape& shape, size_t element_size, size_t* elements) {
  uint64_t count = 1;
  for (const int64_t size : shape) {
    if (count > kMaxTensorBytes / static_cast<uint64_t>(size)) return false;
    count *= static_cast<uint64_t>(size);
  }
  if (count > kMaxTensorBytes / element_size) return false;
  *elements = static_cast<size_t>(count);
  return true;
}

bool parse_perm(std::string_view text, size_t rank, std::vector<int>* perm) {
  Shape axes;
  if (!parse_list(text, 0, EDGEPACK_MAX_RANK - 1, &axes) || axes.size() != rank) return false;
  std::array<bool, EDGEPACK_MAX_RANK> seen{};
  perm->clear();
  for (const int64_t axis : axes) {
    if (axis >= static_cast<int64_t>(rank) || seen[static_cast<size_t>(axis)]) return false;
    seen[static_cast<size_t>(axis)] = true;
    perm->push_back(static_cast<int>(axis));
  }
  return true;
}

Status parse_quantization(Record* record, Tensor* tensor) {
  const auto scale = record->fields.find("scale");
  if (scale == record->fields.end()) {
    if (record->fields.count("zero_point") != 0) return record->error("zero_point without scale");
    return ok();
  }
  double value = 0;
  if (!parse_decimal(scale->second, &value) || !(static_cast<float>(value) > 0) ||
      !std::isfinite(static_cast<float>(value))) {
    return record->error("scale must be a positive number");
  }
  tensor->scale = static_cast<float>(value);
  record->fields.erase(scale);

  int64_t low = 0, high = 0;
  switch (tensor->engine_dtype) {
    case EDGEPACK_INT8: low = INT8_MIN, high = INT8_MAX; break;
    case EDGEPACK_UINT8: high = UINT8_MAX; break;
    case EDGEPACK_INT16: low = INT16_MIN, high = INT16_MAX; break;
    case EDGEPACK_UINT16: high = UINT16_MAX; break;
    case EDGEPACK_INT32: low = INT32_MIN, high = INT32_MAX; break;
    default: return record->error("a scale needs an engine_dtype of int8, uint8, int16, uint16 or int32");
  }
  std::string_view text;
  EDGEPACK_TRY(take(record, "zero_point", &text));
  int64_t zero_point = 0;
  if (!parse_integer(text, low, high, &zero_point)) return record->error("zero_point is outside engine_dtype");
  tensor->zero_point = static_cast<int32_t>(zero_point);
  return ok();
}

Status parse_type(Record* record, std::string_view prefix, edgepack_dtype* dtype, Shape* shape) {
  const std::string dtype_key = std::string(prefix) + "dtype", shape_key = std::string(prefix) + "shape";
  std::string_view text;
  EDGEPACK_TRY(take(record, dtype_key, &text));
  const DtypeInfo* found = find_dtype(text);
  if (found == nullptr) return record->error(dtype_key + " '" + printable(text) + "' is unknown");
  *dtype = found->dtype;
  EDGEPACK_TRY(take(record, shape_key, &text));
  if (!parse_list(text, 1, std::numeric_limits<int32_t>::max(), shape)) {
    return record->error(shape_key + " must be at most 8 positive sizes");
  }
  return ok();
}

Status parse_tensor(Record* record, Tensor* tensor) {
  std::string_view text;
  EDGEPACK_TRY(take(record, "name", &text));
  if (!parse_hex(text, &tensor->name)) return record->error("name must be hex: and lower-case hex digits");
  EDGEPACK_TRY(take(record, "engine_name", &text));
  if (!parse_hex(text, &tensor->engine_name)) {
    return record->error("engine_name must be hex: and lower-case hex digits");
  }
  if (tensor->engine_name.find('\0') != std::string::npos) return record->error("engine_name holds a NUL byte");
  EDGEPACK_TRY(parse_type(record, "", &tensor->dtype, &tensor->shape));
  EDGEPACK_TRY(parse_type(record, "engine_", &tensor->engine_dtype, &tensor->engine_shape));

  size_t engine_elements = 0;
  if (!count_elements(tensor->shape, info(tensor->dtype).size, &tensor->elements) ||
      !count_elements(tensor->engine_shape, info(tensor->engine_dtype).size, &engine_elements)) {
    return record->error("the tensor is larger than 2 GiB");
  }
  if (tensor->elements != engine_elements) return record->error("shape and engine_shape differ in their element count");
  tensor->bytes = tensor->elements * info(tensor->dtype).size;
  tensor->engine_bytes = tensor->elements * info(tensor->engine_dtype).size;

  EDGEPACK_TRY(take(record, "perm", &text));
  if (!parse_perm(text, tensor->shape.size(), &tensor->perm)) {
    return record->error("perm is not a permutation of the axes of shape");
  }
  EDGEPACK_TRY(parse_quantization(record, tensor));
  return finish(*record);
}

Status parse_engine(Record* record, Descriptor* descriptor) {
  if (!descriptor->engine.empty()) return record->error("a second engine record");
  std::string_view name, version, precision;
  EDGEPACK_TRY(take(record, "name", &name));
  EDGEPACK_TRY(take(record, "version", &version));
  EDGEPACK_TRY(take(record, "precision", &precision));
  if (name.empty()) return record->error("the engine's name is empty");
  if (precision != "fp32" && precision != "fp16" && precision != "int8") {
    return record->error("precision must be fp32, fp16 or int8");
  }
  descriptor->engine = name;
  descriptor->version = version;
  descriptor->precision = precision;
  return finish(*record);
}

Status parse_bound(Record* record, Descriptor* descriptor) {
  std::string_view text;
  EDGEPACK_TRY(take(record, "cosine", &text));
  if (!parse_decimal(text, &descriptor->bound_cosine) || std::fabs(descriptor->bound_cosine) > 1) {
    return record->error("cosine must be a number from -1 to 1");
  }
  if (record->fields.count("sqnr_db") != 0) {
    EDGEPACK_TRY(take(record, "sqnr_db", &text));
    double sqnr = 0;
    if (!parse_decimal(text, &sqnr)) return record->error("sqnr_db must be a number");
    descriptor->bound_sqnr_db = sqnr;
  }
  return finish(*record);
}

Status parse_file(Record* record, Descriptor* descriptor) {
  std::string_view path;
  EDGEPACK_TRY(take(record, "path", &path));
  // A plain name: the descriptor can't reach outside its own folder.
  if (path.empty() || path == "." || path == ".." || path.find('/') != std::string_view::npos ||
      path.find('\0') != std::string_view::npos) {
    return record->error("path must be a plain file name");
  }
  if (descriptor->files.size() == kMaxFiles) return record->error("too many files");
  descriptor->files.emplace_back(path);
  return finish(*record);
}

// Sets `chosen` to one of `known`.
Status take_choice(Record* record, const char* key, std::initializer_list<const char*> known, const char** chosen) {
  std::string_view text;
  EDGEPACK_TRY(take(record, key, &text));
  for (const char* name : known) {
    if (text == name) {
      *chosen = name;
      return ok();
    }
  }
  return record->error(std::string(key) + " '" + printable(text) + "' is unknown");
}

// Reads "height,width" where the key is there; with `alone` one number is allowed as well.
Status take_sides(Record* record, const char* key, bool alone, int32_t* sides) {
  const auto found = record->fields.find(key);
  if (found == record->fields.end()) return ok();
  Shape values;
  if (!parse_list(found->second, 1, kMaxSide, &values) || (values.size() != 2 && !(alone && values.size() == 1))) {
    return record->error(std::string(key) + " must be height,width" + (alone ? " or one length" : ""));
  }
  record->fields.erase(found);
  for (size_t i = 0; i < values.size(); ++i) sides[i] = static_cast<int32_t>(values[i]);
  return ok();
}

// One number for all channels, or one for each.
Status take_channels(Record* record, const char* key, size_t channels, double least, double most, float* values) {
  std::string_view text;
  EDGEPACK_TRY(take(record, key, &text));
  size_t count = 0;
  for (bool more = true; more; ++count) {
    const size_t comma = text.find(',');
    more = comma != std::string_view::npos;
    double value = 0;
    if (count == channels || !parse_decimal(text.substr(0, comma), &value) || value < least || value > most) {
      return record->error(std::string(key) + " must be one number" + (channels == 1 ? "" : " or three") + ", from " +
                           (least < 0 ? "-1e30 to 1e30" : "0 to 255"));
    }
    values[count] = static_cast<float>(value);
    if (more) text = text.substr(comma + 1);
  }
  if (count != 1 && count != channels) return record->error(std::string(key) + " has two numbers, not one or three");
  for (size_t i = count; i < 3; ++i) values[i] = values[0];
  return ok();
}

Status parse_preprocess(Record* record, std::string_view text, Descriptor* descriptor) {
  std::string_view number;
  EDGEPACK_TRY(take(record, "input", &number));
  int64_t index = 0;
  if (!parse_integer(number, 0, static_cast<int64_t>(kMaxTensors), &index) ||
      static_cast<size_t>(index) >= descriptor->inputs.size()) {
    return record->error("input must be the number of an input above");
  }
  std::optional<Preprocess>& place = descriptor->inputs[static_cast<size_t>(index)].preprocess;
  if (place) return record->error("a second preprocess record for input " + std::to_string(index));
  Preprocess& made = place.emplace();
  made.text = text;
  edgepack_preprocess& how = made.declared;
  EDGEPACK_TRY(take_choice(record, "layout", {"NCHW", "NHWC", "CHW", "HWC", "NHW", "HW"}, &how.layout));
  EDGEPACK_TRY(take_choice(record, "color", {"RGB", "BGR", "GRAY"}, &how.color));
  EDGEPACK_TRY(take_sides(record, "resize", true, how.resize));
  EDGEPACK_TRY(take_choice(record, "fit", {"stretch", "inside", "height"}, &how.fit));
  if (how.fit != std::string_view("stretch") && how.resize[1] == 0) {
    return record->error("this fit needs resize=height,width");
  }
  EDGEPACK_TRY(take_choice(record, "method", {"bilinear", "nearest"}, &how.method));
  EDGEPACK_TRY(take_sides(record, "crop", false, how.crop));
  EDGEPACK_TRY(take_sides(record, "pad", false, how.pad));
  const size_t channels = how.color == std::string_view("GRAY") ? 1 : 3;
  if (how.pad[0] != 0) {
    EDGEPACK_TRY(take_channels(record, "pad_value", channels, 0, 255, how.pad_value));
    EDGEPACK_TRY(take_choice(record, "pad_place", {"center", "top_left"}, &how.pad_place));
  }
  EDGEPACK_TRY(take_channels(record, "mean", channels, -kMostNumber, kMostNumber, how.mean));
  EDGEPACK_TRY(take_channels(record, "std", channels, -kMostNumber, kMostNumber, how.std));
  for (const float value : how.std) {
    if (std::fabs(value) < kLeastStd) return record->error("std must not be 0");
  }
  return finish(*record);
}

Status parse_record(Record* record, std::string_view line, bool* has_bound, Descriptor* descriptor) {
  if (record->kind == "engine") return parse_engine(record, descriptor);
  if (record->kind == "file") return parse_file(record, descriptor);
  if (record->kind == "bound") {
    if (*has_bound) return record->error("a second bound record");
    *has_bound = true;
    return parse_bound(record, descriptor);
  }
  if (record->kind == "input" || record->kind == "output") {
    std::vector<Tensor>& tensors = record->kind == "input" ? descriptor->inputs : descriptor->outputs;
    if (tensors.size() == kMaxTensors) return record->error("too many tensors");
    tensors.emplace_back();
    return parse_tensor(record, &tensors.back());
  }
  if (record->kind == "preprocess") return parse_preprocess(record, line.substr(line.find(' ') + 1), descriptor);
  return record->error("'" + printable(record->kind) + "' is not a kind of record");
}

}  // namespace

Status parse_descriptor(std::string_view text, Descriptor* descriptor) {
  *descriptor = {};
  bool has_bound = false;
  Record record;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    record = {record.line + 1, {}, {}};
    if (end == std::string_view::npos) return record.error("the last line has no end: the file is cut short");
    const std::string_view line = text.substr(0, end);
    text = text.substr(end + 1);
    if (record.line == 1) {
      if (line != "edgepack-variant 1") return record.error("not an edgepack-variant file of version 1");
      continue;
    }
    EDGEPACK_TRY(split(line, &record));
    EDGEPACK_TRY(parse_record(&record, line, &has_bound, descriptor));
  }
  if (descriptor->engine.empty()) return record.error("the engine record is missing");
  if (!has_bound) return record.error("the bound record is missing");
  if (descriptor->files.empty()) return record.error("it names no file");
  if (descriptor->outputs.empty()) return record.error("it names no output");
  return ok();
}

Status read_descriptor(const std::string& path, Descriptor* descriptor) {
  std::string text;
  EDGEPACK_TRY(read_text(path, kMaxFileBytes, &text));
  return parse_descriptor(text, descriptor);
}

Status check_engine_tensor(const Tensor& tensor, edgepack_dtype dtype, const Shape& shape) {
  if (dtype == tensor.engine_dtype && shape == tensor.engine_shape) return ok();
  return {EDGEPACK_ENGINE_ERROR, "the model's tensor " + printable(tensor.engine_name) + " is " +
                                     describe(dtype, shape) + ", variant.txt says " +
                                     describe(tensor.engine_dtype, tensor.engine_shape) +
                                     ": the files of this variant don't belong together"};
}

std::string describe(edgepack_dtype dtype, const Shape& shape) {
  std::string text = std::string(info(dtype).name) + " [";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

std::string printable(std::string_view name) {
  constexpr size_t kLongest = 80;
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const char c : name.substr(0, kLongest)) {
    if (c >= ' ' && c <= '~' && c != '\\') {
      text += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      text += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
  return name.size() > kLongest ? text + "..." : text;
}

}  // namespace edgepack
