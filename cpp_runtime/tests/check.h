// A test framework in a page: TEST registers a function, CHECK and CHECK_EQ count and print what fails.
#pragma once

#include <sys/stat.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Case {
  const char* says;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline std::string& scratch() {
  static std::string folder;
  return folder;
}

struct Register {
  Register(const char* says, void (*run)()) { cases().push_back({says, run}); }
};

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// A path in a folder that is this test's own and empty at its start.
inline std::string path(const std::string& name) { return scratch() + "/" + name; }

inline std::string write(const std::string& name, const std::string& bytes) {
  std::ofstream(path(name), std::ios::binary) << bytes;
  return path(name);
}

inline std::string read(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

inline void folder(const std::string& name) { mkdir(path(name).c_str(), 0755); }

}  // namespace check

#define CHECK_JOIN_(a, b) a##b
#define CHECK_TEST_(says, line)                                                               \
  static void CHECK_JOIN_(test_, line)();                                                     \
  static const check::Register CHECK_JOIN_(register_, line)(says, &CHECK_JOIN_(test_, line)); \
  static void CHECK_JOIN_(test_, line)()
#define CHECK_EXPAND_(says, line) CHECK_TEST_(says, line)

#define TEST(says) CHECK_EXPAND_(says, __LINE__)

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

#define CHECK_EQ(expected, actual)                                                                           \
  do {                                                                                                       \
    const auto check_expected = (expected);                                                                  \
    const auto check_actual = (actual);                                                                      \
    if (!(check_expected == check_actual)) {                                                                 \
      check::fail(__FILE__, __LINE__,                                                                        \
                  #actual " is " + check::show(check_actual) + ", expected " + check::show(check_expected)); \
    }                                                                                                        \
  } while (false)

#define CHECK_OK(status)                                                          \
  do {                                                                            \
    const edgepack::Status check_status = (status);                               \
    if (!check_status.ok()) check::fail(__FILE__, __LINE__, check_status.text()); \
  } while (false)

// The call fails and its sentence has these words.
#define CHECK_SAYS(words, status)                                                                  \
  do {                                                                                             \
    const edgepack::Status check_status = (status);                                                \
    if (check_status.ok()) {                                                                       \
      check::fail(__FILE__, __LINE__, "it succeeded; expected: " + std::string(words));            \
    } else if (check_status.text().find(words) == std::string::npos) {                             \
      check::fail(__FILE__, __LINE__, "it says: " + check_status.text() + "; expected: " + words); \
    }                                                                                              \
  } while (false)

#define CHECK_MAIN                                                                      \
  int main(int argc, char** argv) {                                                     \
    check::scratch() = argc > 1 ? argv[1] : ".";                                        \
    mkdir(check::scratch().c_str(), 0755);                                              \
    for (const check::Case& test : check::cases()) {                                    \
      const int before = check::failures();                                             \
      test.run();                                                                       \
      if (check::failures() != before) std::fprintf(stderr, "FAILED: %s\n", test.says); \
    }                                                                                   \
    std::printf("%zu tests, %d failures\n", check::cases().size(), check::failures());  \
    return check::failures() == 0 && !check::cases().empty() ? 0 : 1;                   \
  }
