// LiteRT (TensorFlow Lite) through the C interface that libLiteRt.so of ai-edge-litert 2.3.0 exports, with own
// declarations: the package has no header. This interface changes between minor releases, and the library does not tell
// its version, so it must be the one that the bundle was built with.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "edgepack/backend.h"
#include "shared_library.h"

namespace edgepack {
namespace {

using LiteRtStatus = int;
constexpr LiteRtStatus kLiteRtOk = 0;
constexpr int kCpu = 1;                                  // LiteRtHwAccelerators
constexpr int kErrorsOnly = 3;                           // LiteRtLogSeverity
constexpr int kTagAccelerators = 24, kTagSeverity = 25;  // LiteRtEnvOptionTag
constexpr int kAnyInteger = 2;                           // LiteRtAnyType
constexpr int kLiteRtMaxRank = 8;

struct EnvironmentT;
struct ModelT;
struct OptionsT;
struct OpaqueOptionsT;
struct CompiledModelT;
struct SignatureT;
struct TensorT;
struct TensorBufferT;
struct ProfilerT;

struct EnvironmentOption {
  int tag;
  struct {
    int type;
    int64_t integer;
  } value;
};

struct Layout {
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  int32_t dimensions[kLiteRtMaxRank];
  uint32_t strides[kLiteRtMaxRank];
};

struct RankedTensorType {
  int element_type;
  Layout layout;
};
static_assert(sizeof(RankedTensorType) == 72, "the library writes 72 bytes");

struct MemoryUsage {
  size_t total, in_use, footprint;
};

// ProfiledEventData
struct Event {
  const char* tag;
  int type;
  uint64_t start_us;
  uint64_t elapsed_us;
  MemoryUsage before, after;
  uint64_t metadata, more_metadata;
  int source;
};
constexpr int kOperatorEvent = 2, kDelegateEvent = 4, kDelegateOperatorEvent = 8;  // LiteRtProfilerEventType

struct Api {
  LiteRtStatus (*create_environment)(int, const EnvironmentOption*, EnvironmentT**);
  void (*destroy_environment)(EnvironmentT*);
  LiteRtStatus (*create_model_from_file)(EnvironmentT*, const char*, ModelT**);
  void (*destroy_model)(ModelT*);
  LiteRtStatus (*create_options)(OptionsT**);
  void (*destroy_options)(OptionsT*);
  LiteRtStatus (*set_accelerators)(OptionsT*, int);
  LiteRtStatus (*create_opaque)(const char*, void*, void (*)(void*), OpaqueOptionsT**);
  LiteRtStatus (*add_opaque)(OptionsT*, OpaqueOptionsT*);
  LiteRtStatus (*create_compiled)(EnvironmentT*, ModelT*, OptionsT*, CompiledModelT**);
  void (*destroy_compiled)(CompiledModelT*);
  LiteRtStatus (*get_signature)(ModelT*, size_t, SignatureT**);
  LiteRtStatus (*count_inputs)(SignatureT*, size_t*);
  LiteRtStatus (*count_outputs)(SignatureT*, size_t*);
  LiteRtStatus (*input_tensor)(SignatureT*, size_t, TensorT**);
  LiteRtStatus (*output_tensor)(SignatureT*, size_t, TensorT**);
  LiteRtStatus (*input_name)(SignatureT*, size_t, const char**);
  LiteRtStatus (*output_name)(SignatureT*, size_t, const char**);
  LiteRtStatus (*tensor_name)(TensorT*, const char**);
  LiteRtStatus (*ranked_type)(TensorT*, RankedTensorType*);
  LiteRtStatus (*input_requirements)(CompiledModelT*, size_t, size_t, void**);
  LiteRtStatus (*output_requirements)(CompiledModelT*, size_t, size_t, void**);
  LiteRtStatus (*create_buffer)(EnvironmentT*, const RankedTensorType*, void*, TensorBufferT**);
  void (*destroy_buffer)(TensorBufferT*);
  LiteRtStatus (*packed_size)(TensorBufferT*, size_t*);
  LiteRtStatus (*host_memory)(TensorBufferT*, void**);
  LiteRtStatus (*run)(CompiledModelT*, size_t, size_t, TensorBufferT**, size_t, TensorBufferT**);
  LiteRtStatus (*get_profiler)(CompiledModelT*, ProfilerT**);
  LiteRtStatus (*start_profiler)(ProfilerT*);
  LiteRtStatus (*stop_profiler)(ProfilerT*);
  LiteRtStatus (*count_events)(ProfilerT*, int*);
  LiteRtStatus (*get_events)(ProfilerT*, int, Event*);

  Status resolve(const SharedLibrary& library) {
    EDGEPACK_TRY(library.find("LiteRtCreateEnvironment", &create_environment));
    EDGEPACK_TRY(library.find("LiteRtDestroyEnvironment", &destroy_environment));
    EDGEPACK_TRY(library.find("LiteRtCreateModelFromFile", &create_model_from_file));
    EDGEPACK_TRY(library.find("LiteRtDestroyModel", &destroy_model));
    EDGEPACK_TRY(library.find("LiteRtCreateOptions", &create_options));
    EDGEPACK_TRY(library.find("LiteRtDestroyOptions", &destroy_options));
    EDGEPACK_TRY(library.find("LiteRtSetOptionsHardwareAccelerators", &set_accelerators));
    EDGEPACK_TRY(library.find("LiteRtCreateOpaqueOptions", &create_opaque));
    EDGEPACK_TRY(library.find("LiteRtAddOpaqueOptions", &add_opaque));
    EDGEPACK_TRY(library.find("LiteRtCreateCompiledModel", &create_compiled));
    EDGEPACK_TRY(library.find("LiteRtDestroyCompiledModel", &destroy_compiled));
    EDGEPACK_TRY(library.find("LiteRtGetModelSignature", &get_signature));
    EDGEPACK_TRY(library.find("LiteRtGetNumSignatureInputs", &count_inputs));
    EDGEPACK_TRY(library.find("LiteRtGetNumSignatureOutputs", &count_outputs));
    EDGEPACK_TRY(library.find("LiteRtGetSignatureInputTensorByIndex", &input_tensor));
    EDGEPACK_TRY(library.find("LiteRtGetSignatureOutputTensorByIndex", &output_tensor));
    EDGEPACK_TRY(library.find("LiteRtGetSignatureInputName", &input_name));
    EDGEPACK_TRY(library.find("LiteRtGetSignatureOutputName", &output_name));
    EDGEPACK_TRY(library.find("LiteRtGetTensorName", &tensor_name));
    EDGEPACK_TRY(library.find("LiteRtGetRankedTensorType", &ranked_type));
    EDGEPACK_TRY(library.find("LiteRtGetCompiledModelInputBufferRequirements", &input_requirements));
    EDGEPACK_TRY(library.find("LiteRtGetCompiledModelOutputBufferRequirements", &output_requirements));
    EDGEPACK_TRY(library.find("LiteRtCreateManagedTensorBufferFromRequirements", &create_buffer));
    EDGEPACK_TRY(library.find("LiteRtDestroyTensorBuffer", &destroy_buffer));
    EDGEPACK_TRY(library.find("LiteRtGetTensorBufferPackedSize", &packed_size));
    EDGEPACK_TRY(library.find("LiteRtGetTensorBufferHostMemory", &host_memory));
    EDGEPACK_TRY(library.find("LiteRtCompiledModelGetProfiler", &get_profiler));
    EDGEPACK_TRY(library.find("LiteRtStartProfiler", &start_profiler));
    EDGEPACK_TRY(library.find("LiteRtStopProfiler", &stop_profiler));
    EDGEPACK_TRY(library.find("LiteRtGetNumProfilerEvents", &count_events));
    EDGEPACK_TRY(library.find("LiteRtGetProfilerEvents", &get_events));
    return library.find("LiteRtRunCompiledModel", &run);
  }
};

// TfLiteType
struct TfLiteType {
  int type;
  edgepack_dtype dtype;
};
constexpr TfLiteType kTypes[] = {
    {1, EDGEPACK_FLOAT32},  {2, EDGEPACK_INT32},   {3, EDGEPACK_UINT8},   {4, EDGEPACK_INT64},
    {6, EDGEPACK_BOOL},     {7, EDGEPACK_INT16},   {9, EDGEPACK_INT8},    {10, EDGEPACK_FLOAT16},
    {11, EDGEPACK_FLOAT64}, {13, EDGEPACK_UINT64}, {16, EDGEPACK_UINT32}, {17, EDGEPACK_UINT16},
};

// One side of the model: the engine's buffers in the signature's order, and their memory in the descriptor's.
struct Side {
  std::vector<TensorBufferT*> buffers;
  std::vector<void*> memory;  // the engine reads and writes it in place: nothing is copied in a run
};

class LiteRt final : public Backend {
 public:
  ~LiteRt() override {
    for (Side* side : {&inputs_, &outputs_}) {
      for (TensorBufferT* buffer : side->buffers) {
        if (buffer != nullptr) api_.destroy_buffer(buffer);
      }
    }
    if (compiled_ != nullptr) api_.destroy_compiled(compiled_);
    if (model_ != nullptr) api_.destroy_model(model_);
    if (environment_ != nullptr) api_.destroy_environment(environment_);
  }

  const char* name() const override { return "tflite"; }
  std::string version() const override { return EDGEPACK_ENGINE_VERSION; }

  Status load(const Descriptor& descriptor, const std::string& folder, const std::string& library,
              int threads) override {
    const std::string named = EDGEPACK_ENGINE_LIBRARY;
    EDGEPACK_TRY(library_.open(library, named.empty() ? "libLiteRt.so" : named, "LiteRT " EDGEPACK_ENGINE_VERSION));
    EDGEPACK_TRY(api_.resolve(library_));
    EDGEPACK_TRY(create_environment());
    const std::string path = folder + "/" + descriptor.files.front();
    EDGEPACK_TRY(done(api_.create_model_from_file(environment_, path.c_str(), &model_), "load " + path));
    threads_ = threads;
    EDGEPACK_TRY(compile(false, &compiled_));
    SignatureT* signature = nullptr;
    EDGEPACK_TRY(done(api_.get_signature(model_, 0, &signature), "read the signature of " + path));
    EDGEPACK_TRY(connect(signature, descriptor.inputs, true, &inputs_));
    return connect(signature, descriptor.outputs, false, &outputs_);
  }

  void* input(size_t index) override { return inputs_.memory[index]; }

  Status run() override { return run(compiled_); }

  const void* output(size_t index) override { return outputs_.memory[index]; }

  std::string library() const override { return library_.path(); }

  // On a compiled model of its own: XNNPACK keeps times only where it knew of a profiler from the start.
  Status profile(int runs, Profile* profile) override {
    CompiledModelT* compiled = nullptr;
    Status status = compile(true, &compiled);
    if (status.ok()) status = timed_runs(compiled, runs, profile);
    if (compiled != nullptr) api_.destroy_compiled(compiled);
    return status;
  }

 private:
  Status run(CompiledModelT* compiled) {
    return done(api_.run(compiled, 0, inputs_.buffers.size(), inputs_.buffers.data(), outputs_.buffers.size(),
                         outputs_.buffers.data()),
                "run the model");
  }

  Status timed_runs(CompiledModelT* compiled, int runs, Profile* profile) {
    constexpr int kWarmUps = 2;
    ProfilerT* profiler = nullptr;  // belongs to the compiled model
    EDGEPACK_TRY(done(api_.get_profiler(compiled, &profiler), "give its profiler"));
    for (int i = 0; i < kWarmUps; ++i) EDGEPACK_TRY(run(compiled));
    std::vector<Event> events;
    for (int i = 0; i < runs; ++i) {
      EDGEPACK_TRY(done(api_.start_profiler(profiler), "start its profiler"));  // forgets earlier events
      const int64_t start = steady_ns();
      EDGEPACK_TRY(run(compiled));
      profile->total_ns += steady_ns() - start;
      EDGEPACK_TRY(done(api_.stop_profiler(profiler), "stop its profiler"));
      int count = 0;
      EDGEPACK_TRY(done(api_.count_events(profiler, &count), "count its profile"));
      events.resize(static_cast<size_t>(count));
      EDGEPACK_TRY(done(api_.get_events(profiler, count, events.data()), "give its profile"));
      add_run(events, profile);
    }
    profile->caveat =
        "LiteRT's timer rounds each operator down to a microsecond and leaves out what is between operators";
    if (!profile->operators.empty()) return ok();
    return {EDGEPACK_UNSUPPORTED, "LiteRT's profile of this model holds no operator"};
  }

  // The events of one run. A delegate's node is left out in favour of the operators that ran inside of it.
  static void add_run(const std::vector<Event>& events, Profile* profile) {
    bool inside = false;
    for (const Event& event : events) inside = inside || event.type == kDelegateOperatorEvent;
    size_t index = 0;
    for (const Event& event : events) {
      const std::string tag = event.tag == nullptr ? "" : event.tag;
      const bool is_operator = event.type == kOperatorEvent || event.type == kDelegateOperatorEvent;
      if (!is_operator || (inside && tag == "TfLiteXNNPackDelegate")) continue;
      add_call(profile, index++, "", tag, static_cast<int64_t>(event.elapsed_us) * 1000);
    }
  }

  // The processor only: LiteRT otherwise tries to load whatever libraries for other accelerators it finds.
  Status create_environment() {
    const EnvironmentOption options[] = {{kTagAccelerators, {kAnyInteger, kCpu}},
                                         {kTagSeverity, {kAnyInteger, kErrorsOnly}}};
    return done(api_.create_environment(2, options, &environment_), "start");
  }

  Status compile(bool profiled, CompiledModelT** compiled) {
    OptionsT* options = nullptr;
    EDGEPACK_TRY(done(api_.create_options(&options), "make options"));
    Status status = done(api_.set_accelerators(options, kCpu), "choose the processor");
    if (status.ok()) status = add_options(options, "xnnpack", "num_threads = " + std::to_string(threads_) + "\n");
    if (status.ok() && profiled) status = add_options(options, "runtime_options_string", "enable_profiling = true\n");
    if (status.ok()) status = done(api_.create_compiled(environment_, model_, options, compiled), "prepare the model");
    api_.destroy_options(options);
    return status;
  }

  // Options of LiteRT's parts are TOML texts that LiteRT frees.
  Status add_options(OptionsT* options, const char* part, const std::string& text) {
    auto* payload = static_cast<char*>(std::malloc(text.size() + 1));
    if (payload == nullptr) return {EDGEPACK_OUT_OF_MEMORY, "no memory for the engine's options"};
    std::memcpy(payload, text.c_str(), text.size() + 1);
    OpaqueOptionsT* opaque = nullptr;
    EDGEPACK_TRY(done(api_.create_opaque(part, payload, std::free, &opaque), "make its options"));
    return done(api_.add_opaque(options, opaque), "set its options");
  }

  // Make the engine's buffers and find the descriptor's tensors among the signature's, by name.
  Status connect(SignatureT* signature, const std::vector<Tensor>& tensors, bool in, Side* side) {
    size_t count = 0;
    EDGEPACK_TRY(done((in ? api_.count_inputs : api_.count_outputs)(signature, &count), "count the tensors"));
    side->buffers.assign(count, nullptr);
    side->memory.assign(tensors.size(), nullptr);
    for (size_t index = 0; index < count; ++index) {
      TensorT* found = nullptr;
      const char* tensor_name = nullptr;
      const char* signature_name = nullptr;
      RankedTensorType type{};
      EDGEPACK_TRY(done((in ? api_.input_tensor : api_.output_tensor)(signature, index, &found), "find a tensor"));
      EDGEPACK_TRY(done(api_.tensor_name(found, &tensor_name), "name a tensor"));
      EDGEPACK_TRY(done((in ? api_.input_name : api_.output_name)(signature, index, &signature_name), "name a tensor"));
      EDGEPACK_TRY(done(api_.ranked_type(found, &type), "describe a tensor"));
      const auto is_it = [&](const Tensor& tensor) {
        return tensor.engine_name == tensor_name || tensor.engine_name == signature_name;
      };
      for (const Tensor& tensor : tensors) {
        if (is_it(tensor)) close_axes(tensor.engine_shape, &type);
      }
      EDGEPACK_TRY(make_buffer(index, type, in, &side->buffers[index]));
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (!is_it(tensors[i])) continue;
        EDGEPACK_TRY(check(tensors[i], type, side->buffers[index]));
        EDGEPACK_TRY(done(api_.host_memory(side->buffers[index], &side->memory[i]), "show a tensor's memory"));
      }
    }
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (side->memory[i] == nullptr) {
        return {EDGEPACK_ENGINE_ERROR, "the model has no tensor " + printable(tensors[i].engine_name)};
      }
      std::memset(side->memory[i], 0, tensors[i].engine_bytes);
    }
    if (!in || count == tensors.size()) return ok();
    return {EDGEPACK_ENGINE_ERROR,
            "the model has " + std::to_string(count) + " inputs, variant.txt lists " + std::to_string(tensors.size())};
  }

  // A file may leave axes open (-1); LiteRT then runs it with the sizes that it also holds, which are the descriptor's.
  static void close_axes(const Shape& shape, RankedTensorType* type) {
    if (shape.size() != type->layout.rank || shape.size() > kLiteRtMaxRank) return;
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      int32_t& size = type->layout.dimensions[axis];
      if (size < 0) size = static_cast<int32_t>(shape[axis]);
    }
  }

  Status make_buffer(size_t index, const RankedTensorType& type, bool in, TensorBufferT** buffer) {
    void* requirements = nullptr;  // belongs to the compiled model
    const auto get = in ? api_.input_requirements : api_.output_requirements;
    EDGEPACK_TRY(done(get(compiled_, 0, index, &requirements), "size a tensor"));
    return done(api_.create_buffer(environment_, &type, requirements, buffer), "make a tensor");
  }

  Status check(const Tensor& tensor, const RankedTensorType& type, TensorBufferT* buffer) {
    for (const TfLiteType& entry : kTypes) {
      if (entry.type != type.element_type) continue;
      const size_t rank = type.layout.rank;
      if (rank > kLiteRtMaxRank) break;
      EDGEPACK_TRY(
          check_engine_tensor(tensor, entry.dtype, Shape(type.layout.dimensions, type.layout.dimensions + rank)));
      size_t size = 0;
      EDGEPACK_TRY(done(api_.packed_size(buffer, &size), "size a tensor"));
      if (size == tensor.engine_bytes) return ok();
      return {EDGEPACK_ENGINE_ERROR, printable(tensor.engine_name) + " has " + std::to_string(size) + " bytes, not " +
                                         std::to_string(tensor.engine_bytes)};
    }
    return {EDGEPACK_ENGINE_ERROR, printable(tensor.engine_name) + " has a type that edgepack can't handle"};
  }

  static Status done(LiteRtStatus status, const std::string& what) {
    if (status == kLiteRtOk) return ok();
    return {EDGEPACK_ENGINE_ERROR,
            "LiteRT could not " + what + " (status " + std::to_string(status) + "; its own words are above on stderr)"};
  }

  SharedLibrary library_;
  Api api_{};
  EnvironmentT* environment_ = nullptr;
  ModelT* model_ = nullptr;
  CompiledModelT* compiled_ = nullptr;
  int threads_ = 1;
  Side inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Backend> make_backend() { return std::unique_ptr<Backend>(new (std::nothrow) LiteRt); }

}  // namespace edgepack
