#include <cmath>

#include "check.h"
#include "commands.h"
#include "npy.h"

using namespace edgepack;

namespace {

// A machine whose clock steps by a millisecond a look, and whose clocks and zones are those of a recorded tree.
class StubMachine final : public Machine {
 public:
  int64_t now_ns() override { return now_ += 1000000; }
  int64_t rss_bytes() override { return 2048; }
  int64_t peak_rss_bytes() override { return 4096; }
  std::string cpu() override { return "stub \"cpu\""; }
  std::vector<std::string> cpu_features() override { return {"asimd", "asimddp"}; }
  Status set_affinity(const std::vector<int>& cpus) override {
    if (cpus.back() > 7) return {EDGEPACK_INVALID_ARGUMENT, "there is no such CPU"};
    if (obeys_) affinity_ = cpus;
    return ok();
  }
  std::vector<int> affinity() override { return affinity_; }
  int current_cpu() override { return moves_after_ > 0 && looks_++ >= moves_after_ ? 0 : affinity_.back(); }
  std::vector<Clock> clocks() override { return read_clocks(check::path("tree")); }
  std::vector<Temperature> temperatures() override { return read_temperatures(check::path("tree")); }
  Status list_folder(const std::string& path, std::vector<std::string>* names) override {
    return this_machine().list_folder(path, names);
  }

  bool obeys_ = true;    // whether set_affinity does what it says
  int moves_after_ = 0;  // looks at current_cpu() before the system moves us to CPU 0; 0: never

 private:
  int64_t now_ = 0;
  int looks_ = 0;
  std::vector<int> affinity_ = {0, 1, 2, 3};
};

struct Result {
  int code = 0;
  std::string out, err;
};

Result harness(std::vector<std::string> words, StubMachine* machine) {
  words.insert(words.begin(), "edgepack-null");
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  std::FILE* out = std::fopen(check::path("out.txt").c_str(), "wb");
  std::FILE* err = std::fopen(check::path("err.txt").c_str(), "wb");
  Result result;
  result.code = run_harness(static_cast<int>(argv.size()), argv.data(), machine, out, err);
  std::fclose(out);
  std::fclose(err);
  result.out = check::read(check::path("out.txt"));
  result.err = check::read(check::path("err.txt"));
  return result;
}

Result harness(std::vector<std::string> words) {
  StubMachine machine;
  return harness(std::move(words), &machine);
}

void save(const std::string& name, const std::vector<float>& values) {
  CHECK_OK(write_npy(check::path(name), EDGEPACK_FLOAT32, {1, 3}, values.data(), values.size() * sizeof(float)));
}

// A variant that copies its input of 1 x `width`.
void write_variant(const std::string& folder, const std::string& width) {
  check::folder(folder);
  const std::string sizes =
      "dtype=float32 shape=1," + width + " engine_dtype=float32 engine_shape=" + width + " perm=0,1";
  check::write(folder + "/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=fp32\nbound cosine=0.999 sqnr_db=20\n"
               "file path=none\n"
               "input name=hex:69 engine_name=hex:69 " +
                   sizes + "\noutput name=hex:6f0a engine_name=hex:6f " + sizes + "\n");
}

void prepare(const std::vector<float>& golden_output) {
  for (const char* folder : {"g", "g/0", "g/1", "o"}) check::folder(folder);
  write_variant("v", "3");
  for (const char* sample : {"g/0", "g/1"}) {
    save(std::string(sample) + "/in_0.npy", {1, 2, 3});
    save(std::string(sample) + "/out_0.npy", golden_output);
  }
}

size_t count(const std::string& text, const std::string& what) {
  size_t found = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

// The types of all lines, in order.
std::string kinds(const std::string& text) {
  const std::string start = "{\"type\":\"";
  std::string found;
  for (size_t at = text.find(start); at != std::string::npos; at = text.find(start, at + 1)) {
    const size_t from = at + start.size();
    found += text.substr(from, text.find('"', from) - from) + " ";
  }
  return found;
}

}  // namespace

TEST("info tells what the variant, the program and the processor are, without golden samples") {
  prepare({1, 2, 3});
  const Result r = harness({"info", "--variant", check::path("v")});
  CHECK_EQ(0, r.code);
  const size_t build = r.out.find("{\"type\":\"build\""), after = r.out.find('\n', build) + 1;
  CHECK_EQ(
      "{\"type\":\"context\",\"schema\":2,\"command\":\"info\",\"api_version\":3,\"engine\":\"null\","
      "\"engine_version\":\"1\",\"library\":\"\",\"threads\":1,\"cpu\":\"stub \\\"cpu\\\"\"}\n"
      "{\"type\":\"load\",\"variant\":0,\"precision\":\"fp32\",\"ns\":1000000,\"rss_bytes\":2048}\n",
      r.out.substr(0, build));
  CHECK(r.out.substr(build, after - build).find("\"optimized\":") != std::string::npos);
  CHECK_EQ(
      "{\"type\":\"cpu\",\"name\":\"stub \\\"cpu\\\"\",\"features\":[\"asimd\",\"asimddp\"]}\n"
      "{\"type\":\"input\",\"index\":0,\"name_hex\":\"69\",\"dtype\":\"float32\",\"shape\":[1,3],\"bytes\":12,"
      "\"engine_dtype\":\"float32\",\"engine_shape\":[3],\"axes\":[0,1],\"scale\":null,\"zero_point\":null,"
      "\"preprocess\":null}\n"
      "{\"type\":\"output\",\"index\":0,\"name_hex\":\"6f0a\",\"dtype\":\"float32\",\"shape\":[1,3],\"bytes\":12,"
      "\"engine_dtype\":\"float32\",\"engine_shape\":[3],\"axes\":[0,1],\"scale\":null,\"zero_point\":null}\n"
      "{\"type\":\"end\",\"status\":\"ok\",\"peak_rss_bytes\":4096}\n",
      r.out.substr(after));
  CHECK_EQ("", r.err);
}

TEST("run takes the variant whose shapes are those of the inputs") {
  prepare({1, 2, 3});
  write_variant("wide", "5");
  write_variant("narrow", "2");
  const auto run = [](const std::string& first, const std::string& last) {
    return harness({"run", "--variant", check::path(first), "--variant", check::path("narrow"), "--variant",
                    check::path(last), "--inputs", check::path("g/0"), "--outputs", check::path("o")});
  };
  const Result third = run("wide", "v");
  CHECK_EQ(0, third.code);
  CHECK_EQ(size_t{1}, count(third.out, "\"type\":\"load\",\"variant\":2,"));
  float values[3] = {};
  CHECK_OK(read_npy(check::path("o/out_0.npy"), EDGEPACK_FLOAT32, {1, 3}, values, sizeof values));
  CHECK_EQ(3.0F, values[2]);

  const Result none = run("wide", "wide");
  CHECK_EQ(3, none.code);
  CHECK_EQ("edgepack: no --variant takes inputs of these shapes: float32 [1, 3]\n", none.err);
  CHECK_EQ(3, run("nowhere", "v").code);
}

TEST("self-test passes on the golden outputs and has a line for each") {
  prepare({1, 2, 3});
  const Result r = harness({"self-test", "--variant", check::path("v"), "--golden", check::path("g")});
  CHECK_EQ(0, r.code);
  CHECK_EQ(size_t{2}, count(r.out, "\"type\":\"golden\""));
  CHECK_EQ(size_t{1}, count(r.out,
                            "\"index\":1,\"output\":0,\"status\":\"ok\",\"cosine\":1,\"sqnr_db\":200,\"max_abs\":0,"
                            "\"finite\":true}"));
}

TEST("self-test exits 1 when the outputs are off, and bench then gives no figure") {
  prepare({3, 2, 1});
  Result r = harness({"self-test", "--variant", check::path("v"), "--golden", check::path("g")});
  CHECK_EQ(1, r.code);
  CHECK_EQ(size_t{2}, count(r.out, "\"status\":\"failed\",\"cosine\":0.71"));
  CHECK_EQ(size_t{1}, count(r.out, "{\"type\":\"end\",\"status\":\"failed\""));
  CHECK(r.err.find("differ from the golden") != std::string::npos);
  r = harness({"bench", "--variant", check::path("v"), "--golden", check::path("g")});
  CHECK_EQ(1, r.code);
  CHECK_EQ(size_t{0}, count(r.out, "\"type\":\"sample\""));
}

TEST("an output that is not a number has no cosine, and the line is still JSON") {
  prepare({1, 2, std::nanf("")});
  const Result r = harness({"self-test", "--variant", check::path("v"), "--golden", check::path("g")});
  CHECK_EQ(1, r.code);
  CHECK_EQ(size_t{2}, count(r.out,
                            "\"status\":\"failed\",\"cosine\":null,\"sqnr_db\":null,\"max_abs\":null,"
                            "\"finite\":false}"));
}

namespace {

std::vector<std::string> bench(std::vector<std::string> more) {
  std::vector<std::string> words = {"bench", "--variant", check::path("v"), "--golden", check::path("g")};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

void record_tree() {
  for (const char* folder :
       {"tree", "tree/sys", "tree/sys/devices", "tree/sys/devices/system", "tree/sys/devices/system/cpu",
        "tree/sys/devices/system/cpu/cpu4", "tree/sys/devices/system/cpu/cpu4/cpufreq", "tree/sys/class",
        "tree/sys/class/thermal", "tree/sys/class/thermal/thermal_zone0"}) {
    check::folder(folder);
  }
  check::write("tree/sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq", "2256000\n");
  check::write("tree/sys/devices/system/cpu/cpu4/cpufreq/scaling_governor", "ondemand\n");
  check::write("tree/sys/class/thermal/thermal_zone0/temp", "41615\n");
  check::write("tree/sys/class/thermal/thermal_zone0/type", "soc-thermal\n");
}

}  // namespace

TEST("bench runs for the wanted time and the wanted number, and keeps every sample") {
  prepare({1, 2, 3});
  Result r = harness(bench({"--min-seconds", "0", "--min-runs", "7"}));
  CHECK_EQ(0, r.code);
  CHECK_EQ(size_t{7}, count(r.out, "{\"type\":\"sample\",\"variant\":0,\"block\":0,\"ns\":1000000}"));
  r = harness(bench({"--min-seconds", "0.3", "--min-runs", "1"}));  // the stub's clock is looked at thrice a run
  CHECK_EQ(size_t{100}, count(r.out, "\"type\":\"sample\""));
}

TEST("bench tells load, first inference, warm-up and steady state apart, in that order") {
  prepare({1, 2, 3});
  const Result r = harness(bench({"--min-seconds", "0", "--min-runs", "1"}));
  CHECK_EQ("context load first golden golden affinity machine warmup sample machine machine end ", kinds(r.out));
  CHECK_EQ(size_t{1}, count(r.out, "{\"type\":\"first\",\"variant\":0,\"ns\":1000000,\"rss_bytes\":2048}"));
  CHECK_EQ(size_t{1},
           count(r.out, "{\"type\":\"warmup\",\"variant\":0,\"runs\":100,\"ns\":100000000,\"steady\":true}"));
}

TEST("a stated number of warm-up runs is kept to, and nobody calls it steady") {
  prepare({1, 2, 3});
  Result r = harness(bench({"--warmup", "3", "--min-seconds", "0"}));
  CHECK_EQ(size_t{1}, count(r.out, "{\"type\":\"warmup\",\"variant\":0,\"runs\":3,\"ns\":3000000,\"steady\":null}"));
  r = harness(bench({"--warmup", "0", "--min-seconds", "0"}));
  CHECK_EQ(size_t{1}, count(r.out, "\"runs\":0,\"ns\":0,\"steady\":null}"));
}

TEST("clocks, governor and temperatures are read before, about every second of, and after the runs") {
  prepare({1, 2, 3});
  record_tree();
  const Result r = harness(bench({"--min-seconds", "3.5", "--warmup", "0"}));
  const std::string facts =
      "\"rss_bytes\":2048,\"clocks\":[{\"cpu\":4,\"khz\":2256000,\"governor\":\"ondemand\"}],"
      "\"temperatures\":[{\"zone\":\"thermal_zone0\",\"kind\":\"soc-thermal\",\"millidegrees\":41615}]}";
  CHECK_EQ(size_t{6}, count(r.out, facts));
  CHECK_EQ(size_t{1}, count(r.out, "\"when\":\"before\",\"samples\":0,"));
  CHECK_EQ(size_t{4}, count(r.out, "\"when\":\"during\","));
  CHECK_EQ(size_t{1}, count(r.out, "\"when\":\"after\",\"samples\":" + std::to_string(count(r.out, "\"sample\""))));
}

TEST("two variants take turns in blocks of A B B A, and every sample says whose it is") {
  prepare({1, 2, 3});
  const Result r = harness(bench(
      {"--variant", check::path("v"), "--block-runs", "2", "--min-runs", "6", "--min-seconds", "0", "--warmup", "0"}));
  CHECK_EQ(0, r.code);
  CHECK_EQ("context load first golden golden load first golden golden affinity machine warmup warmup ",
           kinds(r.out).substr(0, kinds(r.out).find("sample")));
  std::string order;
  for (size_t at = r.out.find("{\"type\":\"sample\""); at != std::string::npos;
       at = r.out.find("{\"type\":\"sample\"", at + 1)) {
    order += r.out[r.out.find("\"variant\":", at) + 10] == '0' ? 'A' : 'B';
    order += r.out[r.out.find("\"block\":", at) + 8];
  }
  CHECK_EQ("A0A0B0B0B0B0A0A0A1A1B1B1B1B1A1A1", order);
}

TEST("cores are chosen before the engine is opened and looked at again, and what can't be kept is an error") {
  prepare({1, 2, 3});
  const std::vector<std::string> words = bench({"--cores", "6-7,4", "--min-seconds", "2", "--warmup", "0"});
  Result r = harness(words);
  CHECK_EQ(0, r.code);
  CHECK_EQ(size_t{1}, count(r.out, "{\"type\":\"affinity\",\"chosen\":true,\"cpus\":[4,6,7]}"));

  r = harness(bench({"--cores", "9"}));
  CHECK_EQ(3, r.code);
  CHECK_EQ("edgepack: --cores 9: there is no such CPU\n", r.err);
  CHECK_EQ("end ", kinds(r.out));

  StubMachine deaf;
  deaf.obeys_ = false;
  r = harness(words, &deaf);
  CHECK_EQ(3, r.code);
  CHECK(r.err.find("may run on 0,1,2,3, so these figures would be those of other CPUs") != std::string::npos);

  StubMachine restless;
  restless.moves_after_ = 4;
  r = harness(words, &restless);
  CHECK_EQ(3, r.code);
  CHECK_EQ("edgepack: --cores 4,6,7: this process runs on CPU 0 all the same\n", r.err);
  CHECK_EQ(size_t{0}, count(r.out, "\"sample\""));
}

TEST("profile gives each operator's time, share and calls, and a total that they add up to") {
  prepare({1, 2, 3});
  const Result r = harness({"profile", "--variant", check::path("v"), "--golden", check::path("g"), "--runs", "10"});
  CHECK_EQ(0, r.code);
  CHECK_EQ("context load golden golden operator operator operator profile end ", kinds(r.out));
  CHECK_EQ(size_t{1}, count(r.out,
                            "{\"type\":\"operator\",\"index\":0,\"name_hex\":\"636f6e762022312"
                            "20a\","
                            "\"op\":\"Convolution\",\"ns\":30000,\"share\":0.5,\"calls\":10}"));
  CHECK_EQ(size_t{1}, count(r.out,
                            "{\"type\":\"profile\",\"status\":\"ok\",\"runs\":10,\"operators\":3,"
                            "\"total_ns\":60000,\"sum_ns\":60000,\"plain_ns\":10000000,\"reason\":null}"));
}

TEST("run reads in_0.npy and writes out_0.npy in the source's dtype and shape") {
  prepare({1, 2, 3});
  const Result r =
      harness({"run", "--variant", check::path("v"), "--inputs", check::path("g/0"), "--outputs", check::path("o")});
  CHECK_EQ(0, r.code);
  float got[3] = {};
  CHECK_OK(read_npy(check::path("o/out_0.npy"), EDGEPACK_FLOAT32, {1, 3}, got, sizeof got));
  CHECK_EQ(3.0F, got[2]);
}

TEST("what is missing or wrong ends with 3 and a sentence") {
  prepare({1, 2, 3});
  Result r =
      harness({"run", "--variant", check::path("v"), "--inputs", check::path("o2"), "--outputs", check::path("o")});
  CHECK_EQ(3, r.code);
  CHECK(r.err.find("in_0.npy: No such file") != std::string::npos);
  CHECK_EQ(size_t{1}, count(r.out, "{\"type\":\"end\",\"status\":\"failed\""));
  r = harness({"run", "--variant", check::path("v"), "--inputs", check::path("g/0"), "--outputs", check::path("o2")});
  CHECK_EQ(3, r.code);
  CHECK(r.err.find("out_0.npy: No such file") != std::string::npos);
  r = harness({"self-test", "--variant", check::path("v"), "--golden", check::path("o")});
  CHECK_EQ(3, r.code);
  CHECK(r.err.find("no golden sample") != std::string::npos);
  r = harness({"self-test", "--variant", check::path("nothing"), "--golden", check::path("g")});
  CHECK_EQ(3, r.code);
  r = harness({"fly"});
  CHECK_EQ(2, r.code);
  CHECK(r.err.find("usage:") != std::string::npos);
}

TEST("results that can't be written are an error") {
  prepare({1, 2, 3});
  std::FILE* out = std::fopen("/dev/full", "wb");
  std::FILE* err = std::fopen(check::path("err.txt").c_str(), "wb");
  const std::string folder = check::path("v");
  const char* words[] = {"edgepack-null", "info", "--variant", folder.c_str()};
  CHECK_EQ(3, run_harness(4, words, &this_machine(), out, err));
  std::fclose(out);
  std::fclose(err);
  CHECK(check::read(check::path("err.txt")).find("could not be written") != std::string::npos);
}

TEST("a raw frame becomes the input, and `info` shows how") {
  prepare({1, 2, 3});
  check::write("v/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=fp32\nbound cosine=0.9\nfile path=none\n"
               "input name=hex:69 dtype=float32 shape=1,2,2 engine_name=hex:69 engine_dtype=float32 engine_shape=4 "
               "perm=0,1,2\n"
               "output name=hex:6f dtype=float32 shape=1,2,2 engine_name=hex:6f engine_dtype=float32 engine_shape=4 "
               "perm=0,1,2\n"
               "preprocess input=0 layout=NHW color=GRAY fit=stretch method=nearest mean=1 std=1\n");
  const auto run = [](const std::string& bytes, std::vector<std::string> words) {
    words.insert(words.begin(), {"run", "--variant", check::path("v"), "--outputs", check::path("o"), "--image",
                                 check::write("frame", bytes)});
    return harness(words);
  };
  // Two rows of two gray pixels, two bytes between the rows; their gray is 0.299 + 0.587 + 0.114 of themselves.
  const Result good = run("\1\2--\3\4--", {"--format", "gray", "--size", "2x2", "--stride", "4"});
  CHECK_EQ("", good.err);
  float values[4] = {};
  CHECK_OK(read_npy(check::path("o/out_0.npy"), EDGEPACK_FLOAT32, {1, 2, 2}, values, sizeof values));
  for (int i = 0; i < 4; ++i) CHECK(values[i] > i - 1e-5F && values[i] < i + 1e-5F);
  CHECK(harness({"info", "--variant", check::path("v")}).out.find("\"preprocess\":\"input=0 layout=NHW color=GRAY") !=
        std::string::npos);

  const auto says = [&](const char* expected, const std::string& bytes, std::vector<std::string> words) {
    const Result bad = run(bytes, std::move(words));
    CHECK_EQ(3, bad.code);
    if (bad.err.find(expected) == std::string::npos) check::fail(__FILE__, __LINE__, bad.err + " lacks " + expected);
  };
  says("has 3 bytes; a frame of gray 2x2 has 4", "123", {"--format", "gray", "--size", "2x2"});
  says("--format must be one of rgb, bgr,", "1234", {"--format", "jpeg", "--size", "2x2"});
  for (const char* size : {"", "2", "2x", "x2", "2x2x2", "2X2", "-2x2", "2 x2", "9999999x1"}) {
    says("--size must be WIDTHxHEIGHT", "1234", {"--format", "gray", "--size", size});
  }
  says("--yuv must be bt601", "1234", {"--format", "gray", "--size", "2x2", "--yuv", "jpeg"});
  says("1 to 65536 pixels", "1234", {"--format", "gray", "--size", "0x2"});
  says("must be even, not nv12 1x2", "1234", {"--format", "nv12", "--size", "1x2"});
  says("a stride of 1 bytes is less than a row of 2", "12", {"--format", "gray", "--size", "2x2", "--stride", "1"});
  says("the input is float32 [1, 2, 2]", "123456", {"--format", "gray", "--size", "3x2"});
}

CHECK_MAIN
