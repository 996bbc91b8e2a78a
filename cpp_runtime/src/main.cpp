#include <csignal>
#include <cstdio>

#include "commands.h"

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed stdout becomes a sentence and an exit code
  return edgepack::run_harness(argc, argv, &edgepack::this_machine(), stdout, stderr);
}
