// What the C++ library throws when memory runs out or a size is absurd, as a sentence and an abort: nobody here could
// catch it, and throwing costs 100 KB of unwinder and name demangler. Linked into small executables only.
//
// The allocation functions are the standard's to replace. The functions of namespace std are libstdc++'s own names;
// with another C++ library they are not needed.
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <new>

namespace {

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "edgepack: %s\n", why);
  std::abort();
}

void* allocate(size_t size) { return std::malloc(size == 0 ? 1 : size); }

void* allocate_or_stop(size_t size) {
  void* memory = allocate(size);
  if (memory == nullptr) stop("out of memory");
  return memory;
}

}  // namespace

void* operator new(size_t size) { return allocate_or_stop(size); }
void* operator new[](size_t size) { return allocate_or_stop(size); }
void* operator new(size_t size, const std::nothrow_t& /*tag*/) noexcept { return allocate(size); }
void* operator new[](size_t size, const std::nothrow_t& /*tag*/) noexcept { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*size*/) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t /*size*/) noexcept { std::free(memory); }

#ifdef __GLIBCXX__
// NOLINTBEGIN(bugprone-reserved-identifier,bugprone-std-namespace-modification): replacing them is the point.
namespace std {
void __throw_bad_alloc() { stop("out of memory"); }
void __throw_bad_array_new_length() { stop("out of memory"); }
void __throw_length_error(const char* what) { stop(what); }
void __throw_logic_error(const char* what) { stop(what); }
void __throw_out_of_range_fmt(const char* what, ...) { stop(what); }
void __throw_system_error(int /*code*/) { stop("a lock failed"); }
}  // namespace std

namespace __gnu_cxx {
void __verbose_terminate_handler() { std::abort(); }
}  // namespace __gnu_cxx
// NOLINTEND(bugprone-reserved-identifier,bugprone-std-namespace-modification)
#endif
