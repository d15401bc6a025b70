#include "plan/plan.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "checkpoint/test_shard.h"
#include "plan/devices.h"

// Whole plans, from configurations alone: what each module of a checkpoint gets, under which
// wishes, and which refusals end it.

namespace nibble::plan {
namespace {

const std::string kExperts0 = "model.layers.0.mlp.experts",
                  kExperts1 = "model.layers.1.mlp.experts";
const std::string kQ0 = "model.layers.0.self_attn.q_proj", kO1 = "model.layers.1.self_attn.o_proj";

std::string Quotes(std::string text) {
  for (char& c : text) {
    if (c == '\'') c = '"';
  }
  return text;
}

/// A Qwen3 MoE of two layers; `fields` come after, each with its comma before it.
std::string ModelJson(const std::string& fields) {
  return Quotes(
      "{'architectures': ['Qwen3MoeForCausalLM'], 'model_type': 'qwen3_moe', "
      "'num_hidden_layers': 2, 'hidden_size': 256, 'vocab_size': 1024, 'num_attention_heads': 4, "
      "'num_key_value_heads': 2, 'head_dim': 64, 'max_position_embeddings': 4096, 'rope_theta': "
      "10000.0, 'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 128" +
      fields + "}");
}

std::string Algo(const std::string& algo, const std::string& more = "") {
  return ", 'quantization_config': {'quant_method': 'modelopt', 'quant_algo': '" + algo + "'" +
         more + "}";
}
/// MIXED_PRECISION of these modules and algorithms.
std::string Mixed(const std::vector<std::pair<std::string, std::string>>& layers) {
  std::string list;
  for (const auto& [name, algo] : layers)
    list += (list.empty() ? "'" : ", '") + name + "': {'quant_algo': '" + algo + "'}";
  return Algo("MIXED_PRECISION", ", 'quantized_layers': {" + list + "}");
}
/// The attention of both layers in FP8, after these.
std::string WithFp8Attention(std::vector<std::pair<std::string, std::string>> layers) {
  for (const char* layer : {"0", "1"}) {
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
      layers.emplace_back(std::string("model.layers.") + layer + ".self_attn." + name, "FP8");
  }
  return Mixed(layers);
}

const std::string kW4A16Mixed =
    WithFp8Attention({{kExperts0, "W4A16_NVFP4"}, {kExperts1, "W4A16_NVFP4"}});
const std::string kW4A4Mixed = WithFp8Attention({{kExperts0, "NVFP4"}, {kExperts1, "NVFP4"}});
const std::string kBothMixed = WithFp8Attention({{kExperts0, "W4A16_NVFP4"}, {kExperts1, "NVFP4"}});
const std::string kFp8Experts = WithFp8Attention({{kExperts0, "FP8"}, {kExperts1, "FP8"}});
const std::string kFp4AndFp8Experts =
    WithFp8Attention({{kExperts0, "W4A16_NVFP4"}, {kExperts1, "FP8"}});

DeviceInfo Described(const char* name) {
  auto device = FindDevice(name, {});
  EXPECT_TRUE(device.ok()) << name;
  return *device;
}

Result<Plan> PlanFor(const std::string& fields, const DeviceInfo& device, const Wishes& wishes) {
  checkpoint::TestDir dir;
  dir.Write("config.json", ModelJson(fields));
  NIBBLE_TRY(const auto opened, checkpoint::Checkpoint::Open(dir.path(), {.config_only = true}));
  return MakePlan(opened, device, wishes);
}

Result<Plan> PlanFor(const std::string& fields, const char* device, const char* backends = "") {
  Wishes wishes;
  NIBBLE_CHECK_OK(ParseMoeBackend(backends, &wishes));
  return PlanFor(fields, Described(device), wishes);
}

struct Planned {
  std::string module;
  const char* kernel;
};
void ExpectKernels(const Result<Plan>& plan, const std::vector<Planned>& expected) {
  ASSERT_TRUE(plan.ok()) << plan.error().Message();
  for (const Planned& e : expected)
    EXPECT_EQ(plan->Find(e.module).kernel->id, e.kernel) << e.module;
}

// The contract's rule 9, on devices that one has not.
TEST(MakePlan, MixedCheckpointsResolveLayerByLayer) {
  struct Case {
    const char* device;
    const char *w4a16, *w4a4, *fp8, *bf16, *glue;
  };
  const Case cases[] = {
      {"sm_121", "sm120_nvfp4_bf16_experts", "sm120_nvfp4_nvfp4_experts", "sm80_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_90", "sm90_nvfp4_bf16_experts", "sm90_nvfp4_nvfp4_experts", "sm90_fp8_linear",
       "sm90_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_100", "sm80_nvfp4_bf16_experts", "sm100_nvfp4_nvfp4_experts", "sm80_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_86", "sm80_nvfp4_bf16_experts", "sm80_nvfp4_nvfp4_experts", "sm80_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"cpu-avx2", "avx2_nvfp4_bf16_experts", "avx2_nvfp4_nvfp4_experts", "avx2_fp8_linear",
       "avx2_bf16_bf16_linear", "cpu_f32_glue"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.device);
    const auto plan = PlanFor(kBothMixed, c.device);
    ExpectKernels(plan, {{kExperts0, c.w4a16},
                         {kExperts1, c.w4a4},
                         {kQ0, c.fp8},
                         {"model.layers.0.self_attn.k_proj", c.fp8},
                         {"model.layers.0.self_attn.v_proj", c.fp8},
                         {kO1, c.fp8},
                         {"lm_head", c.bf16},
                         {"model.embed_tokens", c.glue},
                         {"model.layers.1.mlp.gate", c.glue},
                         {"model.norm", c.glue}});
  }
}

TEST(MakePlan, SaysWhatIsDeclaredWhereAndWhatRuns) {
  const auto plan = PlanFor(kBothMixed, "sm_121");
  ASSERT_TRUE(plan.ok()) << plan.error().Message();
  EXPECT_EQ(plan->source_format, SourceFormat::kModelopt);
  EXPECT_EQ(plan->device.name, "sm_121");
  const PlannedModule &a16 = plan->Find(kExperts0), &a4 = plan->Find(kExperts1);
  EXPECT_EQ(a16.declared.scheme, (QuantScheme{kNvfp4Static, std::nullopt}));
  EXPECT_EQ(a16.activation_precision(), ActivationPrecision::kBf16);
  EXPECT_EQ(a16.declared.evidence,
            "config.json: quantization_config.quantized_layers[\"model.layers.0.mlp.experts\"]"
            ".quant_algo");
  EXPECT_EQ(a4.declared.scheme, (QuantScheme{kNvfp4Static, kNvfp4Dynamic}));
  EXPECT_EQ(a4.activation_precision(), ActivationPrecision::kFp4);
  EXPECT_EQ(plan->Find(kQ0).activation_precision(), ActivationPrecision::kFp8);
  EXPECT_EQ(plan->Find("lm_head").activation_precision(), ActivationPrecision::kBf16);
  for (const PlannedModule& m : plan->modules) {
    EXPECT_EQ(m.effective, m.declared.scheme) << m.spec.name;
    ASSERT_NE(m.kernel, nullptr) << m.spec.name;
  }
  // Embedding; per layer 9 of attention and norms, router, experts; norm; lm_head.
  EXPECT_EQ(plan->modules.size(), 1u + 2 * (2 + 4 + 2 + 2) + 2);
  EXPECT_TRUE(plan->warnings.empty()) << plan->warnings[0];
  // 2 (k, v) * 2 bytes * 2 layers * 4096 tokens * 2 heads * 64.
  EXPECT_EQ(plan->context, 4096);
  EXPECT_EQ(plan->memory.kv, 4'194'304u);
}

// The contract's rule 1: W4A16 with an activation scale beside it is W4A16.
TEST(MakePlan, TensorsNeverChangeIt) {
  checkpoint::TestDir dir;
  dir.Write("config.json", ModelJson(Algo("W4A16_NVFP4")))
      .Write("model.safetensors",
             checkpoint::MakeShard(Quotes("{'model.layers.0.mlp.experts.0.gate_proj.input_scale': "
                                          "{'dtype': 'F32', 'shape': [], 'data_offsets': [0, 4]}}"),
                                   4));
  const auto opened = checkpoint::Checkpoint::Open(dir.path());
  ASSERT_TRUE(opened.ok()) << opened.error().Message();
  ASSERT_EQ(opened->tensors().size(), 1u);
  ExpectKernels(MakePlan(*opened, Described("sm_121"), {}),
                {{kExperts0, "sm120_nvfp4_bf16_experts"}, {kQ0, "sm120_nvfp4_bf16_linear"}});
}

TEST(MakePlan, CompressedTensorsGetsTheSameKernels) {
  const std::string weights =
      "{'num_bits': 4, 'type': 'float', 'strategy': 'tensor_group', 'group_size': 16, "
      "'symmetric': true}";
  const auto plan = PlanFor(
      ", 'quantization_config': {'quant_method': 'compressed-tensors', 'ignore': ['lm_head'], "
      "'config_groups': {'g': {'targets': ['Linear'], 'weights': " +
          weights + ", 'input_activations': null}}}",
      "sm_121", "flashinfer_b12x");
  ExpectKernels(plan, {{kExperts0, "sm120_nvfp4_bf16_experts"},
                       {kQ0, "sm120_nvfp4_bf16_linear"},
                       {"lm_head", "sm80_bf16_bf16_linear"}});
  EXPECT_EQ(plan->source_format, SourceFormat::kCompressedTensors);
}

// Upstream's one --moe-backend reaches the FP8 layers too and is refused there (vLLM issue 49076).
TEST(MakePlan, ABareNameBindsTheSchemesThatItCanServe) {
  ExpectKernels(PlanFor(kW4A16Mixed, "sm_121", "b12x"), {{kExperts0, "sm120_nvfp4_bf16_experts"},
                                                         {kExperts1, "sm120_nvfp4_bf16_experts"},
                                                         {kQ0, "sm80_fp8_linear"},
                                                         {"lm_head", "sm80_bf16_bf16_linear"},
                                                         {"model.norm", "cuda_bf16_glue"}});
  ExpectKernels(PlanFor(kFp4AndFp8Experts, "sm_121", "flashinfer_b12x"),
                {{kExperts0, "sm120_nvfp4_bf16_experts"},
                 {kExperts1, "sm80_fp8_experts"},
                 {kO1, "sm80_fp8_linear"}});
  ExpectKernels(PlanFor(kW4A4Mixed, "sm_100", "flashinfer_trtllm"),
                {{kExperts0, "sm100_nvfp4_nvfp4_experts"}, {kQ0, "sm80_fp8_linear"}});
  // An lm_head of the other NVFP4 scheme is no expert: the name is about those.
  ExpectKernels(
      PlanFor(Mixed({{kExperts0, "NVFP4"}, {kExperts1, "NVFP4"}, {"lm_head", "W4A16_NVFP4"}}),
              "sm_100", "cutlass"),
      {{kExperts1, "sm100_nvfp4_nvfp4_experts"}, {"lm_head", "sm80_nvfp4_bf16_linear"}});
  // Where it can serve, it binds: MARLIN everywhere, though HOPPER would be chosen.
  ExpectKernels(PlanFor(kBothMixed, "sm_90", "marlin"), {{kExperts0, "sm80_nvfp4_bf16_experts"},
                                                         {kExperts1, "sm80_nvfp4_nvfp4_experts"},
                                                         {kQ0, "sm80_fp8_linear"},
                                                         {"lm_head", "sm80_bf16_bf16_linear"}});
  ExpectKernels(PlanFor("", "sm_121", "b12x"), {{kExperts0, "sm80_bf16_bf16_experts"}});
}

TEST(MakePlan, OverridesAreOfTheirScheme) {
  struct Case {
    const char *device, *backends;
    const char *w4a16, *fp8, *bf16, *glue;
  };
  const Case cases[] = {
      {"sm_121", "nvfp4=marlin", "sm80_nvfp4_bf16_experts", "sm80_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_121", "nvfp4=b12x,fp8=marlin", "sm120_nvfp4_bf16_experts", "sm80_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_90", "nvfp4=marlin", "sm80_nvfp4_bf16_experts", "sm90_fp8_linear",
       "sm90_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_90", "fp8=marlin", "sm90_nvfp4_bf16_experts", "sm80_fp8_linear", "sm90_bf16_bf16_linear",
       "cuda_bf16_glue"},
      {"sm_90", "bf16=marlin", "sm90_nvfp4_bf16_experts", "sm90_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_90", "bf16=humming", "sm90_nvfp4_bf16_experts", "sm90_fp8_linear",
       "sm90_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_90", "marlin,nvfp4=humming", "sm90_nvfp4_bf16_experts", "sm80_fp8_linear",
       "sm80_bf16_bf16_linear", "cuda_bf16_glue"},
      {"sm_90", "nvfp4=auto", "sm90_nvfp4_bf16_experts", "sm90_fp8_linear", "sm90_bf16_bf16_linear",
       "cuda_bf16_glue"},
      {"sm_90", "draft=marlin", "sm90_nvfp4_bf16_experts", "sm90_fp8_linear",
       "sm90_bf16_bf16_linear", "cuda_bf16_glue"},
      {"cpu-avx512", "nvfp4=emulation", "reference_nvfp4_f64_experts", "avx512_fp8_linear",
       "avx512_bf16_bf16_linear", "cpu_f32_glue"},
      {"cpu-avx512", "bf16=reference", "avx512_nvfp4_bf16_experts", "avx512_fp8_linear",
       "reference_bf16_f64_linear", "reference_f64_glue"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.device) + " " + c.backends);
    ExpectKernels(
        PlanFor(kW4A16Mixed, c.device, c.backends),
        {{kExperts0, c.w4a16}, {kQ0, c.fp8}, {"lm_head", c.bf16}, {"model.norm", c.glue}});
  }
}

TEST(MakePlan, AForcedBackendNeverFallsBack) {
  const std::string a16 =
      "QuantKey(u8,scale(f8e4m3fn,static,GroupShape(row=1, col=16)),scale2(f32,static,per_tensor),"
      "symmetric)xNone";
  const std::string w8 =
      "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)xQuantKey(f8e4m3fn,scale(f32,"
      "static,per_tensor),symmetric)";
  const std::string since =
      " does not support the deployment configuration since kernel does not "
      "support ";
  struct Case {
    std::string fields;
    const char *device, *backends;
    std::string where, what;
  };
  const Case cases[] = {
      {kW4A16Mixed, "sm_100", "cutlass", kExperts0,
       "NvFp4 MoE backend 'CUTLASS'" + since + "quantization scheme " + a16},
      {kBothMixed, "sm_100", "flashinfer_cutlass", kExperts0,
       "NvFp4 MoE backend 'CUTLASS'" + since + "quantization scheme " + a16},
      {kW4A16Mixed, "sm_121", "humming", kExperts0,
       "NvFp4 MoE backend 'HOPPER'" + since +
           "current device sm_121: needs CUDA compute capability 9.0"},
      {kFp8Experts, "sm_121", "b12x", kExperts0,
       "FP8 MoE backend B12X" + since + "quantization scheme " + w8},
      {kFp4AndFp8Experts, "sm_121", "nvfp4=b12x,fp8=b12x", kExperts1,
       "FP8 MoE backend B12X" + since + "quantization scheme " + w8},
      {kW4A16Mixed, "sm_121", "fp8=b12x", kQ0,
       "FP8 linear backend B12X" + since + "quantization scheme " + w8},
      {kW4A16Mixed, "sm_121", "bf16=b12x", "lm_head",
       "BF16 linear backend 'B12X'" + since + "quantization scheme NonexNone"},
      {kW4A16Mixed, "sm_90", "emulation", kExperts0,
       "NvFp4 MoE backend 'REFERENCE'" + since + "current device sm_90: runs on a CPU"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(std::string(c.device) + " " + c.backends);
    const auto plan = PlanFor(c.fields, c.device, c.backends);
    ASSERT_FALSE(plan.ok());
    EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(plan.error().where, c.where);
    EXPECT_EQ(plan.error().what, c.what);
    ASSERT_EQ(plan.error().candidates.size(), 1u);
  }
}

TEST(MakePlan, WhereNothingRunsTheExpertsRefusalIsTold) {
  const auto plan = PlanFor(kBothMixed, "sm_75");
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().where, kExperts0);
  EXPECT_EQ(plan.error().what.substr(0, 59),
            "No NvFp4 MoE backend supports the deployment configuration.");
  EXPECT_EQ(plan.error().candidates.size(), 6u);
}

// The contract's rule 6.
TEST(MakePlan, Bf16ActivationsRaiseW4A4AndNothingElse) {
  Wishes wishes;
  ASSERT_TRUE(ParseActivationPrecision("bf16", &wishes).ok());
  const auto raised = PlanFor(kBothMixed, Described("sm_121"), wishes);
  ExpectKernels(raised, {{kExperts0, "sm120_nvfp4_bf16_experts"},
                         {kExperts1, "sm120_nvfp4_bf16_experts"},
                         {kQ0, "sm80_fp8_linear"},
                         {"lm_head", "sm80_bf16_bf16_linear"}});
  const PlannedModule& experts = raised->Find(kExperts1);
  EXPECT_EQ(experts.declared.scheme, (QuantScheme{kNvfp4Static, kNvfp4Dynamic})) << "still shown";
  EXPECT_EQ(experts.effective, (QuantScheme{kNvfp4Static, std::nullopt}));
  EXPECT_EQ(experts.activation_precision(), ActivationPrecision::kBf16);
  EXPECT_EQ(raised->Find(kQ0).activation_precision(), ActivationPrecision::kFp8);
  ASSERT_EQ(raised->warnings.size(), 1u);
  EXPECT_NE(raised->warnings[0].find("--activation-precision bf16"), std::string::npos);

  // NVFP4 linears too.
  ExpectKernels(PlanFor(Algo("NVFP4"), Described("sm_90"), wishes),
                {{kExperts0, "sm90_nvfp4_bf16_experts"},
                 {kQ0, "sm90_nvfp4_bf16_linear"},
                 {"lm_head", "sm90_nvfp4_bf16_linear"}});
  // What is W4A16 already stays, and there is nothing to warn of.
  const auto same = PlanFor(kW4A16Mixed, Described("sm_121"), wishes);
  ExpectKernels(same, {{kExperts1, "sm120_nvfp4_bf16_experts"}});
  EXPECT_TRUE(same->warnings.empty()) << same->warnings[0];
  // A raised module is W4A16 for a forced backend as well.
  wishes.any = Backend::kCutlass;
  const auto refused = PlanFor(kW4A4Mixed, Described("sm_100"), wishes);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().what.find("symmetric)xNone"), std::string::npos);
}

TEST(MakePlan, NoWishLowers) {
  for (const char* text : {"fp4", "nvfp4", "fp8", "int8", ""}) {
    Wishes wishes;
    EXPECT_FALSE(ParseActivationPrecision(text, &wishes).ok()) << text;
    EXPECT_FALSE(wishes.bf16_activations) << text;
  }
  for (const char* backend : {"auto", "marlin", "b12x"}) {
    SCOPED_TRACE(backend);
    const auto plan = PlanFor(kW4A16Mixed, "sm_121", backend);
    ASSERT_TRUE(plan.ok());
    for (const char* layer : {"0", "1"}) {
      const PlannedModule& m = plan->Find(std::string("model.layers.") + layer + ".mlp.experts");
      EXPECT_EQ(m.activation_precision(), ActivationPrecision::kBf16);
      EXPECT_NE(m.kernel->id.find("_nvfp4_bf16_"), m.kernel->id.npos) << m.kernel->id;
    }
  }
}

TEST(MakePlan, ATiedHeadIsTheEmbeddingWhateverTheLabel) {
  const auto tied = PlanFor(Algo("NVFP4") + ", 'tie_word_embeddings': true", "sm_121");
  ExpectKernels(tied, {{"lm_head", "sm80_bf16_bf16_linear"}, {kQ0, "sm120_nvfp4_nvfp4_linear"}});
  const PlannedModule& head = tied->Find("lm_head");
  EXPECT_EQ(head.declared.scheme, QuantScheme{});
  EXPECT_EQ(head.declared.evidence, "config.json: tie_word_embeddings");
  EXPECT_EQ(head.spec.n, 1024);
  EXPECT_EQ(head.spec.k, 256);
  ExpectKernels(PlanFor(Algo("NVFP4"), "sm_121"), {{"lm_head", "sm120_nvfp4_nvfp4_linear"}});
}

TEST(MakePlan, ABiasInTheAttentionIsRefusedWithItsReason) {
  for (const char* device : {"sm_121", "sm_90", "cpu-avx512bf16"}) {
    const auto plan = PlanFor(kW4A16Mixed + ", 'attention_bias': true", device);
    ASSERT_FALSE(plan.ok()) << device;
    EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
    EXPECT_EQ(plan.error().where, kQ0);
    ASSERT_EQ(plan.error().candidates.size(), 6u);
    for (const Candidate& candidate : plan.error().candidates)
      EXPECT_EQ(candidate.reasons.back(), "kernel does not support bias") << candidate.name;
  }
}

TEST(MakePlan, WhatHasNoQuantizedKernelIsRefusedWhereItIsDeclared) {
  const auto plan = PlanFor(Mixed({{"model.layers.0.mlp.gate", "FP8"}}), "sm_90");
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().what,
            "router \"model.layers.0.mlp.gate\" is declared "
            "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric)x"
            "QuantKey(f8e4m3fn,scale(f32,static,per_tensor),symmetric), but only 16 bits are "
            "computed there");
  EXPECT_EQ(plan.error().where,
            "config.json: quantization_config.quantized_layers[\"model.layers.0.mlp.gate\"]"
            ".quant_algo");
}

struct RanksCase {
  const char* device;
  int tp, ep;
  const char* experts;  // kernel, or a part of the refusal
  const char* q_proj = nullptr;
};

TEST(MakePlan, RanksReachEveryModule) {
  const RanksCase cases[] = {
      {"sm_121", 2, 1, "sm120_nvfp4_bf16_experts", "sm120_nvfp4_bf16_linear"},
      // Experts alone are spread, and B12X must have them all; linears have none.
      {"sm_121", 1, 2, "sm80_nvfp4_bf16_experts", "sm120_nvfp4_bf16_linear"},
      {"sm_90", 2, 4, "sm90_nvfp4_bf16_experts", "sm90_nvfp4_bf16_linear"},
      // More ranks than key-value heads: those are repeated.
      {"sm_90", 4, 1, "sm90_nvfp4_bf16_experts", "sm90_nvfp4_bf16_linear"},
      {"sm_90", 8, 1, "4 query heads cannot be shared by 8 tensor parallel ranks"},
      {"sm_90", 3, 1, "4 query heads cannot be shared by 3 tensor parallel ranks"},
      {"sm_90", 1, 3, "8 experts over 3 ranks is not supported: needs a multiple of 3"},
      {"cpu-avx2", 2, 1,
       "CPU: kernel does not support parallel config FusedMoEParallelConfig(tp_size=2, ep_size=1)"},
      {"cpu-avx2", 1, 2,
       "CPU: kernel does not support parallel config FusedMoEParallelConfig(tp_size=1, ep_size=2)"},
      {"sm_90", 0, 1, "tensor parallel size 0 and expert parallel size 1, expected at least 1"},
      {"sm_90", 1, -1, "tensor parallel size 1 and expert parallel size -1, expected at least 1"},
  };
  for (const RanksCase& c : cases) {
    SCOPED_TRACE(testing::Message() << c.device << " tp=" << c.tp << " ep=" << c.ep);
    Wishes wishes;
    wishes.tp_size = c.tp;
    wishes.ep_size = c.ep;
    const auto plan = PlanFor(Algo("W4A16_NVFP4"), Described(c.device), wishes);
    if (c.q_proj != nullptr) {
      ExpectKernels(plan, {{kExperts0, c.experts}, {kQ0, c.q_proj}});
    } else {
      ASSERT_FALSE(plan.ok());
      EXPECT_NE(plan.error().what.find(c.experts), std::string::npos) << plan.error().what;
    }
  }
}

// 2 layers of q 256x256, k and v 128x256, o 256x256 and 8 experts of 3 times 128x256, and a head of
// 1024x256, at 9/16 byte a weight; an embedding and two routers in 16 bits, whole on every rank; a
// bf16 cache of 2 heads of 64 and 4096 tokens.
TEST(MakePlan, MemoryIsThatOfOneRank) {
  constexpr uint64_t kLinears = 2 * 196608, kExperts = 2 * 786432, kHead = 262144;
  constexpr uint64_t kGlue = 2 * (1024 * 256 + 2 * 8 * 256);
  constexpr uint64_t kKv = 2 * 2 * 2 * 4096 * 2 * 64;
  const struct {
    int tp, ep;
    uint64_t elements, kv;
  } cases[] = {
      {1, 1, kLinears + kExperts + kHead, kKv},
      {2, 1, kLinears / 2 + kExperts / 2 + kHead / 2, kKv / 2},
      {1, 4, kLinears + kExperts / 4 + kHead, kKv},
      {2, 4, kLinears / 2 + kExperts / 8 + kHead / 2, kKv / 2},
      // q, k, v and o one head each, of 64 x 256: the two key-value heads are repeated. Experts 32
      // wide are padded to 64.
      {4, 1, 2 * 4 * 64 * 256 + kExperts / 2 + kHead / 4, kKv / 2},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << "tp=" << c.tp << " ep=" << c.ep);
    Wishes wishes;
    wishes.tp_size = c.tp;
    wishes.ep_size = c.ep;
    for (const char* device : {"sm_80", "sm_90"}) {  // MARLIN and HOPPER read one packed form
      const auto plan = PlanFor(Algo("W4A16_NVFP4"), Described(device), wishes);
      ASSERT_TRUE(plan.ok()) << plan.error().Message();
      EXPECT_EQ(plan->memory.weights, c.elements * 9 / 16 + kGlue) << device;
      EXPECT_EQ(plan->memory.kv, c.kv);
      const auto wide = PlanFor("", Described(device), wishes);  // all in 16 bits
      ASSERT_TRUE(wide.ok()) << wide.error().Message();
      EXPECT_EQ(wide->memory.weights, c.elements * 2 + kGlue) << device;
      const auto fp8 = PlanFor(Algo("FP8"), Described(device), wishes);
      ASSERT_TRUE(fp8.ok()) << fp8.error().Message();
      EXPECT_EQ(fp8->memory.weights, c.elements + kGlue) << device;
    }
  }
}

TEST(MakePlan, TheCacheKeepsWhatAttentionMultiplies) {
  const std::string w4a16 = Algo("W4A16_NVFP4"), w4a4 = Algo("NVFP4"),
                    declared = Algo("W4A16_NVFP4", ", 'kv_cache_quant_algo': 'FP8'");
  Wishes none, f32, a16;
  f32.kv_dtype = KvDtype::kF32;
  a16.bf16_activations = true;
  const struct {
    const std::string& fields;
    const char* device;
    const Wishes& wishes;
    KvDtype dtype;
    uint64_t bytes;  // of a number of a key and one of a value
  } cases[] = {
      {w4a16, "cpu-avx512bf16", none, KvDtype::kF32Bf16, 6},
      {w4a4, "cpu", none, KvDtype::kF32, 8},
      {w4a4, "cpu-avx512bf16", a16, KvDtype::kF32Bf16, 6},
      {w4a16, "cpu-avx512", none, KvDtype::kF32, 8},
      {w4a16, "cpu-avx2", none, KvDtype::kF32, 8},
      {w4a16, "cpu-avx512bf16", f32, KvDtype::kF32, 8},
      {declared, "cpu-avx512bf16", none, KvDtype::kFp8, 2},
      {declared, "cpu", f32, KvDtype::kF32, 8},
      {w4a16, "sm_90", none, KvDtype::kBf16, 4},
      {w4a4, "sm_90", none, KvDtype::kBf16, 4},
      {declared, "sm_90", none, KvDtype::kFp8, 2},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(testing::Message() << c.device << c.fields);
    const auto plan = PlanFor(c.fields, Described(c.device), c.wishes);
    ASSERT_TRUE(plan.ok()) << plan.error().Message();
    EXPECT_EQ(plan->kv_dtype, c.dtype) << plan->kv_evidence;
    EXPECT_EQ(plan->memory.kv, c.bytes * 2 * 4096 * 2 * 64);
  }
  // REFERENCE computes in double: it rounds nothing that it was not told to.
  Wishes reference;
  ASSERT_TRUE(ParseMoeBackend("reference", &reference).ok());
  const auto plan = PlanFor(w4a16, Described("cpu-avx512bf16"), reference);
  ASSERT_TRUE(plan.ok()) << plan.error().Message();
  EXPECT_EQ(plan->kv_dtype, KvDtype::kF32);
}

TEST(MakePlan, WishesThatAGpuCannotKeepAreRefused) {
  for (bool Wishes::*const wish : {&Wishes::batch_invariant, &Wishes::map_weights}) {
    Wishes wishes;
    wishes.*wish = true;
    EXPECT_TRUE(PlanFor(Algo("W4A16_NVFP4"), Described("cpu"), wishes).ok());
    const auto plan = PlanFor(Algo("W4A16_NVFP4"), Described("sm_90"), wishes);
    ASSERT_FALSE(plan.ok());
    EXPECT_EQ(plan.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(plan.error().what.find("on sm_90"), std::string::npos) << plan.error().what;
  }
}

TEST(MakePlan, AGpuKeepsNoFp32Cache) {
  Wishes wishes;
  wishes.kv_dtype = KvDtype::kF32;
  const auto plan = PlanFor(Algo("W4A16_NVFP4"), Described("sm_90"), wishes);
  ASSERT_FALSE(plan.ok());
  EXPECT_NE(plan.error().what.find("--kv-cache-dtype f32 on sm_90"), std::string::npos);
}

TEST(MakePlan, MappedWeightsAreTheFilesAndNotHeld) {
  Wishes wishes;
  auto plan = PlanFor(Algo("W4A16_NVFP4"), Described("cpu"), wishes);
  ASSERT_TRUE(plan.ok()) << plan.error().Message();
  EXPECT_FALSE(plan->map_weights);
  EXPECT_EQ(plan->memory.mapped, 0u);
  const uint64_t packed = plan->memory.weights;
  wishes.map_weights = true;
  plan = PlanFor(Algo("W4A16_NVFP4"), Described("cpu"), wishes);
  ASSERT_TRUE(plan.ok()) << plan.error().Message();
  EXPECT_TRUE(plan->map_weights);
  EXPECT_EQ(plan->memory.weights, 0u);
  EXPECT_EQ(plan->memory.mapped, packed);  // every shape above is one of whole tiles
}

// Upstream refuses such a name (its "moe_backend='…' is not supported for unquantized MoE", U 7):
// here others run what it cannot, and the plan says so.
TEST(MakePlan, ANameThatBindsNothingIsWarnedOf) {
  const struct {
    std::string fields;
    const char *device, *backends, *warning;
  } cases[] = {
      {"", "sm_121", "b12x",
       "--moe-backend B12X binds nothing: moe_backend='B12X' is not supported for unquantized MoE, "
       "which sm80_bf16_bf16_experts runs"},
      {"", "sm_121", "flashinfer_b12x", "--moe-backend B12X binds nothing: "},
      {"", "sm_100", "cutlass", "--moe-backend CUTLASS binds nothing: "},
      {"", "cpu-avx2", "b12x", "which avx2_bf16_bf16_experts runs"},
      {"", "cpu-avx2", "flashinfer_trtllm", "--moe-backend CUTLASS binds nothing: "},
      {"", "sm_90", "nvfp4=marlin",
       "--moe-backend nvfp4=MARLIN binds nothing: the checkpoint has no NVFP4 module"},
      {"", "sm_90", "fp8=humming", "the checkpoint has no FP8 module"},
      {kW4A16Mixed, "sm_90", "draft=marlin",
       "--moe-backend draft=MARLIN binds nothing: nothing drafts"},
      // What binds is not warned of, nor what the person already gave to another.
      {"", "sm_90", "marlin", nullptr},
      {"", "cpu-avx2", "reference", nullptr},
      {"", "sm_121", "b12x,bf16=marlin", nullptr},
      {kFp4AndFp8Experts, "sm_121", "b12x", nullptr},
      {kW4A16Mixed, "sm_121", "nvfp4=b12x,fp8=marlin,bf16=marlin", nullptr},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(std::string(c.device) + " " + c.backends);
    const auto plan = PlanFor(c.fields, c.device, c.backends);
    ASSERT_TRUE(plan.ok()) << plan.error().Message();
    if (c.warning == nullptr) {
      EXPECT_TRUE(plan->warnings.empty()) << plan->warnings[0];
      continue;
    }
    ASSERT_EQ(plan->warnings.size(), 1u);
    EXPECT_NE(plan->warnings[0].find(c.warning), std::string::npos) << plan->warnings[0];
  }
}

// A device that is here runs only what this build holds; the same device described is planned for.
TEST(MakePlan, APresentDeviceIsNotPlannedForWithKernelsThatAreNotBuilt) {
  DeviceInfo device = Described("sm_121");
  ASSERT_TRUE(PlanFor(Algo("W4A16_NVFP4"), device, {}).ok());
  device.present = true;
  const auto plan = PlanFor(Algo("W4A16_NVFP4"), device, {});
  if (plan) {
    for (const PlannedModule& m : plan->modules) EXPECT_TRUE(m.kernel->built) << m.spec.name;
  } else {
    EXPECT_NE(plan.error().what.find(": kernel not in this build"), std::string::npos);
  }
  DeviceInfo cpu = Described("cpu-avx2");
  cpu.present = true;
  ExpectKernels(PlanFor(Algo("W4A16_NVFP4"), cpu, {}), {{kExperts0, "avx2_nvfp4_bf16_experts"}});
}

}  // namespace
}  // namespace nibble::plan
