// The seam between the runtime and an engine. One file of backends/ implements it, and one is linked per executable.
//
// A backend sees tensors only as the engine has them (see `Tensor` in descriptor.h: engine_name, engine_dtype,
// engine_shape); the runtime converts from and to the source model's layout.
#pragma once

#include <memory>
#include <string>

#include "descriptor.h"
#include "status.h"

namespace edgepack {

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
};

// Defined by the backend that is linked. Null when memory ran out.
std::unique_ptr<Backend> make_backend();

}  // namespace edgepack
