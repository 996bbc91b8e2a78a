// The harness's `info` command.
#include <climits>

#include "commands.h"
#include "dtype.h"

// The C library, told by the headers that every libc includes.
#if defined(__ANDROID__)
#define EDGEPACK_LIBC "bionic"
#elif defined(__GLIBC__)
#define EDGEPACK_STRING_(x) #x
#define EDGEPACK_STRING(x) EDGEPACK_STRING_(x)
#define EDGEPACK_LIBC "glibc " EDGEPACK_STRING(__GLIBC__) "." EDGEPACK_STRING(__GLIBC_MINOR__)
#else
#define EDGEPACK_LIBC "musl"
#endif

namespace edgepack {
namespace {

constexpr const char* kArchitecture =
#if defined(__aarch64__)
    "aarch64";
#elif defined(__arm__)
    "armhf";
#elif defined(__riscv)
    "riscv64";
#elif defined(__x86_64__)
    "x86_64";
#else
    "unknown";
#endif

constexpr const char* kCompiler =
#if defined(__clang__)
    "clang " __clang_version__;
#else
    "gcc " __VERSION__;
#endif

constexpr bool kOptimized =
#if defined(__OPTIMIZE__)
    true;
#else
    false;
#endif

void write_tensors(Session* session, bool is_input) {
  const std::vector<edgepack_tensor>& tensors = is_input ? session->inputs() : session->outputs();
  for (size_t index = 0; index < tensors.size(); ++index) {
    const edgepack_tensor& tensor = tensors[index];
    JsonLine line;
    line.text("type", is_input ? "input" : "output")
        .integer("index", static_cast<int64_t>(index))
        .text("name_hex", hex(tensor.name, tensor.name_size))
        .text("dtype", info(tensor.dtype).name)
        .integers("shape", shape_of(tensor))
        .integer("bytes", static_cast<int64_t>(tensor.bytes))
        .text("engine_dtype", info(tensor.engine_dtype).name)
        .integers("engine_shape", {tensor.engine_shape, tensor.engine_shape + tensor.engine_rank})
        .integers("axes", {tensor.axes, tensor.axes + tensor.rank});
    if (tensor.scale == 0) {
      line.null("scale").null("zero_point");
    } else {
      line.number("scale", static_cast<double>(tensor.scale)).integer("zero_point", tensor.zero_point);
    }
    if (is_input) {
      const char* preprocess = session->preprocess(index);
      preprocess == nullptr ? line.null("preprocess") : line.text("preprocess", preprocess);
    }
    session->write(line);
  }
}

}  // namespace

void write_info(Session* session) {
  Machine& machine = session->machine();
  session->write(JsonLine()
                     .text("type", "build")
                     .text("compiler", kCompiler)
                     .text("arch", kArchitecture)
                     .text("libc", EDGEPACK_LIBC)
                     .boolean("optimized", kOptimized));
  session->write(JsonLine().text("type", "cpu").text("name", machine.cpu()).texts("features", machine.cpu_features()));
  write_tensors(session, true);
  write_tensors(session, false);
}

}  // namespace edgepack
