// The harness's commands. Results are JSON lines on `out` (schema/harness-lines.schema.json), talk is on `err`.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "edgepack/edgepack.h"
#include "json.h"
#include "machine.h"
#include "memory.h"
#include "options.h"

namespace edgepack {

enum ExitCode : int { kGood = 0, kCheckFailed = 1, kUsageError = 2, kModelError = 3 };

// An open variant with memory for its inputs and outputs, and where its results go.
class Session {
 public:
  // `index` is the variant's place among those of the command line.
  Session(const Options& options, Machine* machine, std::FILE* out, int index = 0);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  // Open the variant; write the context line (of the first one) and the load line.
  Status open();

  int index() const { return index_; }
  const edgepack_about& about() const { return about_; }
  const std::vector<edgepack_tensor>& inputs() const { return inputs_; }
  const std::vector<edgepack_tensor>& outputs() const { return outputs_; }
  edgepack_variant* variant() { return variant_; }
  Machine& machine() { return *machine_; }

  // Read in_<i>.npy of a folder and set the inputs.
  Status set_inputs(const std::string& folder);

  // Read the raw frame that the options name, and pre-process it into the model's only input.
  Status set_image();

  // The declared pre-processing of an input as in variant.txt; null when there is none.
  const char* preprocess(size_t index);

  Status run();

  // Run and tell how long that took. Between the two looks at the clock there is nothing but the run.
  Status timed_run(int64_t* ns);

  // Copy output `index` into memory that stays valid until the next call.
  Status read_output(size_t index, const void** data);

  void write(const JsonLine& line);

  // The end line. Returns the exit code, which is another one when the lines could not be written.
  int end(int exit_code);

  // The error of a call on variant().
  Status failure(edgepack_status code) const { return {code, edgepack_error(variant_)}; }

 private:
  const Options& options_;
  Machine* machine_;
  std::FILE* out_;
  int index_;
  edgepack_variant* variant_ = nullptr;
  edgepack_about about_{};
  std::vector<edgepack_tensor> inputs_, outputs_;
  Buffer buffer_;
};

// The sub-folders 0, 1, 2 ... of a golden folder, in order. It is an error when there is none.
Status list_golden(Machine* machine, const std::string& folder, std::vector<std::string>* samples);

// Run every golden sample and write a line for each of its outputs. False in `passed` when one is off.
Status check_golden(Session* session, const std::vector<std::string>& samples, bool* passed);

// What the variant, this program and this processor are.
void write_info(Session* session);

// Timed runs on the first golden inputs; of two variants in turns when `other` is not null. `session` is not open yet.
Status run_bench(Session* session, Session* other, const Options& options, bool* passed);

// The time of each operator on the first golden inputs. `session` is not open yet.
Status run_profile(Session* session, const Options& options, bool* passed);

// Keep this process on the CPUs of `cores` (where it says any); to be called before an engine makes its threads.
Status choose_cores(Machine* machine, const std::vector<int>& cores);

// Fails when a thread of this process may run on other CPUs than `cores`, or this one does.
Status verify_cores(Machine* machine, const std::vector<int>& cores);

// The shape of a tensor as a vector.
std::vector<int64_t> shape_of(const edgepack_tensor& tensor);

// Lower-case hex digits: how bytes of a model are written.
std::string hex(const char* bytes, size_t size);

// Everything: returns the exit code.
int run_harness(int argc, const char* const* argv, Machine* machine, std::FILE* out, std::FILE* err);

}  // namespace edgepack
