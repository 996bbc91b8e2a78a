#include <cmath>
#include <limits>

#include "check.h"
#include "json.h"

using namespace edgepack;

TEST("a line is one JSON object") {
  CHECK_EQ("{\"type\":\"sample\",\"ns\":-5,\"ok\":true,\"shape\":[1,3],\"none\":[]}\n", JsonLine()
                                                                                            .text("type", "sample")
                                                                                            .integer("ns", -5)
                                                                                            .boolean("ok", true)
                                                                                            .integers("shape", {1, 3})
                                                                                            .integers("none", {})
                                                                                            .str());
}

TEST("text is escaped and stays on its line") {
  CHECK_EQ("{\"cpu\":\"a\\\"b\\\\c\\u000a\\u00ff\"}\n", JsonLine().text("cpu", "a\"b\\c\n\xff").str());
}

TEST("numbers keep their value, and what JSON has no word for is null") {
  CHECK_EQ("{\"x\":0.10000000000000001}\n", JsonLine().number("x", 0.1).str());
  CHECK_EQ("{\"x\":null}\n", JsonLine().number("x", std::nan("")).str());
  CHECK_EQ("{\"x\":null}\n", JsonLine().number("x", -std::numeric_limits<double>::infinity()).str());
}

CHECK_MAIN
