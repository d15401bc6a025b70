#include "plan/oracle.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "plan/wishes.h"

namespace nibble::plan {
namespace {

using kernels::Operation;

DeviceInfo Cpu(CpuIsa isa) {
  DeviceInfo d;
  d.isa = isa;
  d.present = true;
  return d;
}

struct ChooseCase {
  const char* what;
  Operation operation;
  QuantScheme scheme;
  CpuIsa isa;
  std::optional<Backend> forced;
  const char* expected;  // kernel id
};

TEST(Oracle, ChoosesTheBestRowThatFits) {
  const ChooseCase kCases[] = {
      {"W4A16 experts",
       Operation::kExperts,
       kW4A16,
       CpuIsa::kAvx512Bf16,
       {},
       "avx512bf16_nvfp4_bf16_experts"},
      {"W4A4 experts",
       Operation::kExperts,
       kW4A4,
       CpuIsa::kAvx512Bf16,
       {},
       "avx512bf16_nvfp4_nvfp4_experts"},
      {"no bf16 dot",
       Operation::kExperts,
       kW4A16,
       CpuIsa::kAvx512,
       {},
       "avx512_nvfp4_bf16_experts"},
      {"AVX2", Operation::kLinear, kW4A16, CpuIsa::kAvx2, {}, "avx2_nvfp4_bf16_linear"},
      {"scalar", Operation::kLinear, kW4A4, CpuIsa::kScalar, {}, "scalar_nvfp4_nvfp4_linear"},
      {"bf16",
       Operation::kLinear,
       kBf16Scheme,
       CpuIsa::kAvx512Bf16,
       {},
       "avx512bf16_bf16_bf16_linear"},
      {"forced reference", Operation::kExperts, kW4A16, CpuIsa::kAvx512Bf16, Backend::kReference,
       "reference_nvfp4_f64_experts"},
      {"forced reference W4A4", Operation::kExperts, kW4A4, CpuIsa::kScalar, Backend::kReference,
       "reference_nvfp4_nvfp4_experts"},
      {"glue", Operation::kGlue, kBf16Scheme, CpuIsa::kAvx2, {}, "cpu_f32_glue"},
  };
  for (const ChooseCase& c : kCases) {
    auto choice = Choose({c.operation, c.scheme}, Cpu(c.isa), c.forced);
    ASSERT_TRUE(choice.ok()) << c.what << ": " << choice.error().Message();
    EXPECT_EQ(choice->row->id, c.expected) << c.what;
    ASSERT_EQ(choice->row->schemes.size(), 1u) << c.what;
    EXPECT_EQ(choice->row->schemes[0], c.scheme)
        << c.what << ": never a precision that was not asked for";
  }
}

TEST(Oracle, EveryFp8PairRunsOnTheCpuAndInReference) {
  for (const QuantScheme& scheme : kFp8Schemes) {
    for (Operation operation : {Operation::kExperts, Operation::kLinear}) {
      const std::string op = operation == Operation::kExperts ? "experts" : "linear";
      auto best = Choose({operation, scheme}, Cpu(CpuIsa::kAvx2), {});
      ASSERT_TRUE(best.ok()) << PairName(scheme) << ": " << best.error().Message();
      EXPECT_EQ(best->row->id, "avx2_fp8_" + op) << PairName(scheme);
      auto reference = Choose({operation, scheme}, Cpu(CpuIsa::kScalar), Backend::kReference);
      ASSERT_TRUE(reference.ok()) << PairName(scheme) << ": " << reference.error().Message();
      EXPECT_EQ(reference->row->id, "reference_fp8_" + op) << PairName(scheme);
    }
  }
}

TEST(Oracle, AForcedBackendThatIsUnfitIsRefusedInTheFieldsWordsAndNeverReplaced) {
  // FP8's sentences print the backend without quotes, as upstream's do.
  const QuantScheme fp8 = {kFp8StaticTensor, kFp8StaticTensor};
  auto cutlass = Choose({Operation::kExperts, fp8}, Cpu(CpuIsa::kAvx512Bf16), Backend::kCutlass);
  ASSERT_FALSE(cutlass.ok());
  EXPECT_EQ(cutlass.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(
      cutlass.error().what,
      "FP8 MoE backend CUTLASS does not support the deployment configuration since kernel does not "
      "support current device cpu: "
      "needs CUDA compute capability 10.0 or 10.3; kernel does not support quantization scheme "
      "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)xQuantKey(f8e4m3fn,scale(f32,"
      "static,per_tensor),symmetric)");
}

TEST(Oracle, AForcedBackendWithoutAnyKernelHereSaysSo) {
  auto choice = Choose({Operation::kExperts, kW4A16}, Cpu(CpuIsa::kAvx512Bf16), Backend::kMarlin);
  ASSERT_FALSE(choice.ok());
  EXPECT_NE(choice.error().what.find(
                "NvFp4 MoE backend 'MARLIN' does not support the deployment configuration"),
            std::string::npos);
}

TEST(Oracle, AutomaticFailureCarriesEveryCandidatesReasons) {
  DeviceInfo gpu;
  gpu.kind = DeviceKind::kCuda;
  gpu.name = "sm_75";
  auto choice = Choose({Operation::kExperts, kW4A16, Activation::kSitu, true}, gpu, {});
  ASSERT_FALSE(choice.ok());
  const std::string& text = choice.error().what;
  EXPECT_NE(text.find("No NvFp4 MoE backend supports the deployment configuration."),
            std::string::npos);
  for (const char* part :
       {"CPU: ", "REFERENCE: ", "kernel does not support current device sm_75: runs on a CPU",
        "kernel does not support MoEActivation.SITU activation",
        "kernel does not support expert biases"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
  }
}

TEST(Oracle, EveryRuleIsListedWithWhatItMeasured) {
  const kernels::CatalogueRow* row = nullptr;
  for (const auto& r : kernels::Catalogue()) {
    if (r.id == "avx512bf16_nvfp4_bf16_experts") row = &r;
  }
  ASSERT_NE(row, nullptr);
  const auto reasons = ReasonsAgainst(*row, {Operation::kExperts, kW4A4, Activation::kSilu, true},
                                      Cpu(CpuIsa::kAvx2));
  ASSERT_EQ(reasons.size(), 3u);
  EXPECT_EQ(reasons[0].text, "current device cpu: needs avx512bf16, has avx2");
  EXPECT_EQ(reasons[1].text.substr(0, 20), "quantization scheme ");
  EXPECT_EQ(reasons[2].text, "expert biases");
}

TEST(Catalogue, IdsAreUniqueAndSayTheirActivationPrecision) {
  std::vector<std::string_view> ids;
  for (const auto& row : kernels::Catalogue()) {
    EXPECT_EQ(std::count(ids.begin(), ids.end(), row.id), 0) << row.id;
    ids.push_back(row.id);
    const bool fp4_activations = row.id.find("nvfp4_nvfp4") != row.id.npos;
    const bool w4a4 = row.schemes.size() == 1 && row.schemes[0] == kW4A4;
    EXPECT_EQ(fp4_activations, w4a4) << row.id;
  }
}

TEST(Wishes, BackendNamesAndUpstreamAliases) {
  struct Case {
    const char* name;
    Backend backend;
  };
  const Case kCases[] = {{"reference", Backend::kReference},
                         {"REFERENCE", Backend::kReference},
                         {"emulation", Backend::kReference},
                         {"cpu", Backend::kCpu},
                         {"Marlin", Backend::kMarlin},
                         {"humming", Backend::kHopper},
                         {"b12x", Backend::kB12x},
                         {"flashinfer-b12x", Backend::kB12x},
                         {"flashinfer_trtllm", Backend::kCutlass},
                         {"FlashInfer-CuteDSL", Backend::kCutlass}};
  for (const Case& c : kCases) {
    auto parsed = ParseBackend(c.name);
    ASSERT_TRUE(parsed.ok()) << c.name;
    EXPECT_EQ(*parsed, c.backend) << c.name;
  }
  EXPECT_EQ(*ParseBackend("auto"), std::nullopt);
  auto unknown = ParseBackend("triton");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().what.substr(0, 75),
            "moe_backend='triton' is not supported. Expected one of ['reference', 'cpu',");
}

TEST(Wishes, PerSchemeBackends) {
  Wishes wishes;
  ASSERT_TRUE(ParseMoeBackend("nvfp4=reference,BF16=cpu", &wishes).ok());
  EXPECT_EQ(wishes.nvfp4, Backend::kReference);
  EXPECT_EQ(wishes.bf16, Backend::kCpu);
  EXPECT_EQ(wishes.any, std::nullopt);
  EXPECT_FALSE(ParseMoeBackend("int4=cpu", &wishes).ok());
  EXPECT_FALSE(ParseMoeBackend("nvfp4=", &wishes).ok());
}

TEST(Wishes, APrecisionBelowTheLabelCannotBeAskedFor) {
  Wishes wishes;
  for (const char* text : {"fp4", "int8", "fp8", ""}) {
    EXPECT_FALSE(ParseActivationPrecision(text, &wishes).ok()) << text;
  }
  EXPECT_TRUE(ParseActivationPrecision("bf16", &wishes).ok());
  EXPECT_TRUE(wishes.bf16_activations);
}

}  // namespace
}  // namespace nibble::plan
