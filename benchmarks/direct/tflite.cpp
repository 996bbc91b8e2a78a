// LiteRT 2.3.0's C API called directly: MODEL INPUT THREADS WARMUP RUNS LIBRARY.
#include <dlfcn.h>

#include <cstring>

#include "common.h"

namespace {

struct RankedTensorType {
  int element_type;
  unsigned int rank_and_strides;
  int32_t dimensions[8];
  uint32_t strides[8];
};

void* library = nullptr;

template <typename... Types>
void call(const char* name, Types... values) {
  auto function = reinterpret_cast<int (*)(Types...)>(dlsym(library, name));
  expect(function != nullptr && function(values...) == 0, name);
}

void* make_buffer(void* environment, void* signature, void* compiled, bool in) {
  void *tensor = nullptr, *requirements = nullptr, *buffer = nullptr;
  RankedTensorType type{};
  call(in ? "LiteRtGetSignatureInputTensorByIndex" : "LiteRtGetSignatureOutputTensorByIndex", signature, size_t{0},
       &tensor);
  call("LiteRtGetRankedTensorType", tensor, &type);
  call(in ? "LiteRtGetCompiledModelInputBufferRequirements" : "LiteRtGetCompiledModelOutputBufferRequirements",
       compiled, size_t{0}, size_t{0}, &requirements);
  call("LiteRtCreateManagedTensorBufferFromRequirements", environment, static_cast<const RankedTensorType*>(&type),
       requirements, &buffer);
  return buffer;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  expect(argc == 7, "arguments");
  library = dlopen(argv[6], RTLD_NOW | RTLD_LOCAL);
  expect(library != nullptr, "dlopen");
  struct Option {
    int tag, padding, type, padding2;
    int64_t value;
  };
  const Option environment_options[] = {{24, 0, 2, 0, 1}, {25, 0, 2, 0, 3}};
  void *environment = nullptr, *model = nullptr, *options = nullptr, *opaque = nullptr, *compiled = nullptr,
       *signature = nullptr;
  call("LiteRtCreateEnvironment", 2, static_cast<const Option*>(environment_options), &environment);
  call("LiteRtCreateModelFromFile", environment, arguments.model.c_str(), &model);
  call("LiteRtCreateOptions", &options);
  call("LiteRtSetOptionsHardwareAccelerators", options, 1);
  const std::string text = "num_threads = " + std::to_string(arguments.threads) + "\n";
  call("LiteRtCreateOpaqueOptions", static_cast<const char*>("xnnpack"), static_cast<void*>(strdup(text.c_str())),
       &std::free, &opaque);
  call("LiteRtAddOpaqueOptions", options, opaque);
  call("LiteRtCreateCompiledModel", environment, model, options, &compiled);
  call("LiteRtGetModelSignature", model, size_t{0}, &signature);
  void* input = make_buffer(environment, signature, compiled, true);
  void* output = make_buffer(environment, signature, compiled, false);
  void* memory = nullptr;
  const std::vector<char> bytes = read_all(arguments.input);
  call("LiteRtLockTensorBuffer", input, &memory, 1);
  std::memcpy(memory, bytes.data(), bytes.size());
  call("LiteRtUnlockTensorBuffer", input);
  const auto run = reinterpret_cast<int (*)(void*, size_t, size_t, void**, size_t, void**)>(
      dlsym(library, "LiteRtRunCompiledModel"));
  measure(arguments, [&] { expect(run(compiled, 0, 1, &input, 1, &output) == 0, "LiteRtRunCompiledModel"); });
  call("LiteRtLockTensorBuffer", output, &memory, 0);
  std::fprintf(stderr, "%.9g\n", static_cast<double>(*static_cast<float*>(memory)));
  return 0;
}
