#include "check.h"
#include "onnxruntime_trace.h"

using namespace edgepack;

namespace {

std::string event(const std::string& category, const std::string& name, int start, int duration,
                  const std::string& arguments) {
  return "{\"cat\" : \"" + category + "\",\"pid\" :1,\"tid\" :2,\"dur\" :" + std::to_string(duration) +
         ",\"ts\" :" + std::to_string(start) + ",\"ph\" : \"X\",\"name\" :\"" + name + "\",\"args\" : {" + arguments +
         "}},\n";
}

std::string node(const std::string& name, const std::string& type, int start, int duration) {
  return event("Node", name + "_kernel_time", start, duration,
               "\"op_name\" : \"" + type + "\",\"provider\" : \"CPUExecutionProvider\"");
}

std::string run(int start, int duration) { return event("Session", "model_run", start, duration, ""); }

}  // namespace

TEST("nodes are summed over the runs, those of the warm-up left out") {
  const std::string text = "[\n" + event("Session", "session_initialization", 0, 900, "") +
                           node("a", "Conv", 1000, 500) + node("b", "Relu", 1500, 70) + run(1000, 600) +
                           node("a", "Conv", 2000, 50) + node("b", "Relu", 2050, 7) + run(2000, 60) +
                           node("a", "Conv", 3000, 51) + node("b", "Relu", 3051, 8) + run(3000, 61) + "]\n";
  Profile profile;
  CHECK_OK(read_trace(text, 1, &profile));
  CHECK_EQ(size_t{2}, profile.operators.size());
  CHECK_EQ("a", profile.operators[0].name);
  CHECK_EQ("Conv", profile.operators[0].type);
  CHECK_EQ(int64_t{101000}, profile.operators[0].ns);
  CHECK_EQ(int64_t{2}, profile.operators[0].calls);
  CHECK_EQ(int64_t{15000}, profile.operators[1].ns);
}

TEST("a loop's own time is without that of its body, whose nodes count each call") {
  const std::string text = node("first", "Add", 0, 10) + node("body", "Mul", 12, 5) + node("body", "Mul", 20, 6) +
                           node("loop", "Loop", 11, 30) + node("last", "Add", 41, 4) + run(0, 50);
  Profile profile;
  CHECK_OK(read_trace(text, 0, &profile));
  CHECK_EQ(size_t{4}, profile.operators.size());
  CHECK_EQ("body", profile.operators[1].name);
  CHECK_EQ(int64_t{11000}, profile.operators[1].ns);
  CHECK_EQ(int64_t{2}, profile.operators[1].calls);
  CHECK_EQ("loop", profile.operators[2].name);
  CHECK_EQ(int64_t{19000}, profile.operators[2].ns);
  CHECK_EQ(int64_t{10000}, profile.operators[0].ns);
}

TEST("names are taken as they are, quotes and line ends included") {
  const std::string name = "a\"b\n,\"dur\" :9,\\";
  Profile profile;
  CHECK_OK(read_trace(node(name, "Conv", 0, 5) + run(0, 5), 0, &profile));
  CHECK_EQ(name, profile.operators[0].name);
  CHECK_EQ(int64_t{5000}, profile.operators[0].ns);
}

TEST("a trace without a node, cut short or of another format, is an error and no profile") {
  for (const std::string& text :
       {std::string(), std::string("[\n]\n"), run(0, 5), std::string("{\"cat\" : \"Node\",\"dur\" :5,\"ts\" :"),
        event("Node", "x_kernel_time", 0, 5, ""), std::string(5000, '{')}) {
    Profile profile;
    CHECK(!read_trace(text, 0, &profile).ok());
  }
}

CHECK_MAIN
