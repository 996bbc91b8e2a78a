// ncnn, linked statically. Its blobs are unbatched Mats of up to four axes whose channels may be padded; they carry no
// element type, so int32 travels as its bits.
#include <net.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

#include "edgepack/backend.h"
#include "memory.h"

namespace edgepack {
namespace {

constexpr size_t kMaxAxes = 4;
constexpr size_t kWord = 4;  // bytes of an element, float32 or int32

// A shape as ncnn orders it; axes that the shape doesn't have are 1.
struct Extent {
  int w = 1, h = 1, d = 1, c = 1;
};

Extent extent(const Shape& shape) {
  const size_t rank = shape.size();
  const auto size = [&](size_t axis) { return static_cast<int>(shape[axis]); };
  if (rank == 0) return {};
  if (rank == 1) return {size(0), 1, 1, 1};
  if (rank == 2) return {size(1), size(0), 1, 1};
  if (rank == 3) return {size(2), size(1), 1, size(0)};
  return {size(3), size(2), size(1), size(0)};
}

ncnn::Mat make_mat(const Shape& shape) {
  const Extent e = extent(shape);
  switch (shape.size()) {
    case 0:
    case 1: return ncnn::Mat(e.w, kWord);
    case 2: return ncnn::Mat(e.w, e.h, kWord);
    case 3: return ncnn::Mat(e.w, e.h, e.c, kWord);
    default: return ncnn::Mat(e.w, e.h, e.d, e.c, kWord);
  }
}

size_t channel_words(const ncnn::Mat& mat) {
  return static_cast<size_t>(mat.w) * static_cast<size_t>(mat.h) * static_cast<size_t>(mat.d);
}

bool is_contiguous(const ncnn::Mat& mat) { return mat.c == 1 || mat.cstep == channel_words(mat); }

// Channel q of a Mat.
char* channel(const ncnn::Mat& mat, int q) {
  return static_cast<char*>(mat.data) + static_cast<size_t>(q) * mat.cstep * kWord;
}

// Whole numbers reach ncnn as ids for a lookup, and nothing else.
bool holds_negative(const void* data, size_t bytes) {
  const auto* const ids = static_cast<const int32_t*>(data);
  const size_t count = bytes / sizeof(int32_t);
  return std::any_of(ids, ids + count, [](int32_t id) { return id < 0; });
}

struct Slot {
  int blob = -1;
  ncnn::Mat mat;  // inputs: stays; outputs: the last run's
  Buffer packed;  // the same values contiguously, where the Mat's channels are padded
  const Tensor* tensor = nullptr;
};

class Ncnn final : public Backend {
 public:
  const char* name() const override { return "ncnn"; }
  std::string version() const override { return EDGEPACK_ENGINE_VERSION; }

  Status load(const Descriptor& descriptor, const std::string& folder, const std::string& /*library*/,
              int threads) override {
    if (descriptor.files.size() != 2) {
      return {EDGEPACK_BAD_DESCRIPTOR, "an ncnn variant has two files, its .param and its .bin"};
    }
    set_options(descriptor.precision, threads);
    const std::string param = folder + "/" + descriptor.files[0], weights = folder + "/" + descriptor.files[1];
    if (net_.load_param(param.c_str()) != 0) {
      return {EDGEPACK_ENGINE_ERROR, "ncnn could not load " + param + " (its own words are above on stderr)"};
    }
    if (net_.load_model(weights.c_str()) != 0) {
      return {EDGEPACK_ENGINE_ERROR, "ncnn could not load " + weights + " (its own words are above on stderr)"};
    }
    EDGEPACK_TRY(find(descriptor.inputs, net_.input_names(), net_.input_indexes(), "input", &inputs_));
    EDGEPACK_TRY(find(descriptor.outputs, net_.output_names(), net_.output_indexes(), "output", &outputs_));
    for (Slot& slot : inputs_) {
      slot.mat = make_mat(slot.tensor->engine_shape);
      if (slot.mat.empty()) return no_memory(slot);
      if (!is_contiguous(slot.mat) && !slot.packed.allocate(slot.tensor->engine_bytes)) return no_memory(slot);
    }
    for (Slot& slot : outputs_) {
      if (!slot.packed.allocate(slot.tensor->engine_bytes)) return no_memory(slot);
    }
    return ok();
  }

  void* input(size_t index) override { return input(inputs_[index]); }

  Status run() override {
    ncnn::Extractor extractor = net_.create_extractor();
    EDGEPACK_TRY(set_inputs(&extractor));
    for (Slot& slot : outputs_) {
      if (extractor.extract(slot.blob, slot.mat) != 0 || slot.mat.empty()) {
        return {EDGEPACK_ENGINE_ERROR, "ncnn could not compute the output " + printable(slot.tensor->engine_name)};
      }
      EDGEPACK_TRY(check(slot));
    }
    return ok();
  }

  const void* output(size_t index) override {
    Slot& slot = outputs_[index];
    if (is_contiguous(slot.mat)) return slot.mat.data;
    const size_t bytes = channel_words(slot.mat) * kWord;
    for (int q = 0; q < slot.mat.c; ++q) {
      std::memcpy(static_cast<char*>(slot.packed.data()) + static_cast<size_t>(q) * bytes, channel(slot.mat, q), bytes);
    }
    return slot.packed.data();
  }

  std::string library() const override { return ""; }

  Status profile(int runs, Profile* profile) override {
    constexpr int kWarmUps = 2;
    const std::vector<bool> needed = needed_layers();
    for (int i = 0; i < kWarmUps + runs; ++i) {
      if (i == kWarmUps) *profile = {};
      EDGEPACK_TRY(timed_run(needed, profile));
    }
    profile->caveat = "what ncnn does between layers, and the inputs' copies, belong to no layer";
    return ok();
  }

 private:
  static void* input(Slot& slot) { return slot.packed.data() == nullptr ? slot.mat.data : slot.packed.data(); }

  Status set_inputs(ncnn::Extractor* extractor) {
    for (Slot& slot : inputs_) {
      if (slot.tensor->engine_dtype == EDGEPACK_INT32 && holds_negative(input(slot), slot.tensor->engine_bytes)) {
        return {EDGEPACK_INVALID_ARGUMENT, "negative ids in the input " + printable(slot.tensor->name) +
                                               ": ncnn would look up the table's first row for them"};
      }
      if (slot.packed.data() != nullptr) {
        const size_t bytes = channel_words(slot.mat) * kWord;
        for (int q = 0; q < slot.mat.c; ++q) {
          std::memcpy(channel(slot.mat, q), static_cast<char*>(slot.packed.data()) + static_cast<size_t>(q) * bytes,
                      bytes);
        }
      }
      // ncnn copies a Mat that is held elsewhere before a layer works in place, so ours keeps its values.
      if (extractor->input(slot.blob, slot.mat) != 0) {
        return {EDGEPACK_ENGINE_ERROR, "ncnn refused the input " + printable(slot.tensor->engine_name)};
      }
    }
    return ok();
  }

  // Which layers the outputs come from; run() leaves out the others as well.
  std::vector<bool> needed_layers() const {
    std::vector<bool> needed(net_.layers().size(), false);
    std::vector<int> blobs;
    blobs.reserve(outputs_.size());
    for (const Slot& slot : outputs_) blobs.push_back(slot.blob);
    while (!blobs.empty()) {
      const int producer = net_.blobs()[static_cast<size_t>(blobs.back())].producer;
      blobs.pop_back();
      if (producer < 0 || needed[static_cast<size_t>(producer)]) continue;
      needed[static_cast<size_t>(producer)] = true;
      const std::vector<int>& bottoms = net_.layers()[static_cast<size_t>(producer)]->bottoms;
      blobs.insert(blobs.end(), bottoms.begin(), bottoms.end());
    }
    return needed;
  }

  // run(), one layer at a time: the layers before have left their results in the extractor.
  Status timed_run(const std::vector<bool>& needed, Profile* profile) {
    const int64_t start = steady_ns();
    ncnn::Extractor extractor = net_.create_extractor();
    EDGEPACK_TRY(set_inputs(&extractor));
    size_t index = 0;
    for (size_t layer = 0; layer < needed.size(); ++layer) {
      const ncnn::Layer& each = *net_.layers()[layer];
      if (!needed[layer] || each.bottoms.empty() || each.tops.empty()) continue;  // an input has nothing below it
      constexpr int kAsItIs = 1;  // neither unpacked nor turned into float32
      ncnn::Mat top;
      const int64_t before = steady_ns();
      const int code = extractor.extract(each.tops[0], top, kAsItIs);
      const int64_t after = steady_ns();
      if (code != 0) return {EDGEPACK_ENGINE_ERROR, "ncnn could not compute the layer " + printable(each.name)};
      add_call(profile, index++, each.name, each.type, after - before);
    }
    for (Slot& slot : outputs_) {
      if (extractor.extract(slot.blob, slot.mat) != 0) return {EDGEPACK_ENGINE_ERROR, "ncnn lost an output"};
    }
    profile->total_ns += steady_ns() - start;
    return ok();
  }

  void set_options(const std::string& precision, int threads) {
    const bool half = precision == "fp16";
    net_.opt.num_threads = threads;
    net_.opt.use_vulkan_compute = false;
    // The same arithmetic as on the host that verified the variant: half precision only where that is its name.
    net_.opt.use_bf16_packed = false;
    net_.opt.use_bf16_storage = false;
    net_.opt.use_fp16_packed = half;
    net_.opt.use_fp16_storage = half;
    net_.opt.use_fp16_arithmetic = half;
    net_.opt.use_int8_inference = precision == "int8";
  }

  Status find(const std::vector<Tensor>& tensors, const std::vector<const char*>& names, const std::vector<int>& blobs,
              const std::string& kind, std::vector<Slot>* slots) {
    slots->resize(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Tensor& tensor = tensors[i];
      Slot& slot = (*slots)[i];
      slot.tensor = &tensor;
      if (tensor.engine_shape.size() > kMaxAxes || info(tensor.engine_dtype).size != kWord) {
        return {EDGEPACK_BAD_DESCRIPTOR, "ncnn has no tensor of " + describe(tensor.engine_dtype, tensor.engine_shape)};
      }
      for (size_t k = 0; k < names.size() && k < blobs.size(); ++k) {
        if (tensor.engine_name == names[k]) slot.blob = blobs[k];
      }
      if (slot.blob < 0) {
        return {EDGEPACK_ENGINE_ERROR, "the .param file has no " + kind + " " + printable(tensor.engine_name)};
      }
    }
    return ok();
  }

  // The Mat has exactly the shape that the descriptor promises.
  Status check(const Slot& slot) const {
    const ncnn::Mat& mat = slot.mat;
    const Shape& shape = slot.tensor->engine_shape;
    const Extent e = extent(shape);
    const int rank = shape.empty() ? 1 : static_cast<int>(shape.size());
    if (mat.dims == rank && mat.w == e.w && mat.h == e.h && mat.d == e.d && mat.c == e.c && mat.elempack == 1 &&
        mat.elemsize == kWord) {
      return ok();
    }
    return {EDGEPACK_ENGINE_ERROR, "ncnn's output " + printable(slot.tensor->engine_name) + " has " +
                                       std::to_string(mat.dims) + " axes (w " + std::to_string(mat.w) + ", h " +
                                       std::to_string(mat.h) + ", d " + std::to_string(mat.d) + ", c " +
                                       std::to_string(mat.c) + ") of " + std::to_string(mat.elemsize) +
                                       " bytes, variant.txt says " + describe(slot.tensor->engine_dtype, shape)};
  }

  static Status no_memory(const Slot& slot) {
    return {EDGEPACK_OUT_OF_MEMORY, "no memory for " + printable(slot.tensor->name)};
  }

  ncnn::Net net_;  // destroyed after the Mats below, which live in its allocators
  std::vector<Slot> inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Backend> make_backend() { return std::unique_ptr<Backend>(new (std::nothrow) Ncnn); }

}  // namespace edgepack
