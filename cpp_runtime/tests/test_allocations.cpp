// After the first run, setting inputs, running and reading outputs allocates nothing in the runtime.
#include <cstdlib>
#include <new>

#include "check.h"
#include "edgepack/edgepack.h"

namespace {

size_t allocations = 0;

}  // namespace

// The linker puts these in the place of the C library's (see CMakeLists.txt); the names are its choice.
// NOLINTBEGIN(bugprone-reserved-identifier)
extern "C" {
void* __real_malloc(size_t size);
void* __real_calloc(size_t count, size_t size);
void* __real_realloc(void* memory, size_t size);
int __real_posix_memalign(void** memory, size_t alignment, size_t size);
void* __real_aligned_alloc(size_t alignment, size_t size);

void* __wrap_malloc(size_t size) {
  ++allocations;
  return __real_malloc(size);
}
void* __wrap_calloc(size_t count, size_t size) {
  ++allocations;
  return __real_calloc(count, size);
}
void* __wrap_realloc(void* memory, size_t size) {
  ++allocations;
  return __real_realloc(memory, size);
}
int __wrap_posix_memalign(void** memory, size_t alignment, size_t size) {
  ++allocations;
  return __real_posix_memalign(memory, alignment, size);
}
void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  ++allocations;
  return __real_aligned_alloc(alignment, size);
}
}
// NOLINTEND(bugprone-reserved-identifier)

// Those of the C++ library, which the wrapping does not reach.
void* operator new(size_t size) { return std::malloc(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

namespace {

std::string variant() {
  check::folder("variant");
  check::write("variant/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=int8\nbound cosine=0.9\nfile path=none\n"
               "input name=hex:61 dtype=float32 shape=1,3,40,50 engine_name=hex:61 engine_dtype=int8 "
               "engine_shape=40,50,3 perm=0,2,3,1 scale=0.5 zero_point=-3\n"
               "output name=hex:63 dtype=float32 shape=1,3,40,50 engine_name=hex:63 engine_dtype=int8 "
               "engine_shape=40,50,3 perm=0,2,3,1 scale=0.5 zero_point=-3\n");
  return check::path("variant");
}

}  // namespace

TEST("the counter counts") {
  const size_t before = allocations;
  void* volatile memory = std::malloc(1);  // volatile: the compiler may leave out a pair that nobody sees
  std::free(memory);
  int* volatile number = new int(1);
  delete number;
  const std::string text(1000, 'x');
  CHECK_EQ(size_t{3}, allocations - before);
  CHECK_EQ(size_t{1000}, text.size());
}

TEST("set, run and read allocate nothing from the second time on, layout and quantization included") {
  static float image[6000], scores[6000];
  for (size_t i = 0; i < 6000; ++i) image[i] = static_cast<float>(i % 50);
  edgepack_variant* v = nullptr;
  CHECK_EQ(EDGEPACK_OK, edgepack_open(variant().c_str(), nullptr, &v));
  size_t before = 0;
  for (int round = 0; round < 50; ++round) {
    if (round == 1) before = allocations;
    int codes = edgepack_set_input(v, 0, image, sizeof image);
    codes += edgepack_run(v);
    codes += edgepack_get_output(v, 0, scores, sizeof scores);
    if (codes != 0) CHECK_EQ(0, codes);
  }
  const size_t after = allocations;
  CHECK_EQ(size_t{0}, after - before);
  CHECK_EQ(image[49], scores[49]);
  edgepack_close(v);
}

CHECK_MAIN
