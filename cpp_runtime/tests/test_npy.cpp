#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>

#include "check.h"
#include "npy.h"

using namespace edgepack;

namespace {

std::string file(int version, const std::string& header, const std::string& data, int64_t claimed = -1) {
  std::string bytes = "\x93NUMPY";
  bytes += static_cast<char>(version);
  bytes += '\0';
  const auto length = claimed < 0 ? header.size() : static_cast<uint64_t>(claimed);
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i)
    bytes += static_cast<char>((static_cast<uint64_t>(length) >> (8 * i)) & 0xff);
  return bytes + header + data;
}

const std::string kHeader = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }\n";
const std::string kData(12, 'x');

Status load(const std::string& bytes, edgepack_dtype dtype = EDGEPACK_FLOAT32, const Shape& shape = {1, 3}) {
  // Exactly as large as the wanted array, so that the sanitizer sees one byte too many.
  size_t size = info(dtype).size;
  for (const int64_t axis : shape) size *= static_cast<size_t>(axis);
  std::vector<char> memory(size);
  return read_npy(check::write("a.npy", bytes), dtype, shape, memory.data(), memory.size());
}

}  // namespace

TEST("what is written is read back, for every dtype and for ranks 0 to 8") {
  for (const DtypeInfo& type : kDtypes) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{5}, Shape{2, 3}, Shape{1, 1, 1, 1, 1, 1, 1, 2}}) {
      size_t size = type.size;
      for (const int64_t axis : shape) size *= static_cast<size_t>(axis);
      std::string written(size, '\0'), got(size, '\xff');
      for (size_t i = 0; i < size; ++i) written[i] = static_cast<char>(type.dtype == EDGEPACK_BOOL ? i & 1 : i + 1);
      CHECK_OK(write_npy(check::path("b.npy"), type.dtype, shape, written.data(), size));
      CHECK_OK(read_npy(check::path("b.npy"), type.dtype, shape, got.data(), size));
      CHECK(written == got);
    }
  }
}

TEST("the header that is written is numpy's, with the data at a multiple of 64") {
  const float values[] = {1, 2, 3};
  CHECK_OK(write_npy(check::path("c.npy"), EDGEPACK_FLOAT32, {3}, values, sizeof values));
  const std::string bytes = check::read(check::path("c.npy"));
  CHECK_EQ(size_t{128 + 12}, bytes.size());
  CHECK_EQ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", bytes.substr(10, 57));
  CHECK_EQ('\n', bytes[127]);
}

TEST("versions 1 and 2, spaces, quotes and key order are numpy's choice") {
  CHECK_OK(load(file(1, kHeader, kData)));
  CHECK_OK(load(file(2, kHeader, kData)));
  CHECK_OK(load(file(1, "{\"shape\":(1,3),'fortran_order':False,  'descr':'<f4'}", kData)));
  CHECK_OK(load(file(1, "{'descr': '=f4', 'fortran_order': False, 'shape': (1, 3)}   \n", kData)));
  CHECK_OK(load(file(1, "{'descr': '|u1', 'fortran_order': False, 'shape': (), }", "x"), EDGEPACK_UINT8, {}));
}

TEST("a bool that is neither 0 nor 1 becomes 1") {
  unsigned char got[3] = {};
  CHECK_OK(read_npy(check::write("d.npy", file(1, "{'descr': '|b1', 'fortran_order': False, 'shape': (3,), }",
                                               std::string("\x00\x01\x7f", 3))),
                    EDGEPACK_BOOL, {3}, got, 3));
  CHECK(got[0] == 0 && got[1] == 1 && got[2] == 1);
}

TEST("another dtype, shape or order is refused with what was found") {
  CHECK_SAYS("holds float32 [1, 3], wanted is float64 [1, 3]", load(file(1, kHeader, kData), EDGEPACK_FLOAT64));
  CHECK_SAYS("holds float32 [1, 3], wanted is float32 [3]", load(file(1, kHeader, kData), EDGEPACK_FLOAT32, {3}));
  CHECK_SAYS("Fortran", load(file(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 3), }", kData)));
  for (const char* descr : {">f4", "|O", "<U3", "<c8", "f4", "", "<f4<f4", "|f4"}) {
    CHECK_SAYS(
        "dtype",
        load(file(1, std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': (1, 3), }", kData)));
  }
}

TEST("data that is too short or too long is refused") {
  CHECK_SAYS("11 bytes of data, its shape needs 12", load(file(1, kHeader, kData.substr(1))));
  CHECK_SAYS("13 bytes of data", load(file(1, kHeader, kData + "x")));
  CHECK_SAYS("0 bytes of data", load(file(1, kHeader, "")));
}

TEST("a damaged header is refused") {
  CHECK_SAYS("magic", load(""));
  CHECK_SAYS("magic", load("\x93NUMP"));
  CHECK_SAYS("magic", load("PK\x03\x04" + std::string(100, 'x')));
  CHECK_SAYS("version", load(file(3, kHeader, kData)));
  CHECK_SAYS("version", load(file(0, kHeader, kData)));
  CHECK_SAYS("cut short", load(file(1, kHeader, "", 60000)));
  CHECK_SAYS("claims 4294967295 bytes", load(file(2, kHeader, kData, 0xffffffff)));
  CHECK_SAYS("cut short", load(std::string("\x93NUMPY\x01\x00\x05", 9)));
  for (const char* header : {"", "{", "{}", "[]", "{'descr': '<f4', 'fortran_order': False}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), 'more': 1}",
                             "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1, 3)}",
                             "{'descr': '<f4', 'fortran_order': 0, 'shape': (1, 3)}",
                             "{'descr': '<f4, 'fortran_order': False, 'shape': (1, 3)}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (1 3)}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (3)}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3)} import os",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999, 3)}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (1,,3)}",
                             "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 3)}",
                             "{'shape': (1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1), 'descr': "
                             "'<f4', 'fortran_order': False}"}) {
    CHECK_SAYS("can't be understood", load(file(1, header, kData)));
  }
}

TEST("a file cut or changed anywhere never crashes the reader") {
  const std::string good = file(1, kHeader, kData);
  for (size_t size = 0; size < good.size(); ++size) CHECK(!load(good.substr(0, size)).ok());
  for (size_t at = 0; at < good.size() - kData.size(); ++at) {
    for (const int flip : {0x01, 0x20, 0x80, 0xff}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      const Status status = load(bad);  // may pass where only a space or a quote changed
      CHECK(status.ok() || !status.text().empty());
    }
  }
}

TEST("a file that is not there, a folder and a place that can't be written are said") {
  char one = 0;
  CHECK_SAYS("No such file", read_npy(check::path("none.npy"), EDGEPACK_INT8, {1}, &one, 1));
  CHECK_SAYS("not a regular file", read_npy(check::scratch(), EDGEPACK_INT8, {1}, &one, 1));
  CHECK_SAYS("No such file", write_npy(check::path("none/x.npy"), EDGEPACK_INT8, {1}, &one, 1));
}

TEST("a full disk is an error, and a device is never removed") {
  const std::vector<char> data(1 << 20);
  struct stat facts{};
  CHECK(stat("/dev/full", &facts) == 0 && S_ISCHR(facts.st_mode));
  CHECK_SAYS("No space", write_npy("/dev/full", EDGEPACK_INT8, {1 << 20}, data.data(), data.size()));
  CHECK(stat("/dev/full", &facts) == 0);
}

TEST("a file that can't be written whole is removed") {
  // A limit on the size of files stands in for a full disk.
  const std::vector<char> data(1 << 20);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small = {4096, before.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  const Status status = write_npy(check::path("big.npy"), EDGEPACK_INT8, {1 << 20}, data.data(), data.size());
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK_SAYS("File too large", status);
  struct stat facts{};
  CHECK(stat(check::path("big.npy").c_str(), &facts) != 0);
}

CHECK_MAIN
