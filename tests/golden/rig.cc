#include "rig.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "base/file.h"
#include "engine/sampler.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda/cuda.h"

namespace nibble::golden {

Result<std::unique_ptr<Rig>> Rig::Open(const std::string& dir, const plan::Wishes& wishes,
                                       CpuIsa isa, const MakeOperators& make) {
  auto rig = std::make_unique<Rig>();
  NIBBLE_TRY(rig->checkpoint, checkpoint::Checkpoint::Open(dir));
  NIBBLE_TRY(rig->plan, plan::MakePlan(rig->checkpoint, kernels::cpu::DescribeCpu(isa), wishes));
  NIBBLE_TRY(rig->weights, weights::LoadWeights(rig->checkpoint, rig->plan, rig->pool));
  rig->operators = make ? make(rig->plan.glue, isa, rig->pool)
                        : std::make_unique<kernels::HostOperators>(rig->plan.glue, isa, rig->pool,
                                                                   rig->plan.batch_invariant);
  NIBBLE_TRY(rig->model,
             model::QwenMoe::Create(rig->plan.model, rig->weights, *rig->operators,
                                    {1, 1024, rig->plan.kv_dtype, rig->plan.draft_tokens + 1}));
  return rig;
}

Result<std::unique_ptr<Rig>> Rig::OpenOnCuda(const std::string& dir, const plan::Wishes& wishes,
                                             bool graphs) {
  NIBBLE_TRY(checkpoint::Checkpoint checkpoint, checkpoint::Checkpoint::Open(dir));
  return OpenOnCuda(std::move(checkpoint), wishes, graphs);
}

Result<std::unique_ptr<Rig>> Rig::OpenOnCuda(checkpoint::Checkpoint checkpoint,
                                             const plan::Wishes& wishes, bool graphs) {
  auto rig = std::make_unique<Rig>();
  rig->checkpoint = std::move(checkpoint);
  NIBBLE_TRY(const DeviceInfo gpu, cuda::DescribeDevice());
  NIBBLE_TRY(rig->plan, plan::MakePlan(rig->checkpoint, gpu, wishes));
  NIBBLE_TRY(rig->weights, weights::LoadWeights(rig->checkpoint, rig->plan, rig->pool));
  NIBBLE_TRY(rig->device, cuda::MakeOperators({graphs}));
  NIBBLE_TRY(rig->model,
             model::QwenMoe::Create(rig->plan.model, rig->weights, *rig->device,
                                    {1, 1024, rig->plan.kv_dtype, rig->plan.draft_tokens + 1}));
  return rig;
}

std::vector<std::vector<float>> Rig::Logits(std::span<const int32_t> ids, int64_t first,
                                            int64_t batch) {
  const int64_t n = static_cast<int64_t>(ids.size()), vocab = plan.model.vocab;
  std::vector<std::vector<float>> out;
  for (int64_t start = 0; start < n; start += batch) {
    const int64_t rows = std::min(batch, n - start);
    const kernels::SequenceRows sequence{0, 0, rows, start};
    model->Forward(ids.subspan(start, rows), {&sequence, 1});
    for (int64_t r = std::max<int64_t>(first - start, 0); r < rows; ++r) {
      out.emplace_back(vocab, NAN);
      NIBBLE_CHECK(model->Logits({&r, 1}, out.back()).ok(), "logits failed");
    }
  }
  return out;
}

Reference::Reference(const std::string& path) {
  if (auto file = checkpoint::SafetensorsFile::Open(path)) file_ = *std::move(file);
}

const checkpoint::TensorInfo* Reference::Find(const std::string& name) const {
  for (const auto& t : file_->tensors()) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

std::vector<float> Reference::Floats(const std::string& name) const {
  const auto* t = Find(name);
  NIBBLE_CHECK(t != nullptr && t->dtype == checkpoint::DType::kF32,
               "no such float tensor in the reference");
  std::vector<float> out(t->data.size() / 4);
  std::memcpy(out.data(), t->data.data(), t->data.size());
  return out;
}

std::vector<int32_t> Reference::Ints(const std::string& name) const {
  const auto* t = Find(name);
  NIBBLE_CHECK(t != nullptr && t->dtype == checkpoint::DType::kI32,
               "no such int tensor in the reference");
  std::vector<int32_t> out(t->data.size() / 4);
  std::memcpy(out.data(), t->data.data(), t->data.size());
  return out;
}

int Reference::prompts() const {
  int n = 0;
  while (Has(fmt::format("p{}.ids", n))) ++n;
  return n;
}

std::string TestData() {
  const char* value = std::getenv("NIBBLE_TEST_DATA");
  return value == nullptr ? "" : value;
}

std::vector<Subject> MiniCheckpoints() {
  const std::string source = NIBBLE_SOURCE_DIR, data = TestData();
  // Perplexities: models/README.md's table and the references' own (12 windows of 512 held-out
  // tokens).
  std::vector<Subject> out = {
      {"qwen3-moe-mini-modelopt-W4A16_NVFP4", source + "/models/qwen3-moe-mini",
       source + "/tests/golden/references/qwen3-moe-mini-modelopt-W4A16_NVFP4.native.safetensors",
       false, 27.551, 27.551}};
  if (data.empty()) return out;
  out[0].reference = data + "/references/" + out[0].name + ".native.safetensors";
  const Subject kMore[] = {{"qwen3-moe-mini-modelopt-NVFP4", "", "", true, 28.029, 27.551},
                           {"qwen3-moe-mini-ct-NVFP4A16", "", "", false, 27.553, 27.553},
                           {"qwen3-moe-mini-ct-NVFP4", "", "", true, 27.970, 27.553}};
  for (Subject s : kMore) {
    s.dir = data + "/checkpoints/" + s.name;
    s.reference = data + "/references/" + s.name + ".native.safetensors";
    out.push_back(std::move(s));
  }
  return out;
}

std::vector<Subject> HybridCheckpoints() {
  const std::string data = TestData();
  if (data.empty()) return {};
  std::vector<Subject> out;
  for (const char* end : {"modelopt-W4A16_NVFP4", "ct-NVFP4A16", "modelopt-mixed"}) {
    Subject s;
    s.name = std::string("qwen3.6-moe-mini-") + end;
    s.dir = data + "/checkpoints/" + s.name;
    s.reference = data + "/references/" + s.name + ".native.safetensors";
    s.w4a4 = std::string_view(end) == "modelopt-mixed";
    out.push_back(std::move(s));
  }
  return out;
}

std::vector<Subject> TinyCheckpoints() {
  const std::string here = std::string(NIBBLE_SOURCE_DIR) + "/tests/golden/";
  std::vector<Subject> out;
  const auto add = [&](const std::string& name, const char* mode, bool w4a4) {
    out.push_back({name, here + "tiny/" + name,
                   here + "references/tiny-" + name + "." + mode + ".safetensors", w4a4, 0, 0});
  };
  add("modelopt-w4a16", "a16", false);
  add("ct-nvfp4a16", "a16", false);
  add("modelopt-nvfp4", "native", true);
  add("ct-nvfp4", "native", true);
  return out;
}

double RelativeL2(std::span<const float> a, std::span<const float> b) {
  NIBBLE_CHECK(a.size() == b.size(), "vectors of different length");
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  const double relative = std::sqrt(difference / norm);
  return std::isnan(relative) ? HUGE_VAL : relative;  // a NaN must fail every comparison
}

std::vector<CpuIsa> IsasHere() {
  std::vector<CpuIsa> out;
  for (CpuIsa isa : {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (kernels::cpu::HasIsa(isa)) out.push_back(isa);
  }
  return out;
}

namespace {

struct RoutedRow {
  std::vector<float> probabilities;
  std::vector<int32_t> chosen;  // ascending
};

/// The routing of every (layer, token) of a run over ids, layer by layer.
std::vector<RoutedRow> RoutesOf(Rig& rig, std::span<const int32_t> ids) {
  std::vector<RoutedRow> out;
  rig.operators->Observe({[&](int64_t, std::span<const float> p, std::span<const int32_t> chosen) {
                            out.push_back({{p.begin(), p.end()}, {chosen.begin(), chosen.end()}});
                            std::sort(out.back().chosen.begin(), out.back().chosen.end());
                          },
                          {}});
  rig.Logits(ids, static_cast<int64_t>(ids.size()) - 1);
  rig.operators->Observe({});
  return out;
}

}  // namespace

double FirstRouterNearTie(Rig& rig, Rig& truth, std::span<const int32_t> ids) {
  const auto got = RoutesOf(rig, ids), want = RoutesOf(truth, ids);
  for (size_t i = 0; i < want.size(); ++i) {
    if (got[i].chosen == want[i].chosen) continue;
    std::vector<float> p = want[i].probabilities;
    std::sort(p.begin(), p.end(), std::greater<>());
    const size_t k = want[i].chosen.size();
    const double gap = (p[k - 1] - p[k]) / p[k - 1];
    std::cout << "  router near-tie: layer " << i / ids.size() << " token " << i % ids.size()
              << ", gap " << 100 * gap << " %\n";
    return gap;
  }
  return HUGE_VAL;
}

std::vector<size_t> SureStepsThatDiffer(Rig& rig, const Reference& want, int p, int64_t batch) {
  auto ids = want.Ints(fmt::format("p{}.ids", p));
  const auto greedy = want.Ints(fmt::format("p{}.greedy", p));
  const auto margin = want.Floats(fmt::format("p{}.margin", p));
  const int64_t first = static_cast<int64_t>(ids.size()) - 1;
  ids.insert(ids.end(), greedy.begin(), greedy.end() - 1);
  const auto logits = rig.Logits(ids, first, batch);
  std::vector<size_t> differ;
  for (size_t i = 0; i < greedy.size(); ++i) {
    if (margin[i] > 0.1f && engine::ArgMax(logits[i]) != greedy[i]) differ.push_back(i);
  }
  return differ;
}

void ExpectSureTokens(Rig& rig, const Reference& want, int p, int64_t batch,
                      const std::string& what) {
  EXPECT_EQ(SureStepsThatDiffer(rig, want, p, batch), std::vector<size_t>())
      << what << " prompt " << p;
}

double NarrowestRoute(Rig& truth, std::span<const int32_t> ids) {
  double narrowest = HUGE_VAL;
  const auto routes = RoutesOf(truth, ids);
  for (size_t i = ids.size() - 1; i < routes.size(); i += ids.size()) {  // layer by layer
    std::vector<float> p = routes[i].probabilities;
    std::sort(p.begin(), p.end(), std::greater<>());
    const size_t k = routes[i].chosen.size();
    narrowest = std::min<double>(narrowest, (p[k - 1] - p[k]) / p[k - 1]);
  }
  return narrowest;
}

Layer0 RunLayer0(Rig& rig, const std::vector<float>& in) {
  const auto& c = rig.plan.model;
  const int64_t rows = static_cast<int64_t>(in.size()) / c.hidden;
  std::vector<float> x = in;
  Layer0 r;
  r.out.assign(in.size(), NAN);
  r.experts.resize(rows * c.top_k);
  std::vector<float> weights(rows * c.top_k);
  const kernels::Routing routing{r.experts.data(), weights.data(), c.top_k};
  const kernels::Matrix xm{x.data(), rows, c.hidden}, ym{r.out.data(), rows, c.hidden};
  const auto& layer = rig.weights.layers[0];
  rig.operators->Route(layer.router, xm, c.norm_topk_prob, routing);
  rig.operators->Experts(layer.experts, xm, routing, ym);
  if (layer.shared_gate.data != nullptr) {
    std::vector<float> gate_up(rows * layer.gate_up.n), mlp(rows * layer.down.k), down(in.size());
    const kernels::Matrix gm{gate_up.data(), rows, layer.gate_up.n},
        mm{mlp.data(), rows, layer.down.k}, dm{down.data(), rows, c.hidden};
    rig.operators->Linear(layer.gate_up, xm, gm);
    rig.operators->SiluMul(gm, mm);
    rig.operators->Linear(layer.down, mm, dm);
    rig.operators->AddSharedExpert(layer.shared_gate, xm, dm, ym);
  }
  EXPECT_TRUE(rig.operators->Finish().ok());
  return r;
}

void ExpectCpuIsNear(const Subject& s, double limit, int exceptions,
                     std::initializer_list<int64_t> parts) {
  const Reference want(s.reference);
  auto truth = Rig::Open(s.dir, Reference64(), CpuIsa::kScalar);
  ASSERT_TRUE(truth.ok());
  for (CpuIsa isa : IsasHere()) {
    auto rig = Rig::Open(s.dir, {}, isa);
    ASSERT_TRUE(rig.ok()) << rig.error().Message();
    const std::string what = fmt::format("{} {}", s.name, NameOf(isa));
    int close = 0;
    double worst = 0;
    for (int p = 0; p < want.prompts(); ++p) {
      const auto prompt = want.Ints(fmt::format("p{}.ids", p));
      const auto logits = (*rig)->Logits(prompt, static_cast<int64_t>(prompt.size()) - 1);
      const double error = RelativeL2(logits.back(), want.Floats(fmt::format("p{}.logits", p)));
      if (error <= limit) {
        ++close;
        worst = std::max(worst, error);
        ExpectSureTokens(**rig, want, p, Rig::kBatch, what + " prefill");
        for (const int64_t part : parts)
          ExpectSureTokens(**rig, want, p, part, fmt::format("{} in parts of {}", what, part));
        if (prompt.size() < 64) ExpectSureTokens(**rig, want, p, 1, what + " decode");
      } else {
        std::cout << what << " prompt " << p << ": relative L2 " << error << "\n";
        EXPECT_LT(FirstRouterNearTie(**rig, **truth, prompt), 0.02) << what << " prompt " << p;
      }
    }
    std::cout << what << ": " << close << " of " << want.prompts() << " prompts within "
              << 100 * limit << " %, the worst of them " << 100 * worst << " %\n";
    EXPECT_GE(close, want.prompts() - exceptions) << what;
  }
}

void ExpectSameOnAnyNumberOfThreads(const Subject& s) {
  const auto prompt = Reference(s.reference).Ints("p6.ids");
  std::vector<float> first;
  for (int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    auto rig = Rig::Open(s.dir, {}, IsasHere().back(), [&](Backend glue, CpuIsa isa, ThreadPool&) {
      return std::make_unique<kernels::HostOperators>(glue, isa, pool);
    });
    ASSERT_TRUE(rig.ok());
    const auto logits = (*rig)->Logits(prompt, static_cast<int64_t>(prompt.size()) - 1);
    if (first.empty()) first = logits.back();
    EXPECT_EQ(first, logits.back()) << s.name << " " << threads << " threads";
  }
}

void NoisyOperators::Embed(const CanonicalBf16& table, kernels::Matrix out) {
  HostOperators::Embed(table, out);
  auto* x = static_cast<float*>(out.data);
  for (int64_t i = 0; i < out.rows * out.cols; ++i) {
    const double uniform = engine::UniformAt(seed, static_cast<uint64_t>(i));
    x[i] *= static_cast<float>(1 + size_ * (2 * uniform - 1));
  }
}

plan::Wishes Reference64() {
  plan::Wishes wishes;
  wishes.any = Backend::kReference;
  return wishes;
}

}  // namespace nibble::golden
