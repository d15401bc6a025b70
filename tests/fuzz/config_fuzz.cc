#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/json.h"
#include "checkpoint/model_config.h"
#include "checkpoint/modules.h"

// Any text as config.json and, at the same time, as generation_config.json.

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using nibble::Json;
  const auto json = Json::Parse({reinterpret_cast<const char*>(data), size});
  if (!json) return 0;
  const auto again = Json::Parse(nibble::WriteJson(*json));
  NIBBLE_CHECK(again && *again == *json, "what was written does not read back the same");

  const auto config = nibble::checkpoint::ParseModelConfig(*json, &*json);
  if (!config) return 0;
  const auto modules = nibble::checkpoint::ListModules(*config);
  NIBBLE_CHECK(modules.size() >= 2 + 10 * static_cast<size_t>(config->n_layers),
               "modules are missing");
  for (const auto& module : modules) {
    NIBBLE_CHECK(!module.name.empty() && module.n > 0 && module.k >= 0,
                 "a module without a name or a size");
    // Elements of one module, as later layers will count them.
    int64_t elements = 0;
    const int64_t rows =
        module.experts > 0 ? int64_t{3} * module.experts * module.moe_intermediate : module.n;
    NIBBLE_CHECK(!__builtin_mul_overflow(rows, module.k, &elements), "a size that overflows");
  }
  return 0;
}
