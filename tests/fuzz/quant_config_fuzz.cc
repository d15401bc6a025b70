#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/json.h"
#include "scheme/detect.h"

// The input is {"config": …, "hf": …}: both files of a checkpoint that say how it is quantized.
// Whatever they say, every module gets a scheme with its evidence or an error with a text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::scheme::ModuleClass;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto input = nibble::Json::Parse(text);
  if (!input) return 0;
  const nibble::Json* config = input->Find("config");
  if (!config) return 0;
  auto quant = nibble::scheme::ReadQuantConfig(*config, input->FindSet("hf"));
  if (!quant) {
    if (quant.error().what.empty()) std::abort();
    return 0;
  }
  constexpr nibble::scheme::ModuleQuery kModules[] = {
      {"model.embed_tokens", ModuleClass::kOther},
      {"model.layers.0.self_attn.q_proj"},
      {"model.layers.0.self_attn.k_proj"},
      {"model.layers.1.mlp.gate", ModuleClass::kOther},
      {"model.layers.1.mlp.experts", ModuleClass::kExperts, 3},
      {"model.language_model.layers.0.mlp.shared_expert.up_proj"},
      {"mtp.fc"},
      {"lm_head"},
  };
  for (const auto& module : kModules) {
    auto scheme = quant->SchemeOf(module);
    if (scheme ? scheme->evidence.empty() : scheme.error().what.empty()) std::abort();
  }
  (void)quant->SchemesOf(kModules);
  return 0;
}
