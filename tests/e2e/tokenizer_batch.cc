// Encodes many texts for tokenizer_differential.py: `tokenizer_batch DIR [PATTERN_FILE]`. Reads
// frames of a little-endian uint32 length and so many bytes from stdin until it ends; writes for
// each a uint32 count and so many int32 ids. PATTERN_FILE replaces the split pattern of the
// tokenizer.json. With "-t" first, texts are timed and a line a text is written instead: bytes,
// ids, seconds.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

constexpr uint64_t kMaxFileBytes = 64 << 20;

Result<text::Tokenizer> LoadWithPattern(const std::string& dir, const char* pattern_file) {
  if (!pattern_file) return text::Tokenizer::Load(dir);
  NIBBLE_TRY(const std::string text, ReadFile(dir + "/tokenizer.json", kMaxFileBytes));
  NIBBLE_TRY(const std::string pattern, ReadFile(pattern_file, kMaxFileBytes));
  NIBBLE_TRY(Json json, Json::Parse(text));
  const Json* steps = json.Find("pre_tokenizer")->Find("pretokenizers");
  Json split = steps->array()[0];
  Json::Object by;
  by.emplace_back("Regex", pattern);
  split.Set("pattern", Json(by));
  Json::Array changed = steps->array();
  changed[0] = split;
  Json sequence = *json.Find("pre_tokenizer");
  sequence.Set("pretokenizers", Json(changed));
  json.Set("pre_tokenizer", sequence);
  return text::Tokenizer::FromJson(WriteJson(json), {});
}

int Run(const text::Tokenizer& tokenizer, bool timed) {
  std::string text;
  uint32_t length = 0;
  while (std::fread(&length, sizeof length, 1, stdin) == 1) {
    text.resize(length);
    if (std::fread(text.data(), 1, length, stdin) != length) return 1;
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer.Encode(text);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (!ids) {
      std::fprintf(stderr, "%s\n", ids.error().Message().c_str());
      return 1;
    }
    if (timed) {
      std::printf("%u %zu %.6f\n", length, ids->size(), took.count());
      continue;
    }
    const auto count = static_cast<uint32_t>(ids->size());
    std::fwrite(&count, sizeof count, 1, stdout);
    std::fwrite(ids->data(), sizeof(int32_t), count, stdout);
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  const bool timed = argc > 1 && std::string_view(argv[1]) == "-t";
  if (timed) ++argv, --argc;
  if (argc < 2) return 2;
  const auto tokenizer = nibble::LoadWithPattern(argv[1], argc > 2 ? argv[2] : nullptr);
  if (!tokenizer) {
    std::fprintf(stderr, "%s\n", tokenizer.error().Message().c_str());
    return 1;
  }
  return nibble::Run(*tokenizer, timed);
}
