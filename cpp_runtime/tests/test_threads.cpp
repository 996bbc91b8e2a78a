// Handles are independent: each thread has its own, and nothing is shared behind them. ThreadSanitizer watches.
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "edgepack/edgepack.h"

TEST("threads with a handle each open, set, run, read, fail and close at the same time") {
  check::folder("variant");
  check::write("variant/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=fp32\nbound cosine=0.99\nfile path=none\n"
               "input name=hex:61 dtype=float32 shape=2,3 engine_name=hex:61 engine_dtype=float32 engine_shape=3,2 "
               "perm=1,0\n"
               "output name=hex:62 dtype=float32 shape=2,3 engine_name=hex:62 engine_dtype=float32 engine_shape=3,2 "
               "perm=1,0\n");
  const std::string folder = check::path("variant");
  std::atomic<int> wrong{0};
  const auto work = [&](int self) {
    for (int round = 0; round < 50; ++round) {
      edgepack_variant* v = nullptr;
      const auto n = static_cast<float>(self * 1000 + round);
      const float image[6] = {n, 2, 3, 4, 5, n};
      float back[6] = {};
      wrong += edgepack_open(folder.c_str(), nullptr, &v) != EDGEPACK_OK;
      wrong += edgepack_run(v) != EDGEPACK_INVALID_ARGUMENT;
      wrong += edgepack_set_input(v, 0, image, sizeof image) != EDGEPACK_OK;
      wrong += edgepack_run(v) != EDGEPACK_OK;
      wrong += edgepack_get_output(v, 0, back, sizeof back) != EDGEPACK_OK;
      wrong += std::memcmp(image, back, sizeof back) != 0;
      edgepack_close(v);
    }
  };
  std::vector<std::thread> threads;
  for (int self = 0; self < 4; ++self) threads.emplace_back(work, self);
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(0, wrong.load());
}

CHECK_MAIN
