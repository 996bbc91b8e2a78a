// The public C API over one backend.
#include "edgepack/edgepack.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "cpu.h"
#include "descriptor.h"
#include "edgepack/backend.h"
#include "image.h"
#include "tensor.h"

using edgepack::Backend;
using edgepack::Descriptor;
using edgepack::invalid;
using edgepack::ok;
using edgepack::Status;
using edgepack::Tensor;

struct edgepack_variant {
  Descriptor descriptor;
  std::unique_ptr<Backend> backend;
  std::mutex lock;  // of everything below
  std::string version, library;
  int32_t threads = 1;
  std::string error;
  std::vector<bool> is_set;
  std::vector<edgepack::ImageInput> images;  // one per input
  edgepack::Profile profile;
  bool loaded = false;
  bool ran = false;
};

namespace {

constexpr int32_t kMaxThreads = 256;
constexpr int32_t kMaxProfileRuns = 10000;

Status open(const char* folder, const edgepack_options* options, edgepack_variant* variant) {
  if (folder == nullptr) return invalid("edgepack_open: folder is NULL");
  const edgepack_options chosen = options == nullptr ? edgepack_options{} : *options;
  if (chosen.threads < 0 || chosen.threads > kMaxThreads) return invalid("threads must be 0 to 256");
  Descriptor& descriptor = variant->descriptor;
  EDGEPACK_TRY(read_descriptor(std::string(folder) + "/variant.txt", &descriptor));
  EDGEPACK_TRY(edgepack::check_cpu(edgepack::needed_cpu_features()));
  variant->backend = edgepack::make_backend();
  if (variant->backend == nullptr) return {EDGEPACK_OUT_OF_MEMORY, "no memory for the engine"};
  if (descriptor.engine != variant->backend->name()) {
    return {EDGEPACK_BAD_DESCRIPTOR, "this variant is for the engine " + edgepack::printable(descriptor.engine) +
                                         ", this harness has " + variant->backend->name() + ": use bin/edgepack-" +
                                         edgepack::printable(descriptor.engine)};
  }
  variant->is_set.assign(descriptor.inputs.size(), false);
  variant->images.resize(descriptor.inputs.size());
  variant->threads = std::max(1, chosen.threads);
  EDGEPACK_TRY(
      variant->backend->load(descriptor, folder, chosen.library == nullptr ? "" : chosen.library, variant->threads));
  variant->version = variant->backend->version();
  variant->library = variant->backend->library();
  variant->loaded = true;
  return ok();
}

// Every call on an open handle goes through here: one at a time, and the error text is kept.
template <typename Call>
edgepack_status guarded(edgepack_variant* variant, const Call& call) {
  if (variant == nullptr) return EDGEPACK_INVALID_ARGUMENT;
  const std::lock_guard<std::mutex> alone(variant->lock);
  const Status status = variant->loaded ? call() : invalid("the variant could not be opened");
  if (!status.ok()) variant->error = status.text();
  return status.code();
}

Status pick(const std::vector<Tensor>& tensors, const char* kind, size_t index, const Tensor** tensor) {
  if (index >= tensors.size()) {
    return invalid("there is no " + std::string(kind) + " " + std::to_string(index) + ": the model has " +
                   std::to_string(tensors.size()));
  }
  *tensor = &tensors[index];
  return ok();
}

Status check_bytes(const Tensor& tensor, const void* data, size_t bytes) {
  if (data == nullptr) return invalid("data is NULL");
  if (bytes == tensor.bytes) return ok();
  return invalid(edgepack::printable(tensor.name) + " is " + edgepack::describe(tensor.dtype, tensor.shape) + " of " +
                 std::to_string(tensor.bytes) + " bytes, given are " + std::to_string(bytes));
}

Status describe(const std::vector<Tensor>& tensors, const char* kind, size_t index, edgepack_tensor* out) {
  if (out == nullptr) return invalid("tensor is NULL");
  const Tensor* tensor = nullptr;
  EDGEPACK_TRY(pick(tensors, kind, index, &tensor));
  *out = {};
  out->name = tensor->name.c_str();
  out->name_size = tensor->name.size();
  out->dtype = tensor->dtype;
  out->rank = static_cast<uint32_t>(tensor->shape.size());
  for (size_t axis = 0; axis < tensor->shape.size(); ++axis) out->shape[axis] = tensor->shape[axis];
  out->bytes = tensor->bytes;
  out->engine_dtype = tensor->engine_dtype;
  out->engine_rank = static_cast<uint32_t>(tensor->engine_shape.size());
  std::copy(tensor->engine_shape.begin(), tensor->engine_shape.end(), out->engine_shape);
  std::copy(tensor->perm.begin(), tensor->perm.end(), out->axes);
  out->scale = tensor->scale.value_or(0.0F);
  out->zero_point = tensor->scale ? tensor->zero_point : 0;
  return ok();
}

bool takes(const Descriptor& descriptor, const edgepack_shape* shapes, size_t inputs) {
  const auto same = [](const Tensor& tensor, const edgepack_shape& shape) {
    return tensor.shape.size() == shape.rank && std::equal(tensor.shape.begin(), tensor.shape.end(), shape.sizes);
  };
  return descriptor.inputs.size() == inputs &&
         std::equal(descriptor.inputs.begin(), descriptor.inputs.end(), shapes, same);
}

Status check_inputs(const edgepack_variant& variant) {
  for (size_t index = 0; index < variant.is_set.size(); ++index) {
    if (!variant.is_set[index]) return invalid("input " + std::to_string(index) + " has not been set");
  }
  return ok();
}

int64_t sum_ns(const edgepack::Profile& profile) {
  int64_t sum = 0;
  for (const edgepack::Profile::Operator& op : profile.operators) sum += op.ns;
  return sum;
}

// "12.3 %"
std::string percent(int64_t part, int64_t whole) {
  const int64_t tenths = whole == 0 ? 0 : (part * 2000 / whole + 1) / 2;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " %";
}

// A profile whose operators don't add up to the total is given with the reason, not hidden.
void explain(edgepack::Profile* profile) {
  const int64_t sum = sum_ns(*profile),
                gap = sum > profile->total_ns ? sum - profile->total_ns : profile->total_ns - sum;
  if (gap * 20 <= profile->total_ns) {
    profile->caveat.clear();
    return;
  }
  profile->caveat = "the operators add up to " + percent(sum, profile->total_ns) + " of the total: " + profile->caveat;
}

}  // namespace

uint32_t edgepack_api_version(void) { return EDGEPACK_API_VERSION; }

edgepack_status edgepack_open(const char* folder, const edgepack_options* options, edgepack_variant** variant) {
  if (variant == nullptr) return EDGEPACK_INVALID_ARGUMENT;
  *variant = new (std::nothrow) edgepack_variant;
  if (*variant == nullptr) return EDGEPACK_OUT_OF_MEMORY;
  const Status status = open(folder, options, *variant);
  (*variant)->error = status.text();
  return status.code();
}

edgepack_status edgepack_choose(const char* const* folders, size_t count, const edgepack_shape* shapes, size_t inputs,
                                size_t* chosen) {
  if (folders == nullptr || chosen == nullptr || (shapes == nullptr && inputs > 0)) return EDGEPACK_INVALID_ARGUMENT;
  for (size_t index = 0; index < count; ++index) {
    if (folders[index] == nullptr) return EDGEPACK_INVALID_ARGUMENT;
    Descriptor descriptor;
    const Status status = read_descriptor(std::string(folders[index]) + "/variant.txt", &descriptor);
    if (!status.ok()) return status.code();
    if (!takes(descriptor, shapes, inputs)) continue;
    *chosen = index;
    return EDGEPACK_OK;
  }
  return EDGEPACK_UNSUPPORTED;
}

void edgepack_close(edgepack_variant* variant) { delete variant; }

const char* edgepack_error(const edgepack_variant* variant) {
  return variant == nullptr ? "there is no open variant" : variant->error.c_str();
}

size_t edgepack_copy_error(edgepack_variant* variant, char* text, size_t size) {
  const auto copy = [&](const char* from, size_t length) {
    if (text == nullptr || size == 0) return length;
    const size_t kept = std::min(length, size - 1);
    std::memcpy(text, from, kept);
    text[kept] = '\0';
    return length;
  };
  if (variant == nullptr) return copy(edgepack_error(nullptr), std::strlen(edgepack_error(nullptr)));
  const std::lock_guard<std::mutex> alone(variant->lock);
  return copy(variant->error.data(), variant->error.size());
}

edgepack_status edgepack_describe(edgepack_variant* variant, edgepack_about* about) {
  return guarded(variant, [&]() -> Status {
    if (about == nullptr) return invalid("about is NULL");
    const Descriptor& descriptor = variant->descriptor;
    *about = {};
    about->engine = descriptor.engine.c_str();
    about->engine_version = variant->version.c_str();
    about->precision = descriptor.precision.c_str();
    about->inputs = descriptor.inputs.size();
    about->outputs = descriptor.outputs.size();
    about->bound_cosine = descriptor.bound_cosine;
    about->bound_sqnr_db = descriptor.bound_sqnr_db.value_or(std::numeric_limits<double>::quiet_NaN());
    about->library = variant->library.c_str();
    about->threads = variant->threads;
    return ok();
  });
}

edgepack_status edgepack_input(edgepack_variant* variant, size_t index, edgepack_tensor* tensor) {
  return guarded(variant, [&] { return describe(variant->descriptor.inputs, "input", index, tensor); });
}

edgepack_status edgepack_output(edgepack_variant* variant, size_t index, edgepack_tensor* tensor) {
  return guarded(variant, [&] { return describe(variant->descriptor.outputs, "output", index, tensor); });
}

edgepack_status edgepack_set_input(edgepack_variant* variant, size_t index, const void* data, size_t bytes) {
  return guarded(variant, [&]() -> Status {
    const Tensor* tensor = nullptr;
    EDGEPACK_TRY(pick(variant->descriptor.inputs, "input", index, &tensor));
    EDGEPACK_TRY(check_bytes(*tensor, data, bytes));
    to_engine(*tensor, data, variant->backend->input(index));
    variant->is_set[index] = true;
    return ok();
  });
}

edgepack_status edgepack_set_image(edgepack_variant* variant, size_t index, const edgepack_image* image) {
  return guarded(variant, [&]() -> Status {
    const Tensor* tensor = nullptr;
    EDGEPACK_TRY(pick(variant->descriptor.inputs, "input", index, &tensor));
    if (image == nullptr) return invalid("image is NULL");
    variant->is_set[index] = false;
    EDGEPACK_TRY(variant->images[index].set(*tensor, *image, variant->backend->input(index)));
    variant->is_set[index] = true;
    return ok();
  });
}

edgepack_status edgepack_get_preprocess(edgepack_variant* variant, size_t index, edgepack_preprocess* preprocess) {
  return guarded(variant, [&]() -> Status {
    const Tensor* tensor = nullptr;
    EDGEPACK_TRY(pick(variant->descriptor.inputs, "input", index, &tensor));
    if (preprocess == nullptr) return invalid("preprocess is NULL");
    *preprocess = {};
    if (!tensor->preprocess) return ok();
    *preprocess = tensor->preprocess->declared;
    preprocess->text = tensor->preprocess->text.c_str();
    return ok();
  });
}

edgepack_status edgepack_run(edgepack_variant* variant) {
  return guarded(variant, [&]() -> Status {
    variant->ran = false;
    EDGEPACK_TRY(check_inputs(*variant));
    EDGEPACK_TRY(variant->backend->run());
    variant->ran = true;
    return ok();
  });
}

edgepack_status edgepack_get_output(edgepack_variant* variant, size_t index, void* data, size_t bytes) {
  return guarded(variant, [&]() -> Status {
    const Tensor* tensor = nullptr;
    EDGEPACK_TRY(pick(variant->descriptor.outputs, "output", index, &tensor));
    EDGEPACK_TRY(check_bytes(*tensor, data, bytes));
    if (!variant->ran) return invalid("there is no output: the model has not been run");
    from_engine(*tensor, variant->backend->output(index), data);
    return ok();
  });
}

edgepack_status edgepack_profile(edgepack_variant* variant, int32_t runs, edgepack_profile_summary* summary) {
  return guarded(variant, [&]() -> Status {
    if (summary == nullptr) return invalid("summary is NULL");
    if (runs < 1 || runs > kMaxProfileRuns) {
      return invalid("a profile has 1 to " + std::to_string(kMaxProfileRuns) + " runs");
    }
    variant->ran = false;
    variant->profile = {};
    EDGEPACK_TRY(check_inputs(*variant));
    EDGEPACK_TRY(variant->backend->profile(runs, &variant->profile));
    explain(&variant->profile);
    *summary = {runs, variant->profile.operators.size(), variant->profile.total_ns, sum_ns(variant->profile),
                variant->profile.caveat.c_str()};
    return ok();
  });
}

edgepack_status edgepack_profile_operator(edgepack_variant* variant, size_t index, edgepack_operator* op) {
  return guarded(variant, [&]() -> Status {
    if (op == nullptr) return invalid("op is NULL");
    const std::vector<edgepack::Profile::Operator>& operators = variant->profile.operators;
    if (index >= operators.size()) {
      return invalid("there is no operator " + std::to_string(index) + ": the profile has " +
                     std::to_string(operators.size()));
    }
    const edgepack::Profile::Operator& found = operators[index];
    *op = {found.name.c_str(), found.name.size(), found.type.c_str(), found.ns, found.calls};
    return ok();
  });
}
