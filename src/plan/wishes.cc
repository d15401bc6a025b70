#include "plan/wishes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

namespace nibble::plan {
namespace {

struct Alias {
  std::string_view name;
  Backend backend;
};

// Ours first, then what upstream calls the same role.
constexpr Alias kAliases[] = {
    {"reference", Backend::kReference},
    {"cpu", Backend::kCpu},
    {"marlin", Backend::kMarlin},
    {"hopper", Backend::kHopper},
    {"b12x", Backend::kB12x},
    {"cutlass", Backend::kCutlass},
    {"emulation", Backend::kReference},
    {"humming", Backend::kHopper},
    {"flashinfer_b12x", Backend::kB12x},
    {"flashinfer_cutlass", Backend::kCutlass},
    {"flashinfer_trtllm", Backend::kCutlass},
    {"flashinfer_cutedsl", Backend::kCutlass},
};

/// What a backend can be forced for by name.
struct Slot {
  std::string_view name;
  std::optional<Backend> Wishes::*member;
};
constexpr Slot kSlots[] = {{"nvfp4", &Wishes::nvfp4},
                           {"fp8", &Wishes::fp8},
                           {"bf16", &Wishes::bf16},
                           {"draft", &Wishes::draft}};

std::string Fold(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

}  // namespace

Result<std::optional<Backend>> ParseBackend(std::string_view name) {
  const std::string folded = Fold(name);
  if (folded == "auto") return std::optional<Backend>{};
  std::vector<std::string> known;
  for (const Alias& alias : kAliases) {
    if (alias.name == folded) return std::optional<Backend>{alias.backend};
    known.push_back(fmt::format("'{}'", alias.name));
  }
  return Err(ErrorCode::kInvalidArgument, "moe_backend='{}' is not supported. Expected one of [{}]",
             name.substr(0, 64), fmt::join(known, ", "));
}

Result<void> ParseMoeBackend(std::string_view text, Wishes* wishes) {
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view item = text.substr(0, comma);
    text = comma == text.npos ? std::string_view{} : text.substr(comma + 1);
    const size_t equals = item.find('=');
    if (equals == item.npos) {
      NIBBLE_TRY(wishes->any, ParseBackend(item));
      continue;
    }
    const std::string scheme = Fold(item.substr(0, equals));
    NIBBLE_TRY(const std::optional<Backend> backend, ParseBackend(item.substr(equals + 1)));
    const auto slot = std::find_if(std::begin(kSlots), std::end(kSlots),
                                   [&](const Slot& s) { return s.name == scheme; });
    if (slot == std::end(kSlots)) {
      return Err(
          ErrorCode::kInvalidArgument,
          "moe_backend scheme '{}' is not known. Expected one of ['nvfp4', 'fp8', 'bf16', 'draft']",
          scheme.substr(0, 64));
    }
    wishes->*slot->member = backend;
  }
  return {};
}

Result<void> ParseSpeculation(std::string_view text, Wishes* wishes) {
  wishes->draft_tokens = 0;
  if (text.empty() || Fold(text) == "none") return {};
  if (text.size() == 5 && Fold(text.substr(0, 4)) == "mtp:" && text[4] >= '1' &&
      text[4] <= '0' + kMaxDraftTokens) {
    wishes->draft_tokens = text[4] - '0';
    return {};
  }
  return Err(ErrorCode::kInvalidArgument,
             "speculation '{}'; expected 'none' or 'mtp:K' with K in 1 … {}", text.substr(0, 64),
             kMaxDraftTokens);
}

Result<void> ParseKvDtype(std::string_view text, Wishes* wishes) {
  const std::string folded = Fold(text);
  wishes->kv_dtype.reset();
  if (folded == "f32") wishes->kv_dtype = KvDtype::kF32;
  if (folded == "bf16") wishes->kv_dtype = KvDtype::kBf16;
  if (folded == "fp8") wishes->kv_dtype = KvDtype::kFp8;
  if (folded == "auto" || wishes->kv_dtype) return {};
  return Err(
      ErrorCode::kInvalidArgument,
      "KV cache dtype '{}'; expected 'auto' (what the checkpoint declares), 'f32', 'bf16' or "
      "'fp8'",
      text.substr(0, 64));
}

Result<void> ParseActivationPrecision(std::string_view text, Wishes* wishes) {
  const std::string folded = Fold(text);
  wishes->bf16_activations = folded == "bf16";
  if (folded == "auto" || folded == "bf16") return {};
  Error error = Err(ErrorCode::kInvalidArgument,
                    "activation precision '{}'; expected 'auto' (the checkpoint's own) or 'bf16'",
                    text.substr(0, 64));
  error.hint = "a precision below the checkpoint's label is never run";
  return error;
}

}  // namespace nibble::plan
