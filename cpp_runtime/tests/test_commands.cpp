#include "check.h"
#include "commands.h"
#include "npy.h"

using namespace edgepack;

namespace {

// A machine whose clock steps by a millisecond a look.
class StubMachine final : public Machine {
 public:
  int64_t now_ns() override { return now_ += 1000000; }
  int64_t peak_rss_bytes() override { return 4096; }
  std::string cpu() override { return "stub \"cpu\""; }
  Status list_folder(const std::string& path, std::vector<std::string>* names) override {
    return this_machine().list_folder(path, names);
  }

 private:
  int64_t now_ = 0;
};

struct Result {
  int code = 0;
  std::string out, err;
};

Result harness(std::vector<std::string> words) {
  words.insert(words.begin(), "edgepack-null");
  std::vector<const char*> argv;
  for (const std::string& word : words) argv.push_back(word.c_str());
  std::FILE* out = std::fopen(check::path("out.txt").c_str(), "wb");
  std::FILE* err = std::fopen(check::path("err.txt").c_str(), "wb");
  StubMachine machine;
  Result result;
  result.code = run_harness(static_cast<int>(argv.size()), argv.data(), &machine, out, err);
  std::fclose(out);
  std::fclose(err);
  result.out = check::read(check::path("out.txt"));
  result.err = check::read(check::path("err.txt"));
  return result;
}

void save(const std::string& name, const std::vector<float>& values) {
  CHECK_OK(write_npy(check::path(name), EDGEPACK_FLOAT32, {1, 3}, values.data(), values.size() * sizeof(float)));
}

void prepare(const std::vector<float>& golden_output) {
  for (const char* folder : {"v", "g", "g/0", "g/1", "o"}) check::folder(folder);
  check::write("v/variant.txt",
               "edgepack-variant 1\nengine name=null version=1 precision=fp32\nbound cosine=0.999 sqnr_db=20\n"
               "file path=none\n"
               "input name=hex:69 dtype=float32 shape=1,3 engine_name=hex:69 engine_dtype=float32 engine_shape=3 "
               "perm=0,1\n"
               "output name=hex:6f0a dtype=float32 shape=1,3 engine_name=hex:6f engine_dtype=float32 engine_shape=3 "
               "perm=0,1\n");
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

}  // namespace

TEST("info tells what the variant is, line by line") {
  prepare({1, 2, 3});
  const Result r = harness({"info", "--variant", check::path("v")});
  CHECK_EQ(0, r.code);
  CHECK_EQ(
      "{\"type\":\"context\",\"schema\":1,\"command\":\"info\",\"engine\":\"null\",\"engine_version\":\"1\","
      "\"precision\":"
      "\"fp32\",\"threads\":1,\"cpu\":\"stub \\\"cpu\\\"\",\"load_ns\":1000000}\n"
      "{\"type\":\"input\",\"index\":0,\"name_hex\":\"69\",\"dtype\":\"float32\",\"shape\":[1,3]}\n"
      "{\"type\":\"output\",\"index\":0,\"name_hex\":\"6f0a\",\"dtype\":\"float32\",\"shape\":[1,3]}\n"
      "{\"type\":\"end\",\"status\":\"ok\",\"peak_rss_bytes\":4096}\n",
      r.out);
  CHECK_EQ("", r.err);
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

TEST("bench runs for the wanted time and the wanted number, and keeps every sample") {
  prepare({1, 2, 3});
  const std::vector<std::string> words = {"bench", "--variant", check::path("v"), "--golden", check::path("g")};
  auto with = [&](const char* seconds, const char* runs) {
    std::vector<std::string> all = words;
    all.insert(all.end(), {"--min-seconds", seconds, "--min-runs", runs});
    return harness(all);
  };
  Result r = with("0", "7");
  CHECK_EQ(0, r.code);
  CHECK_EQ(size_t{7}, count(r.out, "{\"type\":\"sample\",\"ns\":1000000}"));
  r = with("0.1", "1");  // the stub's clock is looked at twice a run
  CHECK_EQ(size_t{50}, count(r.out, "\"type\":\"sample\""));
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
