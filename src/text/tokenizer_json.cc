#include <array>
#include <charconv>
#include <limits>

#include "base/quoted.h"
#include "text/byte_level.h"
#include "text/normalizer.h"
#include "text/tokenizer_data.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

// Real vocabularies end below 300 000. The bound keeps one absurd id from costing gigabytes of
// table.
constexpr int64_t kMaxId = (1 << 22) - 1;
constexpr size_t kMaxAddedTokens = 1 << 16;
constexpr size_t kMaxAddedBytes = 1 << 10;
constexpr size_t kMaxAddedBytesInAll = 1 << 20;  // each may cost a trie node of 40 bytes
constexpr size_t kMaxSplitters = 16;

using VocabIds = std::unordered_map<std::string_view, int32_t>;  // views into the Json

Error Unknown(std::string_view part, std::string_view found, std::string_view expected) {
  return Err(ErrorCode::kUnsupported, "the tokenizer has {} {}, expected {}", part, Quoted(found),
             expected)
      .At("tokenizer.json");
}

Error Corrupt(std::string what) {
  return Error{ErrorCode::kCorruptFile, std::move(what), "tokenizer.json", {}};
}

/// The "type" of a component; an empty text for a component that has none.
std::string_view TypeOf(const Json& component) {
  const Json* type = component.Find("type");
  return type && type->is_string() ? std::string_view(type->string()) : std::string_view();
}

Result<bool> Flag(const Json& object, std::string_view key, bool otherwise) {
  NIBBLE_TRY(const auto value, object.GetBool(key));
  return value.value_or(otherwise);
}

/// Refuses a flag that has another value than the one that this tokenizer implements.
Result<void> ExpectFlag(const Json& object, std::string_view component, std::string_view key,
                        bool otherwise, bool expected) {
  NIBBLE_TRY(const bool value, Flag(object, key, otherwise));
  if (value == expected) return {};
  return Unknown(fmt::format("{} with {} =", component, key), value ? "true" : "false",
                 expected ? "true" : "false");
}

// --- The steps before the model ---

/// The children of a Sequence under `key`, or the component itself.
Result<std::vector<const Json*>> Flatten(const Json& component, std::string_view key) {
  std::vector<const Json*> parts;
  if (TypeOf(component) != "Sequence") return std::vector{&component};
  const Json* children = component.FindSet(key);
  if (!children || !children->is_array())
    return Corrupt(fmt::format("a Sequence without {}", Quoted(key)));
  for (const Json& child : children->array()) parts.push_back(&child);
  return parts;
}

Result<void> ReadNormalizer(const Json& tokenizer, Tokenizer::Data& data) {
  const Json* normalizer = tokenizer.FindSet("normalizer");
  if (!normalizer) return {};
  NIBBLE_TRY(const auto parts, Flatten(*normalizer, "normalizers"));
  for (const Json* part : parts) {
    if (TypeOf(*part) != "NFC") return Unknown("a normalizer", TypeOf(*part), "NFC or none");
    data.nfc = true;
  }
  if (auto can = CanNormalize(); data.nfc && !can) data.cannot_encode = std::move(can).error();
  return {};
}

Result<void> ReadSplit(const Json& split, Tokenizer::Data& data) {
  const Json* pattern = split.FindSet("pattern");
  const Json* regex = pattern ? pattern->FindSet("Regex") : nullptr;
  if (!regex || !regex->is_string())
    return Unknown("a Split by", "a pattern that is no Regex", "a Regex");
  NIBBLE_TRY(const auto named, split.GetString("behavior"));
  const std::string behavior = named.value_or("");
  if (behavior != "Isolated") return Unknown("a Split with behavior", behavior, "Isolated");
  NIBBLE_CHECK_OK(ExpectFlag(split, "a Split", "invert", false, false));
  if (data.splitters.size() == kMaxSplitters)
    return Unknown("more Splits than", "16", "at most 16");
  auto splitter = Splitter::Make(regex->string());
  if (splitter) {
    data.splitters.push_back(*std::move(splitter));
  } else if (!CanNormalize()) {  // neither library is there: the pattern was never looked at
    data.cannot_encode = std::move(splitter).error();
  } else {
    return std::move(splitter).error().At("tokenizer.json");
  }
  return {};
}

Result<void> ReadPreTokenizer(const Json& tokenizer, Tokenizer::Data& data) {
  const Json* pre_tokenizer = tokenizer.FindSet("pre_tokenizer");
  if (!pre_tokenizer) return Unknown("a pre_tokenizer", "null", "Split and ByteLevel");
  NIBBLE_TRY(const auto parts, Flatten(*pre_tokenizer, "pretokenizers"));
  for (size_t i = 0; i < parts.size(); ++i) {
    const Json& part = *parts[i];
    const bool last = i + 1 == parts.size();
    const std::string_view type = TypeOf(part);
    if (type == "Split" && !last) {
      NIBBLE_CHECK_OK(ReadSplit(part, data));
    } else if (type == "ByteLevel" && last) {
      NIBBLE_CHECK_OK(
          ExpectFlag(part, "a pre-tokenizer ByteLevel", "add_prefix_space", true, false));
      NIBBLE_CHECK_OK(ExpectFlag(part, "a pre-tokenizer ByteLevel", "use_regex", true, false));
    } else {
      return Unknown(last ? "a last pre-tokenizer" : "a pre-tokenizer", type,
                     last ? "ByteLevel" : "Split");
    }
  }
  if (parts.empty())
    return Unknown("a pre_tokenizer", "Sequence of nothing", "Split and ByteLevel");
  return {};
}

Result<void> CheckAround(const Json& tokenizer) {
  // "truncation" and "padding" are not looked at: they are defaults of a call, which the
  // reference's callers reset too.
  const Json* post = tokenizer.FindSet("post_processor");
  if (post && TypeOf(*post) != "ByteLevel")
    return Unknown("a post_processor", TypeOf(*post), "ByteLevel or none");
  const Json* decoder = tokenizer.FindSet("decoder");
  if (!decoder || TypeOf(*decoder) != "ByteLevel") {
    return Unknown("a decoder", decoder ? TypeOf(*decoder) : "null", "ByteLevel");
  }
  return {};
}

// --- The model ---

Result<void> CheckModel(const Json& model) {
  if (const Json* type = model.FindSet("type"); type && TypeOf(model) != "BPE") {
    return Unknown("a model", TypeOf(model), "BPE");
  }
  // unk_token, fuse_unk and byte_fallback cannot take effect: every byte has a token (checked
  // below).
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    NIBBLE_TRY(const auto affix, model.GetString(key));
    if (affix && !affix->empty())
      return Unknown(fmt::format("a model with {}", key), *affix, "none");
  }
  NIBBLE_TRY(const auto dropout, model.GetDouble("dropout"));
  if (dropout && *dropout != 0)
    return Unknown("a model with dropout", fmt::format("{}", *dropout), "none");
  return {};
}

Result<VocabIds> ReadVocab(const Json& model) {
  const Json* vocab = model.FindSet("vocab");
  if (!vocab || !vocab->is_object()) return Corrupt("the model has no object \"vocab\"");
  VocabIds ids;
  ids.reserve(vocab->object().size());
  for (const auto& [token, id] : vocab->object()) {
    if (!id.is_int() || id.integer() < 0 || id.integer() > kMaxId) {
      return Corrupt(fmt::format("token {} has no id of 0..{}", Quoted(token), kMaxId));
    }
    ids.emplace(token, static_cast<int32_t>(id.integer()));
  }
  return ids;
}

/// The two sides of one entry of "merges": "a b" in old files, ["a", "b"] in new ones.
std::optional<std::pair<std::string_view, std::string_view>> SidesOf(const Json& entry) {
  std::string_view left, right;
  if (entry.is_string()) {
    const std::string_view text = entry.string();
    const size_t space = text.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    left = text.substr(0, space);
    right = text.substr(space + 1);
    if (right.find(' ') != std::string_view::npos) return std::nullopt;
  } else if (entry.is_array() && entry.array().size() == 2 && entry.array()[0].is_string() &&
             entry.array()[1].is_string()) {
    left = entry.array()[0].string();
    right = entry.array()[1].string();
  }
  if (left.empty() || right.empty()) return std::nullopt;
  return std::pair(left, right);
}

Result<std::vector<Merge>> ReadMerges(const Json& model, const VocabIds& vocab) {
  const Json* entries = model.FindSet("merges");
  if (!entries || !entries->is_array()) return Corrupt("the model has no array \"merges\"");
  std::vector<Merge> merges;
  merges.reserve(entries->array().size());
  std::string joined;
  for (const Json& entry : entries->array()) {
    const auto sides = SidesOf(entry);
    if (!sides) return Corrupt(fmt::format("merge {} is no pair of tokens", merges.size()));
    joined = sides->first;
    joined += sides->second;
    const auto left = vocab.find(sides->first), right = vocab.find(sides->second),
               merged = vocab.find(joined);
    if (left == vocab.end() || right == vocab.end() || merged == vocab.end()) {
      return Corrupt(
          fmt::format("merge {} of {} and {}: not all of both and {} are in the vocabulary",
                      merges.size(), Quoted(sides->first), Quoted(sides->second), Quoted(joined)));
    }
    merges.push_back({left->second, right->second, merged->second});
  }
  return merges;
}

Result<void> ReadModel(const Json& model, const VocabIds& vocab, Tokenizer::Data& data) {
  NIBBLE_CHECK_OK(CheckModel(model));
  std::array<int32_t, 256> token_of_byte{};
  for (int byte = 0; byte < 256; ++byte) {
    std::string name;
    AppendUtf8(name, CharOfByte(static_cast<uint8_t>(byte)));
    const auto found = vocab.find(name);
    if (found == vocab.end()) {
      return Err(ErrorCode::kUnsupported,
                 "the vocabulary has no token for byte {:#04x} (written {}), expected all 256",
                 byte, Quoted(name))
          .At("tokenizer.json");
    }
    token_of_byte[byte] = found->second;
  }
  NIBBLE_TRY(const auto merges, ReadMerges(model, vocab));
  auto bpe = Bpe::Make(token_of_byte, merges);
  if (!bpe) return std::move(bpe).error().At("tokenizer.json");
  data.bpe = *std::move(bpe);
  NIBBLE_TRY(data.whole_piece_first, Flag(model, "ignore_merges", false));
  return {};
}

// --- Added tokens ---

Result<AddedToken> ReadAddedToken(const Json& entry, int64_t id, std::string_view file) {
  const auto corrupt = [&](std::string what) {
    return Error{ErrorCode::kCorruptFile, std::move(what), std::string(file), {}};
  };
  if (id < 0 || id > kMaxId)
    return corrupt(fmt::format("added token id {}, expected 0..{}", id, kMaxId));
  NIBBLE_TRY(auto content, entry.GetString("content"));
  if (!content || content->empty())
    return corrupt(fmt::format("added token {} has no content", id));
  if (content->size() > kMaxAddedBytes) {
    return corrupt(fmt::format("added token {} has {} bytes, expected at most {}", id,
                               content->size(), kMaxAddedBytes));
  }
  AddedToken token{static_cast<int32_t>(id), *std::move(content)};
  NIBBLE_TRY(token.lstrip, Flag(entry, "lstrip", false));
  NIBBLE_TRY(token.rstrip, Flag(entry, "rstrip", false));
  NIBBLE_TRY(token.special, Flag(entry, "special", false));
  NIBBLE_TRY(token.normalized, Flag(entry, "normalized", !token.special));
  NIBBLE_TRY(const bool single_word, Flag(entry, "single_word", false));
  if (single_word) {
    return Err(ErrorCode::kUnsupported, "added token {} is a single_word, which is not known here",
               Quoted(token.content))
        .At(file);
  }
  return token;
}

Result<void> Add(AddedToken token, std::string_view file, const VocabIds& vocab,
                 Tokenizer::Data& data) {
  const auto known = data.added_ids.find(token.content);
  const auto ordinary = vocab.find(token.content);
  const std::optional<int32_t> other = known != data.added_ids.end() ? std::optional(known->second)
                                       : ordinary != vocab.end() ? std::optional(ordinary->second)
                                                                 : std::nullopt;
  if (other && *other != token.id) {
    return Err(ErrorCode::kCorruptFile, "token {} has id {} and id {}", Quoted(token.content),
               *other, token.id)
        .At(file);
  }
  if (known != data.added_ids.end()) return {};  // the first file's flags hold, as in the reference
  data.added_bytes += token.content.size();
  if (data.added.size() == kMaxAddedTokens || data.added_bytes > kMaxAddedBytesInAll) {
    return Err(ErrorCode::kUnsupported, "more than {} added tokens or {} bytes of them",
               kMaxAddedTokens, kMaxAddedBytesInAll)
        .At(file);
  }
  const AddedToken& kept = data.added.emplace_back(std::move(token));
  data.added_ids.emplace(kept.content, kept.id);
  if (kept.normalized && data.nfc) {
    data.normalized_matcher.Add(Nfc(kept.content), &kept);
  } else {
    (kept.normalized ? data.normalized_matcher : data.raw_matcher).Add(kept.content, &kept);
  }
  return {};
}

Result<void> ReadAdded(const Json& tokenizer, const Json& config, const VocabIds& vocab,
                       Tokenizer::Data& data) {
  if (const Json* list = tokenizer.FindSet("added_tokens")) {
    if (!list->is_array()) return Corrupt("\"added_tokens\" is no array");
    for (const Json& entry : list->array()) {
      NIBBLE_TRY(const auto id, entry.GetInt("id", 0, kMaxId));
      if (!id) return Corrupt("an added token has no id");
      NIBBLE_TRY(AddedToken token, ReadAddedToken(entry, *id, "tokenizer.json"));
      NIBBLE_CHECK_OK(Add(std::move(token), "tokenizer.json", vocab, data));
    }
  }
  const std::string_view file = "tokenizer_config.json";
  if (const Json* map = config.FindSet("added_tokens_decoder")) {
    if (!map->is_object())
      return Err(ErrorCode::kCorruptFile, "\"added_tokens_decoder\" is no object").At(file);
    for (const auto& [key, entry] : map->object()) {
      int64_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc{} || end != key.data() + key.size()) {
        return Err(ErrorCode::kCorruptFile, "added_tokens_decoder has the key {}, expected an id",
                   Quoted(key))
            .At(file);
      }
      NIBBLE_TRY(AddedToken token, ReadAddedToken(entry, id, file));
      NIBBLE_CHECK_OK(Add(std::move(token), file, vocab, data));
    }
  }
  return {};
}

// --- Decoding ---

/// Lays out the bytes of all tokens by id. errors kCorruptFile: an id twice, more than 4 GiB
Result<void> LayOutBytes(const VocabIds& vocab, Tokenizer::Data& data) {
  int32_t size = 0;
  for (const auto& [token, id] : vocab) size = std::max(size, id + 1);
  for (const AddedToken& token : data.added) size = std::max(size, token.id + 1);
  std::vector<std::string_view> names(size);
  std::vector<bool> used(size);
  const auto place = [&](std::string_view name, int32_t id) -> Result<void> {
    if (used[id] && names[id] != name) {
      return Corrupt(
          fmt::format("tokens {} and {} share id {}", Quoted(names[id]), Quoted(name), id));
    }
    used[id] = true;
    names[id] = name;
    return {};
  };
  for (const auto& [token, id] : vocab) NIBBLE_CHECK_OK(place(token, id));
  data.is_special.resize(size);
  for (const AddedToken& token : data.added) {
    NIBBLE_CHECK_OK(place(token.content, token.id));
    data.is_special[token.id] = token.special;
  }
  data.begins.reserve(size + 1);
  for (int32_t id = 0; id < size; ++id) {
    data.begins.push_back(static_cast<uint32_t>(data.bytes.size()));
    // The reference's decoder treats added tokens alike: one all of whose characters are in the
    // byte table ("é") decodes to those bytes.
    const auto bytes = BytesOfToken(names[id]);
    data.bytes += bytes ? std::string_view(*bytes) : names[id];
    if (data.bytes.size() > std::numeric_limits<uint32_t>::max())
      return Corrupt("the tokens have more than 4 GiB");
    if (data.whole_piece_first && bytes && vocab.contains(names[id]))
      data.token_of_bytes.emplace(*bytes, id);
  }
  data.begins.push_back(static_cast<uint32_t>(data.bytes.size()));
  return {};
}

}  // namespace

Result<void> ReadTokenizer(const Json& tokenizer, const Json& config, Tokenizer::Data& data) {
  const Json* model = tokenizer.FindSet("model");
  if (!model || !model->is_object()) return Corrupt("there is no object \"model\"");
  NIBBLE_CHECK_OK(ReadNormalizer(tokenizer, data));
  NIBBLE_CHECK_OK(ReadPreTokenizer(tokenizer, data));
  NIBBLE_CHECK_OK(CheckAround(tokenizer));
  NIBBLE_TRY(const VocabIds vocab, ReadVocab(*model));
  NIBBLE_CHECK_OK(ReadModel(*model, vocab, data));
  NIBBLE_CHECK_OK(ReadAdded(tokenizer, config, vocab, data));
  return LayOutBytes(vocab, data);
}

}  // namespace nibble::text
