#include "moe_inputs.h"

#include <algorithm>

#include "kernels/cuda/moe_mma.h"
#include "kernels/cuda/sm90_moe_inspect.h"

namespace nibble::bench {

const Kernel kKernels[3] = {
    {"decode", cuda::LaunchSm90MoeDecode, cuda::Sm90MoeDecodeWorkspace,
     cuda::Sm90MoeDecodeMaxTokens, cuda::CopySm90MoeDecodeHidden},
    {"prefill", cuda::LaunchSm90MoePrefill, cuda::Sm90MoePrefillWorkspace,
     [](const Sm90MoeShape&) { return 1 << 20; }, cuda::CopySm90MoePrefillHidden},
    {"mma", cuda::LaunchMoeMma, cuda::MoeMmaWorkspace, [](const Sm90MoeShape&) { return 1 << 20; },
     cuda::CopyMoeMmaHidden},
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
