#include <csignal>
#include <cstdio>

#include "commands.h"

int main(int argc, char** argv) {
  // A closed stdout and a file-size limit become a sentence and an exit code.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  return edgepack::run_harness(argc, argv, &edgepack::this_machine(), stdout, stderr);
}
