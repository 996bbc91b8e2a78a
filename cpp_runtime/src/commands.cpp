#include "commands.h"

#include <algorithm>

#include "descriptor.h"
#include "metrics.h"
#include "npy.h"

namespace edgepack {
namespace {

std::string numbered(const std::string& folder, const char* stem, size_t index) {
  return folder + "/" + stem + std::to_string(index) + ".npy";
}

Status write_outputs(Session* session, const std::string& folder) {
  for (size_t index = 0; index < session->outputs().size(); ++index) {
    const edgepack_tensor& tensor = session->outputs()[index];
    const void* data = nullptr;
    EDGEPACK_TRY(session->read_output(index, &data));
    EDGEPACK_TRY(write_npy(numbered(folder, "out_", index), tensor.dtype, shape_of(tensor), data, tensor.bytes));
  }
  return ok();
}

// Make options.variant the first one that takes the inputs.
Status choose(Options* options) {
  if (options->choices.size() < 2) return ok();
  std::vector<Descriptor> descriptors(options->choices.size());
  std::vector<const char*> folders;
  for (size_t i = 0; i < descriptors.size(); ++i) {  // for a sentence about one that can't be read
    EDGEPACK_TRY(read_descriptor(options->choices[i] + "/variant.txt", &descriptors[i]));
    folders.push_back(options->choices[i].c_str());
  }
  const std::vector<Tensor>& inputs = descriptors[0].inputs;
  std::vector<edgepack_shape> shapes(inputs.size());
  std::string found;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Shape shape;
    EDGEPACK_TRY(read_npy_shape(numbered(options->inputs, "in_", i), &shape));
    found += (i == 0 ? "" : ", ") + describe(inputs[i].dtype, shape);
    if (shape.size() > EDGEPACK_MAX_RANK) return {EDGEPACK_UNSUPPORTED, "an input has too many axes: " + found};
    shapes[i].rank = static_cast<uint32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), shapes[i].sizes);
  }
  const edgepack_status code =
      edgepack_choose(folders.data(), folders.size(), shapes.data(), shapes.size(), &options->chosen);
  if (code != EDGEPACK_OK) return {code, "no --variant takes inputs of these shapes: " + found};
  options->variant = options->choices[options->chosen];
  return ok();
}

Status perform(const Options& options, Session* session, Session* other, bool* passed) {
  if (options.command == "bench") return run_bench(session, other, options, passed);
  if (options.command == "profile") return run_profile(session, options, passed);
  EDGEPACK_TRY(session->open());
  if (options.command == "info") {
    write_info(session);
    return ok();
  }
  if (options.command == "run") {
    EDGEPACK_TRY(options.image.empty() ? session->set_inputs(options.inputs) : session->set_image());
    EDGEPACK_TRY(session->run());
    return write_outputs(session, options.outputs);
  }
  std::vector<std::string> samples;
  EDGEPACK_TRY(list_golden(&session->machine(), options.golden, &samples));
  return check_golden(session, samples, passed);
}

}  // namespace

std::vector<int64_t> shape_of(const edgepack_tensor& tensor) { return {tensor.shape, tensor.shape + tensor.rank}; }

std::string hex(const char* bytes, size_t size) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(bytes[i]);
    text += {kDigits[byte >> 4], kDigits[byte & 15]};
  }
  return text;
}

Session::Session(const Options& options, Machine* machine, std::FILE* out, int index)
    : options_(options), machine_(machine), out_(out), index_(index) {}

Session::~Session() { edgepack_close(variant_); }

Status Session::open() {
  const edgepack_options how = {static_cast<int32_t>(options_.threads),
                                options_.library.empty() ? nullptr : options_.library.c_str()};
  const std::string& folder = index_ == 0 ? options_.variant : options_.other_variant;
  const int64_t start = machine_->now_ns();
  const edgepack_status code = edgepack_open(folder.c_str(), &how, &variant_);
  if (code != EDGEPACK_OK) return failure(code);
  const int64_t load_ns = machine_->now_ns() - start;

  if (const edgepack_status status = edgepack_describe(variant_, &about_)) return failure(status);
  inputs_.resize(about_.inputs);
  outputs_.resize(about_.outputs);
  size_t largest = 0;
  for (size_t index = 0; index < inputs_.size(); ++index) {
    if (const edgepack_status status = edgepack_input(variant_, index, &inputs_[index])) return failure(status);
    largest = std::max(largest, inputs_[index].bytes);
  }
  for (size_t index = 0; index < outputs_.size(); ++index) {
    if (const edgepack_status status = edgepack_output(variant_, index, &outputs_[index])) return failure(status);
    largest = std::max(largest, outputs_[index].bytes);
  }
  if (!buffer_.allocate(largest)) return {EDGEPACK_OUT_OF_MEMORY, "no memory for the largest tensor"};

  if (index_ == 0) {
    write(JsonLine()
              .text("type", "context")
              .integer("schema", 2)
              .text("command", options_.command)
              .integer("api_version", edgepack_api_version())
              .text("engine", about_.engine)
              .text("engine_version", about_.engine_version)
              .text("library", about_.library)
              .integer("threads", about_.threads)
              .text("cpu", machine_->cpu()));
  }
  write(JsonLine()
            .text("type", "load")
            .integer("variant", index_ == 0 ? static_cast<int64_t>(options_.chosen) : index_)
            .text("precision", about_.precision)
            .integer("ns", load_ns)
            .integer("rss_bytes", machine_->rss_bytes()));
  return ok();
}

Status Session::set_inputs(const std::string& folder) {
  for (size_t index = 0; index < inputs_.size(); ++index) {
    const edgepack_tensor& tensor = inputs_[index];
    EDGEPACK_TRY(
        read_npy(numbered(folder, "in_", index), tensor.dtype, shape_of(tensor), buffer_.data(), tensor.bytes));
    const edgepack_status code = edgepack_set_input(variant_, index, buffer_.data(), tensor.bytes);
    if (code != EDGEPACK_OK) return failure(code);
  }
  return ok();
}

Status Session::run() {
  const edgepack_status code = edgepack_run(variant_);
  return code == EDGEPACK_OK ? ok() : failure(code);
}

Status Session::timed_run(int64_t* ns) {
  const int64_t start = machine_->now_ns();
  const edgepack_status code = edgepack_run(variant_);
  *ns = machine_->now_ns() - start;
  return code == EDGEPACK_OK ? ok() : failure(code);
}

Status Session::read_output(size_t index, const void** data) {
  const edgepack_status code = edgepack_get_output(variant_, index, buffer_.data(), outputs_[index].bytes);
  *data = buffer_.data();
  return code == EDGEPACK_OK ? ok() : failure(code);
}

void Session::write(const JsonLine& line) {
  const std::string text = line.str();
  std::fwrite(text.data(), 1, text.size(), out_);  // end() asks whether all went well
}

int Session::end(int exit_code) {
  write(JsonLine()
            .text("type", "end")
            .text("status", exit_code == kGood ? "ok" : "failed")
            .integer("peak_rss_bytes", machine_->peak_rss_bytes()));
  if (std::fflush(out_) != 0 || std::ferror(out_) != 0) return kModelError;
  return exit_code;
}

Status list_golden(Machine* machine, const std::string& folder, std::vector<std::string>* samples) {
  std::vector<std::string> names;
  EDGEPACK_TRY(machine->list_folder(folder, &names));
  samples->clear();
  while (std::binary_search(names.begin(), names.end(), std::to_string(samples->size()))) {
    samples->push_back(folder + "/" + std::to_string(samples->size()));
  }
  if (samples->empty()) return {EDGEPACK_FILE_ERROR, folder + " holds no golden sample: there is no folder 0"};
  return ok();
}

Status check_golden(Session* session, const std::vector<std::string>& samples, bool* passed) {
  *passed = true;
  Buffer reference;
  for (size_t sample = 0; sample < samples.size(); ++sample) {
    EDGEPACK_TRY(session->set_inputs(samples[sample]));
    EDGEPACK_TRY(session->run());
    for (size_t index = 0; index < session->outputs().size(); ++index) {
      const edgepack_tensor& tensor = session->outputs()[index];
      if (reference.size() < tensor.bytes && !reference.allocate(tensor.bytes)) {
        return {EDGEPACK_OUT_OF_MEMORY, "no memory for a golden output"};
      }
      EDGEPACK_TRY(read_npy(numbered(samples[sample], "out_", index), tensor.dtype, shape_of(tensor), reference.data(),
                            tensor.bytes));
      const void* output = nullptr;
      EDGEPACK_TRY(session->read_output(index, &output));
      const Metrics metrics = compare(tensor.dtype, reference.data(), output, tensor.bytes / info(tensor.dtype).size);
      const bool good = holds(metrics, session->about().bound_cosine, session->about().bound_sqnr_db);
      *passed = *passed && good;
      session->write(JsonLine()
                         .text("type", "golden")
                         .integer("variant", session->index())
                         .integer("index", static_cast<int64_t>(sample))
                         .integer("output", static_cast<int64_t>(index))
                         .text("status", good ? "ok" : "failed")
                         .number("cosine", metrics.cosine)
                         .number("sqnr_db", metrics.sqnr_db)
                         .number("max_abs", metrics.max_abs)
                         .boolean("finite", metrics.finite));
    }
  }
  return ok();
}

int run_harness(int argc, const char* const* argv, Machine* machine, std::FILE* out, std::FILE* err) {
  Options options;
  std::string error;
  if (!parse_options(argc, argv, &options, &error)) {
    std::fprintf(err, "edgepack: %s\n%s", error.c_str(), kUsage);
    return kUsageError;
  }
  bool passed = true;
  Status status;
  int code = kGood;
  {
    Session session(options, machine, out), other(options, machine, out, 1);
    status = choose(&options);
    if (status.ok()) status = perform(options, &session, options.other_variant.empty() ? nullptr : &other, &passed);
    code = session.end(!status.ok() ? kModelError : passed ? kGood : kCheckFailed);
  }
  // After the engine is gone, so that the last line on stderr is ours and not the engine's farewell.
  if (!status.ok()) {
    error = status.text();
  } else if (!passed) {
    error = "the outputs differ from the golden ones by more than the bound";
  } else if (code != kGood) {
    error = "the results could not be written to standard output";
  }
  if (!error.empty()) std::fprintf(err, "edgepack: %s\n", error.c_str());
  return code;
}

}  // namespace edgepack
