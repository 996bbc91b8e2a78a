// ONNX Runtime's C API called directly: MODEL INPUT THREADS WARMUP RUNS LIBRARY IN_NAME IN_SHAPE OUT_NAME, float32.
#include <dlfcn.h>

#include "common.h"

namespace {

using Status = void*;
template <typename Function>
Function at(const void* const* table, int index) {
  return reinterpret_cast<Function>(const_cast<void*>(table[index]));
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  expect(argc == 10, "arguments");
  void* library = dlopen(argv[6], RTLD_NOW | RTLD_LOCAL);
  expect(library != nullptr, "dlopen");
  struct Base {
    const void* const* (*get_api)(uint32_t);
  };
  const Base* base = reinterpret_cast<const Base* (*)()>(dlsym(library, "OrtGetApiBase"))();
  const void* const* api = base->get_api(7);
  void *env = nullptr, *options = nullptr, *session = nullptr, *memory = nullptr, *input = nullptr, *output = nullptr;
  expect(at<Status (*)(int, const char*, void**)>(api, 3)(3, "direct", &env) == nullptr, "CreateEnv");
  expect(at<Status (*)(void**)>(api, 10)(&options) == nullptr, "CreateSessionOptions");
  expect(at<Status (*)(void*, int)>(api, 24)(options, arguments.threads) == nullptr, "SetIntraOpNumThreads");
  expect(at<Status (*)(void*, const char*, void*, void**)>(api, 7)(env, arguments.model.c_str(), options, &session) ==
             nullptr,
         "CreateSession");
  std::vector<char> bytes = read_all(arguments.input);
  std::vector<int64_t> shape;
  for (char* at_text = argv[8]; *at_text != '\0';) {
    shape.push_back(std::strtoll(at_text, &at_text, 10));
    if (*at_text == ',') ++at_text;
  }
  expect(at<Status (*)(int, int, void**)>(api, 69)(1, 0, &memory) == nullptr, "CreateCpuMemoryInfo");
  expect(at<Status (*)(void*, void*, size_t, const int64_t*, size_t, int, void**)>(api, 49)(
             memory, bytes.data(), bytes.size(), shape.data(), shape.size(), 1, &input) == nullptr,
         "CreateTensorWithDataAsOrtValue");
  using Run = Status (*)(void*, const void*, const char* const*, const void* const*, size_t, const char* const*, size_t,
                         void**);
  const Run run = at<Run>(api, 9);
  const char *in_name = argv[7], *out_name = argv[9];
  // The first run makes the output, the others write into it again.
  measure(arguments,
          [&] { expect(run(session, nullptr, &in_name, &input, 1, &out_name, 1, &output) == nullptr, "Run"); });
  void* data = nullptr;
  expect(at<Status (*)(void*, void**)>(api, 51)(output, &data) == nullptr, "GetTensorMutableData");
  std::fprintf(stderr, "%.9g\n", static_cast<double>(*static_cast<float*>(data)));
  return 0;
}
