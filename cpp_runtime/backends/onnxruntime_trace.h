// The trace file that ONNX Runtime's profiler writes: one JSON object per event, in the order in which they end.
//
//   {"cat" : "Node","pid" :1,"tid" :1,"dur" :42,"ts" :7,"ph" : "X","name" :"conv1_kernel_time","args" : {...
//    "op_name" : "Conv",...}},
//
// The engine writes names of the model without escapes, so this is no JSON parser: it looks for the fields in their
// order. A hostile name can only spoil the figures of its own model.
#pragma once

#include <string_view>

#include "edgepack/backend.h"

namespace edgepack {

// Add the node events of `text` to the profile, but for those of the first `skipped` runs. The time of a node that runs
// others (a loop) is its own time without theirs. Fails when there is no node.
Status read_trace(std::string_view text, int skipped, Profile* profile);

}  // namespace edgepack
