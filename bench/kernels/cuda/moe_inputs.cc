#include "moe_inputs.h"

#include <algorithm>

#include "kernels/cuda/moe_mma.h"
#include "kernels/cuda/sm90_moe_inspect.h"

namespace nibble::bench {

namespace {

bool IsFp8(const Sm90MoeShape& s) { return s.weights == HopperFormat::kFp8; }
int NotOfFp8(const Sm90MoeShape& s) { return IsFp8(s) ? 0 : 1 << 20; }
int OfFp8(const Sm90MoeShape& s) { return IsFp8(s) ? 1 << 20 : 0; }
int OfDecode(const Sm90MoeShape& s) { return IsFp8(s) ? 0 : cuda::Sm90MoeDecodeMaxTokens(s); }

}  // namespace

const Kernel kKernels[4] = {
    {"decode", cuda::LaunchSm90MoeDecode, cuda::Sm90MoeDecodeWorkspace, OfDecode,
     cuda::CopySm90MoeDecodeHidden, nullptr},
    {"prefill", cuda::LaunchSm90MoePrefill, cuda::Sm90MoePrefillWorkspace, NotOfFp8,
     cuda::CopySm90MoePrefillHidden, nullptr},
    {"mma", cuda::LaunchMoeMma, cuda::MoeMmaWorkspace, NotOfFp8, cuda::CopyMoeMmaHidden, nullptr},
    {"fp8", cuda::LaunchMoeMma, cuda::MoeMmaWorkspace, OfFp8, cuda::CopyMoeMmaHidden,
     cuda::CopyMoeMmaHiddenScales},
};

const char* NameOf(Routing r) {
  const char* names[] = {"uniform", "skewed", "one-expert", "with-invalid"};
  return names[static_cast<int>(r)];
}

Routes::Routes(const Sm90MoeShape& s, int tokens, Routing how, uint32_t seed)
    : ids_host(tokens * s.top_k) {
  std::mt19937 random(seed);
  std::vector<float> w(ids_host.size());
  for (int t = 0; t < tokens; ++t) {
    float sum = 0;
    for (int k = 0; k < s.top_k; ++k) {
      int32_t& id = ids_host[t * s.top_k + k];
      const auto taken = [&] { return std::find(&ids_host[t * s.top_k], &id, id) != &id; };
      int tries = 0;
      do {
        id = static_cast<int>(random() % s.experts);
        if (how == Routing::kSkewed && random() % 3) id %= std::max(1, s.experts / 16);
      } while (taken() && ++tries < 200);
      if (how == Routing::kOneExpert && k == 0) id = s.experts - 1;
      sum += w[t * s.top_k + k] = 0.1f + float(random() % 1000) / 1000;
    }
    for (int k = 0; k < s.top_k; ++k) w[t * s.top_k + k] /= sum;
    if (how != Routing::kWithInvalid) continue;
    for (int k = 0; k < s.top_k; ++k) {
      if (random() % 3 == 0 || t == 1) ids_host[t * s.top_k + k] = random() % 2 ? -1 : s.experts;
    }
  }
  ids = Buffer<int32_t>(ids_host);
  weights = Buffer<float>(w);
}

int Routes::Touched(int experts) const {
  std::vector<char> seen(experts);
  for (int id : ids_host) {
    if (id >= 0 && id < experts) seen[id] = 1;
  }
  return static_cast<int>(std::count(seen.begin(), seen.end(), 1));
}

}  // namespace nibble::bench
