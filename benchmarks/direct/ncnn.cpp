// ncnn's C++ API called directly, as its examples do: PARAM INPUT THREADS WARMUP RUNS BIN IN_NAME C,H,W OUT_NAME.
// fp32 options, as the harness has them for fp32 variants.
#include <net.h>

#include <cstring>

#include "common.h"

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  expect(argc == 10, "arguments");
  ncnn::Net net;
  net.opt.num_threads = arguments.threads;
  net.opt.use_vulkan_compute = false;
  net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = false;
  net.opt.use_bf16_packed = net.opt.use_bf16_storage = false;
  net.opt.use_int8_inference = false;
  expect(net.load_param(arguments.model.c_str()) == 0, "load_param");
  expect(net.load_model(argv[6]) == 0, "load_model");
  int c = 0, h = 0, w = 0;
  expect(std::sscanf(argv[8], "%d,%d,%d", &c, &h, &w) == 3, "shape");
  const std::vector<char> bytes = read_all(arguments.input);
  ncnn::Mat input(w, h, c);
  const size_t plane = sizeof(float) * static_cast<size_t>(w) * static_cast<size_t>(h);
  for (int q = 0; q < c; ++q) std::memcpy(input.channel(q), bytes.data() + static_cast<size_t>(q) * plane, plane);
  ncnn::Mat output;
  measure(arguments, [&] {
    ncnn::Extractor extractor = net.create_extractor();
    expect(extractor.input(argv[7], input) == 0, "input");
    expect(extractor.extract(argv[9], output) == 0, "extract");
  });
  std::fprintf(stderr, "%.9g\n", static_cast<double>(output[0]));
  return 0;
}
