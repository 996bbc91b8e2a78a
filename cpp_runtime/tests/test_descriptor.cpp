#include "check.h"
#include "descriptor.h"

using namespace edgepack;

namespace {

const std::string kStart =
    "edgepack-variant 1\n"
    "engine name=ncnn version=1.0.20261020 precision=int8\n"
    "bound cosine=0.95 sqnr_db=8\n"
    "file path=model.ncnn.param\n"
    "file path=model.ncnn.bin\n";
const std::string kInput =
    "input name=hex:696e707574 dtype=float32 shape=1,3,224,224 engine_name=hex:696e30 engine_dtype=float32 "
    "engine_shape=3,224,224 perm=0,1,2,3\n";
const std::string kOutput =
    "output name=hex:0a00ff dtype=float32 shape=1,1000 engine_name=hex:6f7574 engine_dtype=int8 engine_shape=1,1000 "
    "perm=0,1 scale=0.0235 zero_point=-3\n";
const std::string kGood = kStart + kInput + kOutput;

Status parse(const std::string& text) {
  Descriptor descriptor;
  return parse_descriptor(text, &descriptor);
}

std::string with(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at == std::string::npos) {
    check::fail(__FILE__, __LINE__, "the test's own text has no " + from);
    return text;
  }
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST("every field of a variant is read") {
  Descriptor d;
  CHECK_OK(parse_descriptor(kGood, &d));
  CHECK_EQ("ncnn", d.engine);
  CHECK_EQ("1.0.20261020", d.version);
  CHECK_EQ("int8", d.precision);
  CHECK_EQ(0.95, d.bound_cosine);
  CHECK_EQ(8.0, d.bound_sqnr_db.value_or(0));
  CHECK_EQ(size_t{2}, d.files.size());
  CHECK_EQ("model.ncnn.bin", d.files[1]);
  CHECK_EQ("input", d.inputs[0].name);
  CHECK_EQ(size_t{1 * 3 * 224 * 224 * 4}, d.inputs[0].bytes);
  CHECK(!d.inputs[0].scale);
  CHECK((d.inputs[0].engine_shape == Shape{3, 224, 224}));
  CHECK(std::string("\x0a\x00\xff", 3) == d.outputs[0].name);
  CHECK_EQ(0.0235F, d.outputs[0].scale.value_or(0));
  CHECK_EQ(-3, d.outputs[0].zero_point);
  CHECK_EQ(size_t{1000}, d.outputs[0].engine_bytes);
}

TEST("a rank-0 tensor has an empty shape and one element") {
  Descriptor d;
  CHECK_OK(parse_descriptor(kStart + "output name=hex: dtype=int64 shape= engine_name=hex:61 engine_dtype=int32 "
                                     "engine_shape= perm=\n",
                            &d));
  CHECK_EQ(size_t{1}, d.outputs[0].elements);
  CHECK_EQ(size_t{8}, d.outputs[0].bytes);
  CHECK_EQ("", d.outputs[0].name);
}

TEST("a bound without SQNR is a bound without SQNR") {
  Descriptor d;
  CHECK_OK(parse_descriptor(with(kGood, " sqnr_db=8", ""), &d));
  CHECK(!d.bound_sqnr_db);
}

TEST("scales are read as numpy reads them") {
  const std::pair<const char*, float> known[] = {{"1", 1.0F},
                                                 {"0.00392156886", 0.00392156886F},
                                                 {"3.5e-05", 3.5e-05F},
                                                 {"1.17549435e-38", 1.17549435e-38F},
                                                 {"3.40282347e+38", 3.40282347e+38F},
                                                 {"128", 128.0F}};
  for (const auto& [text, value] : known) {
    Descriptor d;
    CHECK_OK(parse_descriptor(with(kGood, "scale=0.0235", std::string("scale=") + text), &d));
    CHECK_EQ(value, d.outputs[0].scale.value_or(0));
  }
}

TEST("what is wrong is named with its line") {
  CHECK_SAYS("line 1: not an edgepack-variant file", parse(with(kGood, "variant 1", "variant 2")));
  CHECK_SAYS("missing", parse(""));
  CHECK_SAYS("cut short", parse(kGood.substr(0, kGood.size() - 1)));
  CHECK_SAYS("line 2: the key 'colour' is unknown", parse(with(kGood, "precision=int8", "precision=int8 colour=red")));
  CHECK_SAYS("line 2: the key 'version' is missing", parse(with(kGood, "version=1.0.20261020 ", "")));
  CHECK_SAYS("comes twice", parse(with(kGood, "name=ncnn", "name=ncnn name=tflite")));
  CHECK_SAYS("precision must be", parse(with(kGood, "precision=int8", "precision=int4")));
  CHECK_SAYS("a second engine", parse(with(kGood, "bound ", "engine name=a version=b precision=fp32\nbound ")));
  CHECK_SAYS("a second bound", parse(with(kGood, "file ", "bound cosine=1\nfile ")));
  CHECK_SAYS("is not a kind of record", parse(kGood + "weights a=b\n"));
  CHECK_SAYS("is not a kind of record", parse(kGood + "\n"));
  CHECK_SAYS("two spaces", parse(with(kGood, "engine name", "engine  name")));
  CHECK_SAYS("not key=value", parse(with(kGood, "name=ncnn", "ncnn")));
  CHECK_SAYS("no output", parse(kStart + kInput));
  CHECK_SAYS("no file", parse(with(with(kGood, "file path=model.ncnn.param\n", ""), "file path=model.ncnn.bin\n", "")));
  CHECK_SAYS("cosine must be", parse(with(kGood, "cosine=0.95", "cosine=1.5")));
  CHECK_SAYS("cosine must be", parse(with(kGood, "cosine=0.95", "cosine=nan")));
  CHECK_SAYS("sqnr_db must be", parse(with(kGood, "sqnr_db=8", "sqnr_db=eight")));
}

TEST("a file never leaves the variant's folder") {
  for (const char* path : {"../x", "a/b", "/etc/passwd", "..", ".", ""}) {
    CHECK_SAYS("plain file name", parse(with(kGood, "path=model.ncnn.bin", std::string("path=") + path)));
  }
}

TEST("names are hex, and an engine's name has no NUL") {
  for (const char* name : {"input", "hex:6", "hex:6G", "hex:AB", "0x61"}) {
    CHECK_SAYS("must be hex", parse(with(kGood, "hex:696e707574", name)));
  }
  CHECK_SAYS("NUL", parse(with(kGood, "hex:696e30", "hex:6900")));
}

TEST("a shape that lies about memory is refused") {
  for (const char* shape :
       {"0", "-1", "1,3,224,", ",1", "1,,1", "1x3", "3.0", "99999999999", "1,1,1,1,1,1,1,1,1", "9223372036854775808"}) {
    CHECK_SAYS("positive sizes", parse(with(kGood, "shape=1,3,224,224", std::string("shape=") + shape)));
  }
  CHECK_SAYS("larger than 2 GiB", parse(with(kGood, "shape=1,3,224,224", "shape=2147483647,2147483647,4,1")));
  CHECK_SAYS("larger than 2 GiB", parse(with(kGood, "shape=1,3,224,224", "shape=536870912,1,1,1")));
  CHECK_SAYS("element count", parse(with(kGood, "engine_shape=3,224,224", "engine_shape=3,224,225")));
}

TEST("a perm must be a permutation") {
  for (const char* perm : {"0,1,2", "0,1,2,2", "0,1,2,4", "0,1,2,-1", "", "0,1,2,3,4"}) {
    CHECK_SAYS("not a permutation", parse(with(kGood, "perm=0,1,2,3", std::string("perm=") + perm)));
  }
}

TEST("quantization must make sense") {
  for (const char* scale : {"0", "-1", "nan", "inf", "1e999", "", "1e-300", "0x1p3", "1.2.3", "e5", "."}) {
    CHECK_SAYS("scale must be", parse(with(kGood, "scale=0.0235", std::string("scale=") + scale)));
  }
  CHECK_SAYS("zero_point is outside", parse(with(kGood, "zero_point=-3", "zero_point=-129")));
  CHECK_SAYS("'zero_point' is missing", parse(with(kGood, " zero_point=-3", "")));
  CHECK_SAYS("zero_point without scale", parse(with(kGood, " scale=0.0235", "")));
  CHECK_SAYS("a scale needs", parse(with(kGood, "engine_dtype=int8", "engine_dtype=float32")));
}

namespace {

const std::string kPreprocess =
    "preprocess input=0 layout=NCHW color=RGB resize=256,250 fit=inside method=bilinear crop=224,223 pad=320,319 "
    "pad_value=114 pad_place=top_left mean=123.675,116.279999,103.529999 std=58\n";

}  // namespace

TEST("a preprocess record is read whole, and one value stands for all channels") {
  Descriptor d;
  CHECK_OK(parse_descriptor(kGood + kPreprocess, &d));
  CHECK(d.inputs[0].preprocess.has_value() && !d.outputs[0].preprocess);
  const edgepack_preprocess how = d.inputs[0].preprocess.value_or(Preprocess{}).declared;
  CHECK_EQ(std::string("NCHW"), how.layout);
  CHECK_EQ(std::string("RGB"), how.color);
  CHECK_EQ(std::string("inside"), how.fit);
  CHECK_EQ(std::string("bilinear"), how.method);
  CHECK_EQ(std::string("top_left"), how.pad_place);
  CHECK_EQ(250, how.resize[1]);
  CHECK_EQ(224, how.crop[0]);
  CHECK_EQ(319, how.pad[1]);
  CHECK_EQ(114.0F, how.pad_value[2]);
  CHECK_EQ(116.28F, how.mean[1]);
  CHECK_EQ(58.0F, how.std[2]);
  CHECK_OK(parse(kGood + with(kPreprocess, "resize=256,250 fit=inside", "resize=256 fit=stretch")));
  CHECK_OK(parse(kGood + with(kPreprocess, "resize=256,250 fit=inside", "fit=stretch")));
  CHECK_OK(parse(kGood + with(kPreprocess, "pad=320,319 pad_value=114 pad_place=top_left ", "")));
}

TEST("a preprocess record that is off is refused with its line") {
  const auto says = [](const char* words, const std::string& from, const std::string& to) {
    CHECK_SAYS(words, parse(kGood + with(kPreprocess, from, to)));
  };
  CHECK_SAYS("line 9: a second preprocess record for input 0", parse(kGood + kPreprocess + kPreprocess));
  CHECK_SAYS("number of an input above", parse(kStart + kPreprocess + kInput + kOutput));
  for (const char* index : {"1", "-1", "", "x", "99999999999999999999"}) {
    says("number of an input", "input=0", std::string("input=") + index);
  }
  says("'input' is missing", "input=0 ", "");
  says("layout 'NCWH' is unknown", "NCHW", "NCWH");
  says("color 'rgb' is unknown", "RGB", "rgb");
  says("fit 'outside' is unknown", "inside", "outside");
  says("method '\\x1b' is unknown", "bilinear", "\x1b");
  says("pad_place 'left' is unknown", "top_left", "left");
  says("needs resize=height,width", "resize=256,250", "resize=256");
  says("needs resize=height,width", "resize=256,250 ", "");
  for (const char* sides : {"0,1", "1", "1,2,3", "", "65537,1", "-1,4", "1.5,2"}) {
    says("crop must be height,width", "crop=224,223", std::string("crop=") + sides);
    says("pad must be height,width", "pad=320,319", std::string("pad=") + sides);
  }
  says("'pad_value' is missing", "pad_value=114 ", "");
  says("'pad_place' is unknown", "pad=320,319 pad_value=114 ", "");
  says("'sharpness' is unknown", "input=0", "input=0 sharpness=3");
  for (const char* numbers : {"", "1,", "1,2", "1,2,3,4", "256", "-1", "nan", "1;2"}) {
    says("pad_value ", "pad_value=114", std::string("pad_value=") + numbers);
  }
  says("mean must be", "123.675", "1e31");
  says("std must not be 0", "std=58", "std=58,0,58");
  says("std must not be 0", "std=58", "std=1e-31");
  says("mean must be one number, from -1e30 to 1e30", "color=RGB", "color=GRAY");
}

TEST("an unknown dtype is named, printably") {
  CHECK_SAYS("'complex64'", parse(with(kGood, "dtype=float32", "dtype=complex64")));
  CHECK_SAYS("\\x1b[31m", parse(with(kGood, "dtype=float32", "dtype=\x1b[31m")));
}

TEST("text cut anywhere never passes for the whole") {
  for (size_t size = 0; size + kOutput.size() < kGood.size(); ++size) CHECK(!parse(kGood.substr(0, size)).ok());
}

TEST("a missing descriptor, a folder and a huge file are said") {
  Descriptor d;
  CHECK_SAYS("No such file", read_descriptor(check::path("nothing.txt"), &d));
  CHECK_SAYS("not a regular file", read_descriptor(check::scratch(), &d));
  CHECK_SAYS("at most", read_descriptor(check::write("huge.txt", std::string(2 << 20, 'a')), &d));
}

CHECK_MAIN
