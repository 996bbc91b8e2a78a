// ONNX Runtime through its C table, with own declarations: OrtApi only ever grows at its end, so the positions below
// hold for every release since 1.7 (checked against 1.31.1).
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

#include "edgepack/backend.h"
#include "file.h"
#include "memory.h"
#include "onnxruntime_trace.h"
#include "shared_library.h"
#include "sysfs.h"

namespace edgepack {
namespace {

struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtValue;
struct OrtMemoryInfo;
struct OrtAllocator;
struct OrtTypeInfo;
struct OrtTensorInfo;  // OrtTensorTypeAndShapeInfo

struct OrtApiBase {
  const void* const* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

constexpr uint32_t kApiVersion = 7;
constexpr int kLogErrors = 3;
constexpr int kArenaAllocator = 1;
constexpr int kDefaultMemory = 0;

// The functions in use. The last argument of `resolve` is each one's position in OrtApi.
struct Api {
  const char* (*error_message)(const OrtStatus*);
  OrtStatus* (*create_env)(int level, const char* id, OrtEnv**);
  OrtStatus* (*create_session)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**);
  OrtStatus* (*run)(OrtSession*, const void* options, const char* const* input_names, const OrtValue* const* inputs,
                    size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs);
  OrtStatus* (*create_options)(OrtSessionOptions**);
  OrtStatus* (*enable_profiling)(OrtSessionOptions*, const char* prefix);
  OrtStatus* (*set_intra_threads)(OrtSessionOptions*, int);
  OrtStatus* (*set_inter_threads)(OrtSessionOptions*, int);
  OrtStatus* (*count_inputs)(const OrtSession*, size_t*);
  OrtStatus* (*count_outputs)(const OrtSession*, size_t*);
  OrtStatus* (*input_type)(const OrtSession*, size_t, OrtTypeInfo**);
  OrtStatus* (*output_type)(const OrtSession*, size_t, OrtTypeInfo**);
  OrtStatus* (*input_name)(const OrtSession*, size_t, OrtAllocator*, char**);
  OrtStatus* (*output_name)(const OrtSession*, size_t, OrtAllocator*, char**);
  OrtStatus* (*create_tensor)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape, size_t rank,
                              int type, OrtValue**);
  OrtStatus* (*tensor_info)(const OrtTypeInfo*, const OrtTensorInfo**);
  OrtStatus* (*element_type)(const OrtTensorInfo*, int*);
  OrtStatus* (*count_dims)(const OrtTensorInfo*, size_t*);
  OrtStatus* (*dims)(const OrtTensorInfo*, int64_t*, size_t);
  OrtStatus* (*create_memory_info)(int allocator, int memory, OrtMemoryInfo**);
  OrtStatus* (*allocator_free)(OrtAllocator*, void*);
  OrtStatus* (*default_allocator)(OrtAllocator**);
  void (*release_env)(OrtEnv*);
  void (*release_status)(OrtStatus*);
  void (*release_memory_info)(OrtMemoryInfo*);
  void (*release_session)(OrtSession*);
  void (*release_value)(OrtValue*);
  void (*release_type)(OrtTypeInfo*);
  void (*release_options)(OrtSessionOptions*);
  OrtStatus* (*end_profiling)(OrtSession*, OrtAllocator*, char** path);

  explicit Api(const void* const* table) {
    resolve(table, &error_message, 2);
    resolve(table, &create_env, 3);
    resolve(table, &create_session, 7);
    resolve(table, &run, 9);
    resolve(table, &create_options, 10);
    resolve(table, &enable_profiling, 14);
    resolve(table, &set_intra_threads, 24);
    resolve(table, &set_inter_threads, 25);
    resolve(table, &count_inputs, 30);
    resolve(table, &count_outputs, 31);
    resolve(table, &input_type, 33);
    resolve(table, &output_type, 34);
    resolve(table, &input_name, 36);
    resolve(table, &output_name, 37);
    resolve(table, &create_tensor, 49);
    resolve(table, &tensor_info, 55);
    resolve(table, &element_type, 60);
    resolve(table, &count_dims, 61);
    resolve(table, &dims, 62);
    resolve(table, &create_memory_info, 69);
    resolve(table, &allocator_free, 76);
    resolve(table, &default_allocator, 78);
    resolve(table, &release_env, 92);
    resolve(table, &release_status, 93);
    resolve(table, &release_memory_info, 94);
    resolve(table, &release_session, 95);
    resolve(table, &release_value, 96);
    resolve(table, &release_type, 98);
    resolve(table, &release_options, 100);
    resolve(table, &end_profiling, 110);
  }

 private:
  template <typename Function>
  static void resolve(const void* const* table, Function* function, size_t position) {
    *function = reinterpret_cast<Function>(const_cast<void*>(table[position]));
  }
};

// ONNXTensorElementDataType
struct OrtType {
  int type;
  edgepack_dtype dtype;
};
constexpr OrtType kTypes[] = {
    {1, EDGEPACK_FLOAT32},  {2, EDGEPACK_UINT8},    {3, EDGEPACK_INT8},    {4, EDGEPACK_UINT16},
    {5, EDGEPACK_INT16},    {6, EDGEPACK_INT32},    {7, EDGEPACK_INT64},   {9, EDGEPACK_BOOL},
    {10, EDGEPACK_FLOAT16}, {11, EDGEPACK_FLOAT64}, {12, EDGEPACK_UINT32}, {13, EDGEPACK_UINT64},
};

int ort_type(edgepack_dtype dtype) {
  for (const OrtType& entry : kTypes) {
    if (entry.dtype == dtype) return entry.type;
  }
  return 0;
}

// One side of the model: memory, the tensors over it, and their names in the descriptor's order.
struct Side {
  std::vector<std::string> held_names;
  std::vector<const char*> names;
  std::vector<Buffer> memory;
  std::vector<OrtValue*> values;
};

class OnnxRuntime final : public Backend {
 public:
  ~OnnxRuntime() override {
    if (api_ == nullptr) return;
    for (Side* side : {&inputs_, &outputs_}) {
      for (OrtValue* value : side->values) api_->release_value(value);
    }
    if (session_ != nullptr) api_->release_session(session_);
    if (memory_info_ != nullptr) api_->release_memory_info(memory_info_);
    if (env_ != nullptr) api_->release_env(env_);
  }

  const char* name() const override { return "onnxruntime"; }
  std::string version() const override { return version_; }

  Status load(const Descriptor& descriptor, const std::string& folder, const std::string& library,
              int threads) override {
    EDGEPACK_TRY(load_library(library));
    path_ = folder + "/" + descriptor.files.front();
    threads_ = threads;
    EDGEPACK_TRY(create_session(nullptr, &session_));
    EDGEPACK_TRY(check(descriptor.inputs, "input", api_->count_inputs, api_->input_name, api_->input_type, true));
    EDGEPACK_TRY(check(descriptor.outputs, "output", api_->count_outputs, api_->output_name, api_->output_type, false));
    EDGEPACK_TRY(done(api_->create_memory_info(kArenaAllocator, kDefaultMemory, &memory_info_), "make a memory info"));
    EDGEPACK_TRY(create_tensors(descriptor.inputs, &inputs_));
    return create_tensors(descriptor.outputs, &outputs_);
  }

  void* input(size_t index) override { return inputs_.memory[index].data(); }

  Status run() override { return run(session_); }

  const void* output(size_t index) override { return outputs_.memory[index].data(); }

  std::string library() const override { return library_.path(); }

  // In a session of its own: the engine's profiler is chosen when a session is made, and slows it down.
  Status profile(int runs, Profile* profile) override {
    const char* temporary = std::getenv("TMPDIR");
    std::string folder = std::string(temporary == nullptr ? "/tmp" : temporary) + "/edgepack-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) {
      return {EDGEPACK_FILE_ERROR, "no folder for ONNX Runtime's profile, " + folder + ": " + std::strerror(errno) +
                                       "; set TMPDIR to a folder that can be written to"};
    }
    OrtSession* session = nullptr;
    Status status = create_session((folder + "/profile").c_str(), &session);
    if (status.ok()) status = timed_runs(session, runs, profile);
    if (session != nullptr) api_->release_session(session);
    for (const std::string& name : names_in(folder)) unlink(std::string(folder).append("/").append(name).c_str());
    rmdir(folder.c_str());
    return status;
  }

 private:
  Status run(OrtSession* session) {
    // Outputs go to memory that exists already, so that a run allocates nothing for them.
    return done(api_->run(session, nullptr, inputs_.names.data(), inputs_.values.data(), inputs_.values.size(),
                          outputs_.names.data(), outputs_.values.size(), outputs_.values.data()),
                "run the model");
  }

  Status timed_runs(OrtSession* session, int runs, Profile* profile) {
    constexpr int kWarmUps = 2;
    constexpr size_t kMostBytes = size_t{1} << 29;
    Status status;
    for (int i = 0; i < kWarmUps + runs && status.ok(); ++i) {
      const int64_t start = steady_ns();
      status = run(session);
      if (i >= kWarmUps) profile->total_ns += steady_ns() - start;
    }
    EDGEPACK_TRY(status);
    OrtAllocator* allocator = nullptr;
    char* path = nullptr;
    EDGEPACK_TRY(done(api_->default_allocator(&allocator), "get an allocator"));
    EDGEPACK_TRY(done(api_->end_profiling(session, allocator, &path), "end its profile"));
    const std::string trace = path;
    EDGEPACK_TRY(done(api_->allocator_free(allocator, path), "free a name"));
    std::string text;
    EDGEPACK_TRY(read_text(trace, kMostBytes, &text));
    profile->caveat =
        "ONNX Runtime's timer rounds each operator down to a microsecond and leaves out its own work between operators";
    return read_trace(text, kWarmUps, profile);
  }

  Status load_library(const std::string& path) {
    // Since 1.29 the official library keeps a device id and a file of events, and sends them to its maker. It asks for
    // this variable when its environment is made; no function of the API comes early enough. Who wants it sets it to 0.
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    const std::string named = EDGEPACK_ENGINE_LIBRARY;
    EDGEPACK_TRY(library_.open(path, named.empty() ? "libonnxruntime.so." EDGEPACK_ENGINE_VERSION : named,
                               "ONNX Runtime " EDGEPACK_ENGINE_VERSION));
    const OrtApiBase* (*get_base)() = nullptr;
    EDGEPACK_TRY(library_.find("OrtGetApiBase", &get_base));
    const OrtApiBase* base = get_base();
    version_ = base->get_version();
    constexpr std::string_view kWanted = EDGEPACK_ENGINE_VERSION;
    const void* const* table = base->get_api(kApiVersion);
    if (table == nullptr || (!kWanted.empty() && version_ != kWanted)) {
      return library_.wrong_version("ONNX Runtime " + version_);
    }
    api_.reset(new (std::nothrow) Api(table));
    if (api_ == nullptr) return {EDGEPACK_OUT_OF_MEMORY, "no memory for the engine"};
    return ok();
  }

  // Profiled when `trace` names the start of a path for the profiler's file.
  Status create_session(const char* trace, OrtSession** session) {
    if (env_ == nullptr) EDGEPACK_TRY(done(api_->create_env(kLogErrors, "edgepack", &env_), "start"));
    OrtSessionOptions* options = nullptr;
    EDGEPACK_TRY(done(api_->create_options(&options), "make session options"));
    Status status = done(api_->set_intra_threads(options, threads_), "set the number of threads");
    if (status.ok()) status = done(api_->set_inter_threads(options, 1), "set the number of threads");
    if (status.ok() && trace != nullptr) status = done(api_->enable_profiling(options, trace), "start its profile");
    if (status.ok()) status = done(api_->create_session(env_, path_.c_str(), options, session), "load " + path_);
    api_->release_options(options);
    return status;
  }

  // The session's own list against the descriptor's. Every input must be fed; outputs may be left out.
  template <typename Count, typename Name, typename Type>
  Status check(const std::vector<Tensor>& tensors, const std::string& kind, Count count, Name get_name, Type get_type,
               bool all) {
    size_t size = 0, found = 0;
    EDGEPACK_TRY(done(count(session_, &size), "count the tensors"));
    for (size_t index = 0; index < size; ++index) {
      std::string name;
      EDGEPACK_TRY(read_name(get_name, index, &name));
      for (const Tensor& tensor : tensors) {
        if (tensor.engine_name != name) continue;
        ++found;
        OrtTypeInfo* type = nullptr;
        EDGEPACK_TRY(done(get_type(session_, index, &type), "describe " + printable(name)));
        const Status status = check_type(tensor, type);
        api_->release_type(type);
        if (!status.ok()) return status;
      }
    }
    if (found == tensors.size() && (!all || size == tensors.size())) return ok();
    return {EDGEPACK_ENGINE_ERROR, "the model has " + std::to_string(size) + " " + kind + "s, variant.txt lists " +
                                       std::to_string(tensors.size()) + ", and " + std::to_string(found) +
                                       " of these names are in it"};
  }

  template <typename Name>
  Status read_name(Name get_name, size_t index, std::string* name) {
    OrtAllocator* allocator = nullptr;
    EDGEPACK_TRY(done(api_->default_allocator(&allocator), "get an allocator"));
    char* text = nullptr;
    EDGEPACK_TRY(done(get_name(session_, index, allocator, &text), "name a tensor"));
    *name = text;
    return done(api_->allocator_free(allocator, text), "free a name");
  }

  Status check_type(const Tensor& tensor, const OrtTypeInfo* type) {
    const OrtTensorInfo* facts = nullptr;
    EDGEPACK_TRY(done(api_->tensor_info(type, &facts), "describe a tensor"));
    int element = 0;
    size_t rank = 0;
    if (facts != nullptr) {
      EDGEPACK_TRY(done(api_->element_type(facts, &element), "describe a tensor"));
      EDGEPACK_TRY(done(api_->count_dims(facts, &rank), "describe a tensor"));
    }
    const OrtType* known = nullptr;
    for (const OrtType& entry : kTypes) {
      if (entry.type == element) known = &entry;
    }
    if (known == nullptr || rank > EDGEPACK_MAX_RANK) {
      return {EDGEPACK_ENGINE_ERROR, printable(tensor.engine_name) + " has a type that edgepack can't handle"};
    }
    Shape shape(rank);
    EDGEPACK_TRY(done(api_->dims(facts, shape.data(), rank), "describe a tensor"));
    for (size_t axis = 0; axis < rank && axis < tensor.engine_shape.size(); ++axis) {
      if (shape[axis] < 1) shape[axis] = tensor.engine_shape[axis];  // left open in the file; run() checks it
    }
    // Some exporters declare an output without a shape, which reads as rank 0.
    if (rank == 0) shape = tensor.engine_shape;
    return check_engine_tensor(tensor, known->dtype, shape);
  }

  Status create_tensors(const std::vector<Tensor>& tensors, Side* side) {
    for (const Tensor& tensor : tensors) {
      Buffer buffer;
      if (!buffer.allocate(tensor.engine_bytes)) {
        return {EDGEPACK_OUT_OF_MEMORY, "no memory for " + printable(tensor.name)};
      }
      OrtValue* value = nullptr;
      EDGEPACK_TRY(
          done(api_->create_tensor(memory_info_, buffer.data(), tensor.engine_bytes, tensor.engine_shape.data(),
                                   tensor.engine_shape.size(), ort_type(tensor.engine_dtype), &value),
               "make a tensor"));
      side->values.push_back(value);
      side->memory.push_back(std::move(buffer));
      side->held_names.push_back(tensor.engine_name);
    }
    for (const std::string& name : side->held_names) side->names.push_back(name.c_str());
    return ok();
  }

  Status done(OrtStatus* status, const std::string& what) {
    if (status == nullptr) return ok();
    Status result(EDGEPACK_ENGINE_ERROR, "ONNX Runtime could not " + what + ": " + api_->error_message(status));
    api_->release_status(status);
    return result;
  }

  SharedLibrary library_;
  std::unique_ptr<Api> api_;
  std::string version_, path_;
  int threads_ = 1;
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_info_ = nullptr;
  Side inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Backend> make_backend() { return std::unique_ptr<Backend>(new (std::nothrow) OnnxRuntime); }

}  // namespace edgepack
