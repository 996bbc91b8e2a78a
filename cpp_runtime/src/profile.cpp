// The harness's `profile` command.
#include "commands.h"

namespace edgepack {

Status run_profile(Session* session, const Options& options, bool* passed) {
  Machine& machine = session->machine();
  EDGEPACK_TRY(choose_cores(&machine, options.cores));
  EDGEPACK_TRY(session->open());
  std::vector<std::string> samples;
  EDGEPACK_TRY(list_golden(&machine, options.golden, &samples));
  EDGEPACK_TRY(check_golden(session, samples, passed));
  if (!*passed) return ok();
  EDGEPACK_TRY(session->set_inputs(samples.front()));

  // The same runs without the engine's timer: what that costs is the difference.
  int64_t plain_ns = 0;
  for (int64_t i = 0; i < options.runs; ++i) {
    int64_t ns = 0;
    EDGEPACK_TRY(session->timed_run(&ns));
    plain_ns += ns;
  }
  edgepack_profile_summary summary{};
  const edgepack_status code = edgepack_profile(session->variant(), static_cast<int32_t>(options.runs), &summary);
  if (code == EDGEPACK_UNSUPPORTED) {
    session->write(JsonLine()
                       .text("type", "profile")
                       .text("status", "unsupported")
                       .text("reason", edgepack_error(session->variant())));
    return ok();
  }
  if (code != EDGEPACK_OK) return session->failure(code);
  EDGEPACK_TRY(verify_cores(&machine, options.cores));

  for (size_t index = 0; index < summary.operators; ++index) {
    edgepack_operator op{};
    const edgepack_status status = edgepack_profile_operator(session->variant(), index, &op);
    if (status != EDGEPACK_OK) return session->failure(status);
    session->write(JsonLine()
                       .text("type", "operator")
                       .integer("index", static_cast<int64_t>(index))
                       .text("name_hex", hex(op.name, op.name_size))
                       .text("op", op.type)
                       .integer("ns", op.ns)
                       .number("share", static_cast<double>(op.ns) / static_cast<double>(summary.sum_ns))
                       .integer("calls", op.calls));
  }
  JsonLine line;
  line.text("type", "profile")
      .text("status", "ok")
      .integer("runs", summary.runs)
      .integer("operators", static_cast<int64_t>(summary.operators))
      .integer("total_ns", summary.total_ns)
      .integer("sum_ns", summary.sum_ns)
      .integer("plain_ns", plain_ns);
  summary.reason[0] == '\0' ? line.null("reason") : line.text("reason", summary.reason);
  session->write(line);
  return ok();
}

}  // namespace edgepack
