// The seam between the runtime and an engine. One file of backends/ implements it, and one is linked per executable.
//
// A backend sees tensors only as the engine has them (see `Tensor` in descriptor.h: engine_name, engine_dtype,
// engine_shape); the runtime converts from and to the source model's layout.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "descriptor.h"
#include "status.h"

namespace edgepack {

// Times of single operators, summed over all runs.
struct Profile {
  struct Operator {
    std::string name;  // any bytes
    std::string type;
    int64_t ns = 0;
    int64_t calls = 0;
  };
  std::vector<Operator> operators;  // in the order in which they run
  int64_t total_ns = 0;             // of the runs, by the clock
  std::string caveat;               // what the engine's timer leaves out or rounds, for when the sum is off
};

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  // The engine's name as in variant.txt.
  virtual const char* name() const = 0;

  // What the engine says its version is, or what the harness was built with. Called after load().
  virtual std::string version() const = 0;

  // Where the engine's shared library was found, or "" when the engine is linked. Called after load().
  virtual std::string library() const = 0;

  // Load the model's files from `folder`. `library` is the engine's shared library, or empty for the default place.
  // Must refuse a model whose tensors are not those of the descriptor. Called once.
  virtual Status load(const Descriptor& descriptor, const std::string& folder, const std::string& library,
                      int threads) = 0;

  // Memory of input `index`, contiguous, engine dtype and shape. It stays the same; its values survive run().
  virtual void* input(size_t index) = 0;

  // Run once over what is in the inputs' memory.
  virtual Status run() = 0;

  // Memory of output `index`, contiguous, engine dtype and shape. Valid until the next run().
  virtual const void* output(size_t index) = 0;

  // Run `runs` times over what is in the inputs' memory and time each operator. Never part of run(): a timer costs
  // time. Outputs are undefined afterwards. EDGEPACK_UNSUPPORTED when the engine can't tell.
  virtual Status profile(int runs, Profile* profile) = 0;
};

// Nanoseconds of a clock that never goes back, for profile().
int64_t steady_ns();

// Adds one timed call to operator `index`, which must be at most one past the last.
void add_call(Profile* profile, size_t index, const std::string& name, const std::string& type, int64_t ns);

// Defined by the backend that is linked. Null when memory ran out.
std::unique_ptr<Backend> make_backend();

}  // namespace edgepack
