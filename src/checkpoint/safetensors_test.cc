#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/log.h"
#include "checkpoint/test_shard.h"

namespace nibble::checkpoint {
namespace {

using namespace std::string_literals;

std::string Repeat(std::string_view text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

std::string LengthOnly(uint64_t length, std::string_view rest) {
  std::string out = MakeShard("", 0);
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(length >> (8 * i));
  return out + std::string(rest);
}

/// `"name":{"dtype":…,"shape":…,"data_offsets":…}`
std::string T(std::string_view name, std::string_view dtype, std::string_view shape,
              std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}
std::string H(const std::string& inner) { return "{" + inner + "}"; }

const std::string kByteA = T("a", "U8", "[1]", "[0,1]");

struct Probe {
  const char* what;
  std::string file;
  const char* refusal;  // part of the message; null: accepted
};

std::string File(const std::string& header, size_t data = 0) { return MakeShard(header, data); }

/// The fifty files that were put to the reference implementation (safetensors 0.8.0). `refusal` is
/// Nibble's verdict, which is stricter in the rows marked "stricter".
std::vector<Probe> Probes() {
  const std::string tail = R"("shape":[1],"data_offsets":[0,1]})";
  return {
      {"ok f32[2]", File(H(T("a", "F32", "[2]", "[0,8]")), 8), nullptr},
      {"empty file", "", "0 bytes long"},
      {"7 bytes", std::string(7, '\0'), "7 bytes long"},
      {"n = 0", LengthOnly(0, ""), "does not begin with '{'"},
      {"n = 2^63", LengthOnly(uint64_t{1} << 63, "{}"), "expected at most 100000000"},
      {"n = 100000001", LengthOnly(100000001, "{}"), "expected at most 100000000"},
      {"n > file", LengthOnly(1000, "{}"), "only 2 bytes follow"},
      {"no tensors (stricter)", File("{}"), "no tensors"},
      {"leading space (stricter)", File(" {}"), "does not begin with '{'"},
      {"trailing spaces", File(H(kByteA) + "   ", 1), nullptr},
      {"trailing newline and tab (stricter)", File(H(kByteA) + "\n\t ", 1), "only spaces"},
      {"trailing NUL", File(H(kByteA) + "\0"s, 1), "only spaces"},
      {"trailing data bytes", File(H(kByteA), 2), "tensors end here"},
      {"truncated data", File(H(T("a", "U8", "[2]", "[0,2]")), 1), "holds 1 bytes of data"},
      {"hole", File(H(kByteA + "," + T("b", "U8", "[1]", "[2,3]")), 3), "belong to no tensor"},
      {"hole at start", File(H(T("a", "U8", "[1]", "[1,2]")), 2), "belong to no tensor"},
      {"overlap", File(H(T("a", "U8", "[2]", "[0,2]") + "," + T("b", "U8", "[2]", "[1,3]")), 3),
       "shares bytes"},
      {"alias of a range",
       File(H(T("a", "U8", "[2]", "[0,2]") + "," + T("b", "U8", "[2]", "[0,2]")), 2),
       "shares bytes"},
      {"begin > end", File(H(T("a", "U8", "[1]", "[1,0]")), 1), "end before they begin"},
      {"header order is not offset order", File(H(T("b", "U8", "[1]", "[1,2]") + "," + kByteA), 2),
       nullptr},
      {"shape and bytes differ", File(H(T("a", "F32", "[2]", "[0,4]")), 4), "needs 8 bytes"},
      {"shape product overflows", File(H(T("a", "F32", "[1099511627776,1099511627776]", "[0,0]"))),
       "more bytes than 64 bits can count"},
      {"a dim above 2^40 (stricter)", File(H(T("a", "F32", "[0,4611686018427387904]", "[0,0]"))),
       "expected at most 1099511627776"},
      {"zero-size", File(H(T("a", "F32", "[0]", "[0,0]"))), nullptr},
      {"scalar", File(H(T("a", "F32", "[]", "[0,4]")), 4), nullptr},
      {"negative dim", File(H(T("a", "F32", "[-1]", "[0,4]")), 4), "no plain non-negative integer"},
      {"float dim", File(H(T("a", "U8", "[1.0]", "[0,1]")), 1), "no plain non-negative integer"},
      {"unknown dtype", File(H(T("a", "F7", "[1]", "[0,1]")), 1), "dtype \"F7\""},
      {"lower-case dtype", File(H(T("a", "f32", "[1]", "[0,4]")), 4), "dtype \"f32\""},
      {"a name twice (stricter)", File(H(kByteA + "," + kByteA), 1), "the name stands here twice"},
      {"a name twice, another dtype (stricter)",
       File(H(kByteA + "," + T("a", "I8", "[1]", "[0,1]")), 1), "the name stands here twice"},
      {"inner field twice", File(R"({"a":{"dtype":"U8","dtype":"I8",)" + tail + "}", 1),
       "\"dtype\" stands here twice"},
      {"__metadata__ twice",
       File(R"({"__metadata__":{"x":"1"},"__metadata__":{"x":"2"},)" + kByteA + "}", 1),
       "\"__metadata__\" stands here twice"},
      {"extra inner field (stricter)",
       File(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"z":1}})", 1),
       "unknown field \"z\""},
      {"three offsets", File(H(T("a", "U8", "[1]", "[0,1,2]")), 1), "more than 2 numbers"},
      {"metadata is no string", File(R"({"__metadata__":{"x":1},)" + kByteA + "}", 1),
       "an object of strings"},
      {"metadata is nested", File(R"({"__metadata__":{"x":{}}})"), "an object of strings"},
      {"not UTF-8", File(H(T("\xff", "U8", "[1]", "[0,1]")), 1), "not UTF-8"},
      {"empty name (stricter)", File(H(T("", "U8", "[1]", "[0,1]")), 1), "is empty"},
      {"NUL in a name (stricter)", File(H(T("a\\u0000b", "U8", "[1]", "[0,1]")), 1),
       "control character"},
      {"a name like a path", File(H(T("../../x", "U8", "[1]", "[0,1]")), 1), nullptr},
      {"lone surrogate", File(H(T("\\ud800", "U8", "[1]", "[0,1]")), 1), "surrogate"},
      {"odd count of F4", File(H(T("a", "F4", "[3]", "[0,2]")), 2), "no whole number of bytes"},
      {"F4 [2]", File(H(T("a", "F4", "[2]", "[0,1]")), 1), nullptr},
      {"F8_E4M3", File(H(T("a", "F8_E4M3", "[1]", "[0,1]")), 1), nullptr},
      {"misaligned f32", File(H(kByteA + "," + T("b", "F32", "[1]", "[1,5]")), 5), nullptr},
      {"BOM", File("\xef\xbb\xbf{}"), "does not begin with '{'"},
      {"nested 200 deep", File("{\"a\":" + Repeat("[", 200) + Repeat("]", 200) + "}"),
       "a tensor to be an object"},
      {"1e0 as an offset", File(H(T("a", "U8", "[1]", "[0,1e0]")), 1),
       "no plain non-negative integer"},
      {"a comment", File("{/*x*/}"), "found '/'"},
  };
}

TEST(Safetensors, JudgesTheFiftyProbes) {
  const auto probes = Probes();
  ASSERT_EQ(probes.size(), 50u);
  for (const Probe& probe : probes) {
    SCOPED_TRACE(probe.what);
    auto tensors = SafetensorsFile::ParseHeader(BytesOf(probe.file));
    ASSERT_EQ(tensors.ok(), probe.refusal == nullptr)
        << (tensors ? "accepted" : tensors.error().Message());
    if (tensors) continue;
    EXPECT_EQ(tensors.error().code, ErrorCode::kCorruptFile);
    EXPECT_NE(tensors.error().what.find(probe.refusal), std::string::npos)
        << tensors.error().Message();
    EXPECT_FALSE(tensors.error().where.empty());
  }
}

TEST(Safetensors, RefusesEveryProbeWithBytesAppended) {
  for (const Probe& probe : Probes()) {
    for (size_t extra : {1, 7, 8, 9, 4095}) {
      SCOPED_TRACE(fmt::format("{} and {} bytes", probe.what, extra));
      // The one file that lacked exactly one byte is whole now.
      const bool whole = std::string_view(probe.what) == "truncated data" && extra == 1;
      EXPECT_EQ(SafetensorsFile::ParseHeader(BytesOf(probe.file + std::string(extra, '\0'))).ok(),
                whole);
    }
  }
}

TEST(Safetensors, JudgesWhatTheProbesLeaveOpen) {
  const std::string long_name(1024, 'n');
  const std::vector<Probe> cases = {
      {"name of 1024 bytes", File(H(T(long_name, "U8", "[1]", "[0,1]")), 1), nullptr},
      {"name of 1025 bytes", File(H(T(long_name + "n", "U8", "[1]", "[0,1]")), 1),
       "longer than 1024"},
      {"name with ESC", File(H(T("a\\u001b[2J", "U8", "[1]", "[0,1]")), 1), "control character"},
      {"name with DEL", File(H(T("a\x7f", "U8", "[1]", "[0,1]")), 1), "control character"},
      {"name with U+009B", File(H(T("a\xC2\x9B", "U8", "[1]", "[0,1]")), 1), "control character"},
      {"name with U+00A0", File(H(T("a\xC2\xA0", "U8", "[1]", "[0,1]")), 1), nullptr},
      {"rank 8", File(H(T("a", "U8", "[1,1,1,1,1,1,1,2]", "[0,2]")), 2), nullptr},
      {"rank 9", File(H(T("a", "U8", "[1,1,1,1,1,1,1,1,2]", "[0,2]")), 2), "more than 8 numbers"},
      {"dim 2^40 beside 0", File(H(T("a", "U8", "[0,1099511627776]", "[0,0]"))), nullptr},
      {"dim of 2^64", File(H(T("a", "U8", "[18446744073709551616]", "[0,0]"))),
       "plain non-negative"},
      {"bits overflow where bytes do not",
       File(H(T("a", "C64", "[1099511627776,4194304]", "[0,0]"))), "more bytes than 64 bits"},
      {"offset 2^64-1",
       File(H(T("a", "U8", "[1]", "[18446744073709551615,18446744073709551615]")), 1),
       "holds 1 bytes of data"},
      {"one offset", File(H(T("a", "U8", "[1]", "[0]")), 1), "two data_offsets"},
      {"offsets as an object", File(H(T("a", "U8", "[1]", "{}")), 1), "is no array"},
      {"offset as a string", File(H(T("a", "U8", "[1]", "[0,\"1\"]")), 1), "plain non-negative"},
      {"no shape", File(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1),
       "expected a dtype, a shape"},
      {"no dtype", File(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1),
       "expected a dtype, a shape"},
      {"no offsets", File(R"({"a":{"dtype":"U8","shape":[1]}})", 1), "expected a dtype, a shape"},
      {"dtype is a number", File(R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1),
       "is no string"},
      {"shape twice",
       File(R"({"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", 1), "twice"},
      {"offsets twice",
       File(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}})", 1),
       "twice"},
      {"tensor is null", File(R"({"a":null})"), "a tensor to be an object"},
      {"metadata is null", File(R"({"__metadata__":null,)" + kByteA + "}", 1),
       "an object of strings"},
      {"metadata only", File(R"({"__metadata__":{"format":"pt"}})"), "no tensors"},
      {"metadata key twice", File(R"({"__metadata__":{"x":"1","x":"1"},)" + kByteA + "}", 1),
       "\"x\" twice"},
      {"metadata behind a tensor", File("{" + kByteA + R"(,"__metadata__":{"x":""}})", 1), nullptr},
      {"spaces inside", File("{ " + kByteA + "\n}", 1), nullptr},
      {"a second value", File("{" + kByteA + "} {}", 1), "expected the end of the text"},
      {"an array", File("[" + kByteA + "]", 1), "does not begin with '{'"},
      {"length ends inside the JSON", LengthOnly(40, H(kByteA)), "only spaces"},
      {"name twice by an escape", File(H(kByteA + "," + T("\\u0061", "U8", "[1]", "[1,2]")), 2),
       "twice"},
      {"zero-size among others",
       File(H(T("z", "F32", "[0]", "[1,1]") + "," + kByteA + "," + T("b", "U8", "[1]", "[1,2]")),
            2),
       nullptr},
      {"zero-size inside another",
       File(H(T("a", "U8", "[2]", "[0,2]") + "," + T("z", "F32", "[0]", "[1,1]")), 2),
       "shares bytes"},
      {"6-bit elements", File(H(T("a", "F6_E2M3", "[4]", "[0,3]")), 3), nullptr},
      {"6-bit elements, no whole bytes", File(H(T("a", "F6_E3M2", "[3]", "[0,3]")), 3),
       "no whole number"},
  };
  for (const Probe& c : cases) {
    SCOPED_TRACE(c.what);
    auto tensors = SafetensorsFile::ParseHeader(BytesOf(c.file));
    ASSERT_EQ(tensors.ok(), c.refusal == nullptr)
        << (tensors ? "accepted" : tensors.error().Message());
    if (!tensors) {
      EXPECT_NE(tensors.error().what.find(c.refusal), std::string::npos)
          << tensors.error().Message();
    }
  }
}

TEST(Safetensors, GivesEveryTensorItsBytesInTheOrderOfTheData) {
  const std::string file =
      MakeShard(H(T("b", "BF16", "[2,1]", "[4,8]") + ",\"__metadata__\":{\"format\":\"pt\"}," +
                  T("a", "U8", "[4]", "[0,4]") + "," + T("c", "F32", "[]", "[8,12]")),
                12);
  auto tensors = SafetensorsFile::ParseHeader(BytesOf(file));
  ASSERT_TRUE(tensors) << tensors.error().Message();
  ASSERT_EQ(tensors->size(), 3u);
  const struct {
    const char* name;
    DType dtype;
    std::vector<uint64_t> shape;
    size_t begin, size;
  } kExpected[] = {{"a", DType::kU8, {4}, 0, 4},
                   {"b", DType::kBf16, {2, 1}, 4, 4},
                   {"c", DType::kF32, {}, 8, 4}};
  for (size_t i = 0; i < 3; ++i) {
    const TensorInfo& t = (*tensors)[i];
    EXPECT_EQ(t.name, kExpected[i].name);
    EXPECT_EQ(t.dtype, kExpected[i].dtype);
    EXPECT_EQ(t.shape, kExpected[i].shape);
    ASSERT_EQ(t.data.size(), kExpected[i].size);
    EXPECT_EQ(std::to_integer<size_t>(t.data[0]),
              kExpected[i].begin);  // the data count their bytes
  }
}

TEST(Safetensors, LenientWarnsOfUnknownFields) {
  std::vector<std::string> lines;
  SetLogSink([&](LogLevel, std::string_view line) { lines.emplace_back(line); },
             LogLevel::kWarning);
  const std::string file =
      MakeShard(R"({"a":{"dtype":"U8","z":{"y":[1,{}]},"shape":[1],"data_offsets":[0,1]}})", 1);
  EXPECT_FALSE(SafetensorsFile::ParseHeader(BytesOf(file)));
  EXPECT_TRUE(lines.empty());
  EXPECT_TRUE(SafetensorsFile::ParseHeader(BytesOf(file), {.lenient = true}));
  SetLogSink(nullptr, LogLevel::kError);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_NE(lines[0].find("unknown_field=\"z\""), std::string::npos) << lines[0];
}

TEST(Safetensors, ErrorsSayFileByteTensorAndWhatToDo) {
  TestDir dir;
  dir.Write("m.safetensors", MakeShard(H(T("x.weight", "F32", "[2,3]", "[0,24]")), 20));
  auto file = SafetensorsFile::Open(dir.path() + "/m.safetensors");
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().Message(),
            dir.path() +
                "/m.safetensors: header byte 63: tensor \"x.weight\": data_offsets [0,24], but the "
                "file holds 20 "
                "bytes of data; the file is damaged or cut short; download it again");
  auto absent = SafetensorsFile::Open(dir.path() + "/n.safetensors");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, ErrorCode::kNotFound);
}

// What follows is about damage to a good file.

const std::string& SmallShard() {
  static const std::string file = MakeShard(
      H(R"("__metadata__":{"format":"pt"},)" + T("model.w", "U8", "[8,32]", "[0,256]") + "," +
        T("model.s", "F8_E4M3", "[8,4]", "[256,288]") + "," +
        T("model.g", "F32", "[]", "[288,292]") + "," + T("model.n", "BF16", "[10]", "[292,312]")) +
          "  ",
      312);
  return file;
}

size_t HeaderEnd() { return SmallShard().size() - 312; }

TEST(Safetensors, RefusesAFileCutAnywhere) {
  ASSERT_TRUE(SafetensorsFile::ParseHeader(BytesOf(SmallShard())));
  for (size_t n = 0; n < SmallShard().size(); ++n) {
    EXPECT_FALSE(SafetensorsFile::ParseHeader(BytesOf(SmallShard().substr(0, n)))) << n;
  }
}

TEST(Safetensors, ABitFlippedInTheHeaderChangesNoShapeTypeOrBytesUnnoticed) {
  const auto good = SafetensorsFile::ParseHeader(BytesOf(SmallShard()));
  ASSERT_TRUE(good);
  int accepted = 0;
  for (size_t byte = 0; byte < HeaderEnd(); ++byte) {
    for (int bit = 0; bit < 8; ++bit) {
      SCOPED_TRACE(fmt::format("byte {} bit {}", byte, bit));
      std::string file = SmallShard();
      file[byte] = static_cast<char>(file[byte] ^ (1 << bit));
      const auto tensors = SafetensorsFile::ParseHeader(BytesOf(file));
      if (!tensors) continue;
      ++accepted;  // a letter of a name or of the metadata: nothing in the file can tell
      ASSERT_EQ(tensors->size(), good->size());
      const auto file_begin = reinterpret_cast<const std::byte*>(file.data());
      const auto good_begin = reinterpret_cast<const std::byte*>(SmallShard().data());
      for (size_t i = 0; i < good->size(); ++i) {
        EXPECT_EQ((*tensors)[i].dtype, (*good)[i].dtype);
        EXPECT_EQ((*tensors)[i].shape, (*good)[i].shape);
        EXPECT_EQ((*tensors)[i].data.size(), (*good)[i].data.size());
        EXPECT_EQ((*tensors)[i].data.data() - file_begin, (*good)[i].data.data() - good_begin);
      }
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(DTypes, AreNamedAsTheFormatNamesThem) {
  const std::map<std::string, unsigned> kBits = {
      {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
      {"U16", 16}, {"F16", 16},    {"BF16", 16},   {"I32", 32},    {"U32", 32},
      {"F32", 32}, {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  EXPECT_EQ(kBits.size(), kDTypes.size());
  std::set<DType> seen;
  for (const auto& [name, bits] : kBits) {
    const auto dtype = ParseDType(name);
    ASSERT_TRUE(dtype) << name;
    EXPECT_EQ(BitsOf(*dtype), bits) << name;
    EXPECT_EQ(NameOf(*dtype), name);
    EXPECT_TRUE(seen.insert(*dtype).second) << name;
  }
  for (const char* name : {"", "f32", "F", "F322", "F8", "F8_E4M3FN", "U4"})
    EXPECT_FALSE(ParseDType(name)) << name;
}

}  // namespace
}  // namespace nibble::checkpoint
