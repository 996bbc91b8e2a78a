#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <new>

#include "commands.h"

namespace {

// A closed stdout would give its number to the next file that is opened, and the results would be written into that.
// Opened for reading only, so that writing to it fails.
void occupy_standard_files() {
  for (int number = STDIN_FILENO; number <= STDERR_FILENO; ++number) {
    if (fcntl(number, F_GETFD) == -1 && open("/dev/null", O_RDONLY | O_CLOEXEC) == -1) return;
  }
}

// Without exceptions the C++ library would abort. What the engines allocate through other functions comes back as their
// own error.
[[noreturn]] void out_of_memory() {
  constexpr char kText[] = "edgepack: there is not enough memory; give this program more, or use a smaller model\n";
  if (write(STDERR_FILENO, kText, sizeof kText - 1) < 0) _exit(edgepack::kModelError);
  _exit(edgepack::kModelError);
}

}  // namespace

int main(int argc, char** argv) {
  occupy_standard_files();
  std::set_new_handler(out_of_memory);
  // A closed pipe and a file-size limit become a sentence and an exit code.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  return edgepack::run_harness(argc, argv, &edgepack::this_machine(), stdout, stderr);
}
