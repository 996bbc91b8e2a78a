#include "check.h"
#include "options.h"

using namespace edgepack;

namespace {

std::string refusal(std::vector<const char*> words) {
  words.insert(words.begin(), "edgepack-null");
  Options options;
  std::string error;
  return parse_options(static_cast<int>(words.size()), words.data(), &options, &error) ? "accepted" : error;
}

}  // namespace

TEST("a full line is understood") {
  const char* words[] = {"edgepack-null", "bench", "--variant",     "v",   "--variant",  "w", "--golden", "g",
                         "--threads",     "4",     "--min-seconds", "0.5", "--min-runs", "3", "--cores",  "4-6,0,5",
                         "--warmup",      "0",     "--block-runs",  "2"};
  Options o;
  std::string error;
  CHECK(parse_options(20, words, &o, &error));
  CHECK_EQ("bench", o.command);
  CHECK_EQ("v", o.variant);
  CHECK_EQ("w", o.other_variant);
  CHECK_EQ("g", o.golden);
  CHECK_EQ(int64_t{4}, o.threads);
  CHECK_EQ(0.5, o.min_seconds);
  CHECK_EQ(int64_t{3}, o.min_runs);
  CHECK_EQ(int64_t{0}, o.warmup);
  CHECK_EQ(int64_t{2}, o.block_runs);
  CHECK((o.cores == std::vector<int>{0, 4, 5, 6}));
}

TEST("a raw frame takes the place of the inputs") {
  const char* words[] = {"edgepack-null", "run",  "--variant", "v",       "--outputs", "o",   "--image", "f.raw",
                         "--format",      "nv12", "--size",    "640x480", "--stride",  "704", "--yuv",   "bt709"};
  Options o;
  std::string error;
  CHECK(parse_options(16, words, &o, &error));
  CHECK_EQ("f.raw", o.image);
  CHECK_EQ("nv12", o.format);
  CHECK_EQ("640x480", o.size);
  CHECK_EQ(int64_t{704}, o.stride);
  CHECK_EQ("bt709", o.yuv);
  CHECK_EQ("run needs --inputs or --image", refusal({"run", "--variant", "v", "--outputs", "o"}));
  CHECK_EQ("run takes --inputs or --image, not both",
           refusal({"run", "--variant", "v", "--outputs", "o", "--inputs", "i", "--image", "f"}));
  CHECK_EQ("bench has no option '--image'", refusal({"bench", "--image", "f"}));
}

TEST("run takes several variants, of which the inputs choose one") {
  const char* words[] = {"edgepack-null", "run", "--variant", "v", "--variant", "w",
                         "--variant",     "u",   "--inputs",  "i", "--outputs", "o"};
  Options o;
  std::string error;
  CHECK(parse_options(12, words, &o, &error));
  CHECK((o.choices == std::vector<std::string>{"v", "w", "u"}));
  CHECK_EQ("run takes one --variant with --image",
           refusal({"run", "--variant", "v", "--variant", "w", "--outputs", "o", "--image", "f"}));
}

TEST("what can't be understood is named") {
  CHECK_EQ("no command given", refusal({}));
  CHECK_EQ("there is no command 'train'", refusal({"train"}));
  CHECK_EQ("info needs --variant", refusal({"info"}));
  CHECK_EQ("self-test needs --golden", refusal({"self-test", "--variant", "v"}));
  CHECK_EQ("run needs --outputs", refusal({"run", "--variant", "v", "--inputs", "i"}));
  CHECK_EQ("info has no option '--golden'", refusal({"info", "--variant", "v", "--golden", "g"}));
  CHECK_EQ("--variant needs a value", refusal({"info", "--variant"}));
  for (const char* number : {"0", "-1", "257", "two", "1.5", "", "9999999999999"}) {
    CHECK_EQ("--threads must be a whole number from 1 to 256",
             refusal({"info", "--variant", "v", "--threads", number}));
  }
  CHECK_EQ("--min-seconds must be seconds, at most 3600",
           refusal({"bench", "--variant", "v", "--golden", "g", "--min-seconds", "1e9"}));
  CHECK_EQ("--runs must be a whole number from 1 to 10000",
           refusal({"profile", "--variant", "v", "--golden", "g", "--runs", "0"}));
  for (const char* cores : {"", "big", "4-", "-4", "7-4", "1,,2", "1024", "0-2000", "1 "}) {
    CHECK_EQ("--cores must be CPU numbers such as 4-7 or 0,2,4-5",
             refusal({"profile", "--variant", "v", "--golden", "g", "--cores", cores}));
  }
  CHECK_EQ("bench compares two variants, not more",
           refusal({"bench", "--variant", "a", "--variant", "b", "--variant", "c"}));
}

CHECK_MAIN
