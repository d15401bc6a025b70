#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <span>
#include <sstream>
#include <string>
#include <string_view>

#include "plan/oracle.h"
#include "plan/test_oracle_rows.h"
#include "plan/wishes.h"

namespace nibble::plan {
namespace {

using kernels::Operation;

// The text of upstream's keys (U 2), and what else recurs.
const std::map<std::string, std::string, std::less<>> kWords = {
    {"W4A16",
     "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, col=16)),scale2(f32,static,per_tensor),"
     "symmetric)xNone"},
    {"W4A4",
     "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, col=16)),scale2(f32,static,per_tensor),"
     "symmetric)xQuantKey(u8,scale(f8e4m3fn,dynamic,GroupShape(row=1, col=16)),scale2(f32,static,"
     "per_tensor),symmetric)"},
    {"W4A4-token",
     "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, col=16)),scale2(f32,static,per_tensor),"
     "symmetric)xQuantKey(u8,scale(f8e4m3fn,dynamic,GroupShape(row=1, col=16)),scale2(f32,dynamic,"
     "per_token),symmetric)"},
    {"W4A8",
     "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, col=16)),scale2(f32,static,per_tensor),"
     "symmetric)xQuantKey(f8e4m3fn,scale(f32,dynamic,per_token),symmetric)"},
    {"W8A8",
     "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)xQuantKey(f8e4m3fn,scale(f32,static,"
     "per_tensor),symmetric)"},
    {"W8A16", "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)xNone"},
    {"W8A8-token",
     "QuantKey(f8e4m3fn,scale(f32,static,per_channel),symmetric)xQuantKey(f8e4m3fn,scale(f32,"
     "dynamic,per_token),symmetric)"},
    {"W8A8-block",
     "QuantKey(f8e4m3fn,scale(f32,static,GroupShape(row=128, col=128)),symmetric)xQuantKey(f8e4m3fn"
     ",scale(f32,dynamic,GroupShape(row=1, col=128)),symmetric)"},
    {"BF16", "NonexNone"},
    {"no", "kernel does not support"},
    {"since", "does not support the deployment configuration since"},
    {"none", "backend supports the deployment configuration."},
    {"cutlass", "needs CUDA compute capability 10.0 or 10.3"},
    {"b12x", "needs CUDA compute capability 12.0 to 12.1"},
    {"hopper", "needs CUDA compute capability 9.0"},
    {"marlin", "needs CUDA compute capability 8.0 or newer"},
    {"host", "runs on a CPU"},
    {"absent", "kernel not in this build"},
    {"names",
     "['reference', 'cpu', 'marlin', 'hopper', 'b12x', 'cutlass', 'emulation', 'humming', "
     "'flashinfer_b12x', 'flashinfer_cutlass', 'flashinfer_trtllm', 'flashinfer_cutedsl']"},
};

std::string Expand(std::string_view text, const std::string& device) {
  std::string out;
  while (!text.empty()) {
    const size_t dollar = text.find('$');
    out += text.substr(0, dollar);
    if (dollar == text.npos) break;
    text.remove_prefix(dollar + 1);
    size_t end = 0;
    while (end < text.size() &&
           (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '-'))
      ++end;
    const std::string_view word = text.substr(0, end);
    const auto known = kWords.find(word);
    if (word == "d") {
      out += "kernel does not support current device " + device + ":";
    } else if (known != kWords.end()) {
      out += known->second;
    } else {
      ADD_FAILURE() << "no such word: $" << word;
    }
    text.remove_prefix(end);
  }
  return out;
}

QuantScheme SchemeNamed(const std::string& name) {
  QuantKey token = kNvfp4Dynamic;
  token.scale2 = ScaleDesc{ScalarType::kF32, false, GroupShape::PerToken()};
  const std::map<std::string, QuantScheme> schemes = {
      {"W4A16", {kNvfp4Static, {}}},
      {"W4A4", {kNvfp4Static, kNvfp4Dynamic}},
      {"W4A4-token", {kNvfp4Static, token}},
      {"W4A8", {kNvfp4Static, kFp8DynamicToken}},
      {"W8A8", {kFp8StaticTensor, kFp8StaticTensor}},
      {"W8A16", {kFp8StaticTensor, {}}},
      {"W8A16-channel", {kFp8StaticChannel, {}}},
      {"W8A16-block", {kFp8StaticBlock128, {}}},
      {"W8A8-channel", {kFp8StaticChannel, kFp8StaticTensor}},
      {"W8A8-dynamic", {kFp8StaticTensor, kFp8DynamicToken}},
      {"W8A8-token", {kFp8StaticChannel, kFp8DynamicToken}},
      {"W8A8-block", {kFp8StaticBlock128, kFp8Dynamic128}},
      {"BF16", {}},
  };
  return schemes.at(name);
}

/// "experts W4A16 gelu tp=2 ep=1 k=1 H=96 I=48 E=8 bias router", "linear W8A8 tp=2 N=96 in":
/// operation and scheme first; k is top-k; "in", "out" or "padded" is what ranks share of a linear.
Need NeedOf(const char* text) {
  const std::map<std::string, Operation> operations = {
      {"experts", Operation::kExperts}, {"linear", Operation::kLinear}, {"glue", Operation::kGlue}};
  const std::map<std::string, Activation> activations = {
      {"silu", Activation::kSilu},
      {"swigluoai", Activation::kSwigluOai},
      {"swigluoai_uninterleave", Activation::kSwigluOaiUninterleave},
      {"relu2_no_mul", Activation::kRelu2NoMul},
      {"gelu", Activation::kGelu},
      {"gelu_tanh", Activation::kGeluTanh},
      {"swiglustep", Activation::kSwigluStep},
      {"situ", Activation::kSitu}};
  const std::map<std::string, Split> splits = {
      {"in", Split::kInput}, {"out", Split::kOutput}, {"padded", Split::kPadded}};
  std::istringstream in(text);
  std::string word;
  Need need;
  in >> word;
  need.operation = operations.at(word);
  in >> word;
  need.scheme = SchemeNamed(word);
  if (need.operation == Operation::kExperts) {
    need.intermediate = 768;
    need.top_k = 8;
  }
  if (need.operation != Operation::kGlue) need.input = 2048;
  while (in >> word) {
    const size_t equals = word.find('=');
    if (word == "bias") {
      need.bias = true;
    } else if (word == "router") {
      need.router_weight_on_input = true;
    } else if (splits.count(word)) {
      need.split = splits.at(word);
    } else if (equals == word.npos) {
      need.activation = activations.at(word);
    } else {
      const int value = std::stoi(word.substr(equals + 1));
      const std::string name = word.substr(0, equals);
      if (name == "tp") need.tp_size = value;
      if (name == "ep") need.ep_size = value;
      if (name == "k") need.top_k = value;
      if (name == "H") need.input = value;
      if (name == "I") need.intermediate = value;
      if (name == "E") need.experts = value;
      if (name == "N") need.output = value;
    }
  }
  return need;
}

DeviceInfo DeviceNamed(std::string_view text) {
  DeviceInfo device;
  device.present = text.starts_with("here ");
  if (device.present) text.remove_prefix(5);
  device.name = text;
  if (text.starts_with("sm_")) {
    device.kind = DeviceKind::kCuda;
    device.compute_capability = std::stoi(std::string(text.substr(3)));
    return device;
  }
  const std::map<std::string_view, CpuIsa> isas = {{"cpu-scalar", CpuIsa::kScalar},
                                                   {"cpu-avx2", CpuIsa::kAvx2},
                                                   {"cpu-avx512", CpuIsa::kAvx512},
                                                   {"cpu-avx512bf16", CpuIsa::kAvx512Bf16}};
  device.isa = isas.at(text);
  return device;
}

bool IsRefusal(const OracleRow& row) {
  return std::string_view(row.expected).find(' ') != std::string_view::npos;
}

/// The row's expectation in this build.
std::string Expected(const OracleRow& row) {
  std::istringstream ids(row.if_built);
  for (std::string id; ids >> id;) {
    for (const kernels::CatalogueRow& k : kernels::Catalogue()) {
      if (k.id == id && k.built) return id;
    }
  }
  return Expand(row.expected, DeviceNamed(row.device).name);
}

std::string Answer(const OracleRow& row, Error* error) {
  const auto forced = ParseBackend(row.backend);
  if (!forced) return forced.error().what;
  const auto choice = Choose(NeedOf(row.need), DeviceNamed(row.device), *forced);
  if (choice) return std::string(choice->row->id);
  *error = choice.error();
  return error->what;
}

const std::span<const OracleRow> kTables[] = {kAutoW4A16, kAutoW4A4, kAutoOthers,     kLinears,
                                              kMarlin,    kHopper,   kB12xRows,       kCutlassRows,
                                              kHosts,     kNames,    kActivationRows, kParallelRows,
                                              kShapeRows, kBiasRows, kRouterRows};

TEST(OracleTable, AnswersEveryRow) {
  for (const std::span<const OracleRow> table : kTables) {
    for (const OracleRow& row : table) {
      SCOPED_TRACE(testing::Message() << row.cites << ": " << row.device << ", " << row.need << ", "
                                      << row.backend << "; " << row.note);
      const std::string expected = Expected(row);
      Error error;
      const std::string answer = Answer(row, &error);
      if (expected.starts_with('~')) {
        EXPECT_NE(answer.find(expected.substr(1)), answer.npos) << answer;
      } else {
        EXPECT_EQ(answer, expected);
      }
    }
  }
}

// A refusal for programs says what the one for people says (P 5, and P's JSON): the same names and
// clauses, each with a reason.
TEST(OracleTable, CandidatesOfARefusalAreItsText) {
  for (const std::span<const OracleRow> table : kTables) {
    for (const OracleRow& row : table) {
      Error error;
      const std::string answer = Answer(row, &error);
      if (error.what.empty()) continue;
      SCOPED_TRACE(answer);
      EXPECT_EQ(error.code, ErrorCode::kUnsupported);
      const bool automatic = answer.starts_with("No ");
      if (!automatic) {
        EXPECT_LE(error.candidates.size(), 1u);
      }
      std::string lines;
      for (const Candidate& candidate : error.candidates) {
        EXPECT_FALSE(candidate.reasons.empty());
        std::string clauses;
        for (const std::string& reason : candidate.reasons)
          clauses += (clauses.empty() ? "" : "; ") + reason;
        if (automatic) {
          lines += "\n  " + candidate.name + ": " + clauses;
        } else {
          EXPECT_TRUE(answer.ends_with(" since " + clauses));
        }
      }
      if (automatic) {
        EXPECT_TRUE(answer.ends_with("configuration." + lines));
      }
    }
  }
}

TEST(OracleTable, IsWideEnough) {
  int rows = 0, refusals = 0, whole_automatic = 0;
  std::set<std::string> asked, devices, names;
  for (const std::span<const OracleRow> table : kTables) {
    for (const OracleRow& row : table) {
      ++rows;
      refusals += IsRefusal(row);
      whole_automatic += std::string_view(row.expected).starts_with("No ");
      EXPECT_TRUE(*row.cites);
      const std::string question = std::string(row.device) + ", " + row.need + ", " + row.backend;
      EXPECT_TRUE(asked.insert(question).second) << "asked twice: " << question;
      devices.insert(DeviceNamed(row.device).name);
      names.insert(row.backend);
    }
  }
  RecordProperty("rows", rows);
  RecordProperty("refusals", refusals);
  RecordProperty("whole_automatic_refusals", whole_automatic);
  EXPECT_GE(rows, 250);
  EXPECT_GE(3 * refusals, rows) << refusals << " of " << rows;
  EXPECT_GE(whole_automatic, 15);
  for (const char* device :
       {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120",
        "sm_121", "cpu-scalar", "cpu-avx2", "cpu-avx512", "cpu-avx512bf16"})
    EXPECT_TRUE(devices.count(device)) << device;
  for (const char* name : {"marlin", "humming", "b12x", "flashinfer_b12x", "cutlass",
                           "flashinfer_cutlass", "flashinfer_trtllm", "emulation"})
    EXPECT_TRUE(names.count(name)) << name;
}

}  // namespace
}  // namespace nibble::plan
