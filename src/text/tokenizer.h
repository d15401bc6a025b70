#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace nibble::text {

struct EncodeOptions {
  /// Find added tokens ("<|im_end|>", "<think>") in the text. Off, for text that a user may have
  /// written to look like one: then no added token of any kind is found, special or not.
  bool parse_special = true;
};

/// A byte-level BPE tokenizer as a tokenizer.json (PyPI `tokenizers`, Qwen, GPT-2 and kin)
/// describes it: normalizer null or NFC; pre-tokenizer Split by regular expressions, then
/// ByteLevel; model BPE; decoder ByteLevel; no ids added around a text. Anything else is refused by
/// name when loading. Ids are those of the reference (tests/e2e/tokenizer_differential.py
/// compares). Immutable, cheap to copy, safe for use from many threads.
class Tokenizer {
 public:
  /// Reads tokenizer.json and, if there, tokenizer_config.json of a checkpoint's folder.
  /// errors   kNotFound, kIo, and those of FromJson with the file's name
  static Result<Tokenizer> Load(const std::string& dir);

  /// `tokenizer_config_json` may be empty; its added_tokens_decoder holds tokens that the other
  /// file may lack.
  /// errors   kCorruptFile (no sense: an id twice, a merge of unknown tokens, ...), kUnsupported (a
  ///          component that is not known here)
  static Result<Tokenizer> FromJson(std::string_view tokenizer_json,
                                    std::string_view tokenizer_config_json);

  /// The tokens of a text. Bytes that are no UTF-8 count as U+FFFD, one a maximal invalid subpart,
  /// as Python's bytes.decode("utf-8", "replace") makes them; Decode cannot give those bytes back.
  /// errors   kUnsupported (built without PCRE2 or utf8proc; a split pattern that needs too many
  ///          steps), kInvalidArgument (4 GiB)
  Result<std::vector<int32_t>> Encode(std::string_view text, EncodeOptions options = {}) const;

  /// The text of tokens: their bytes joined, then made UTF-8 as above. Ids that no token has give
  /// nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = false) const;

  /// The bytes of one token, which may be part of a character only; empty for an id that no token
  /// has.
  std::string_view TokenBytes(int32_t id) const;

  /// True for added tokens that are marked special; "<think>" often is not.
  bool IsSpecial(int32_t id) const;

  /// One more than the largest id. The model's embedding may have more rows.
  int32_t vocab_size() const;

  /// The id of an added token, by its exact content.
  std::optional<int32_t> AddedTokenId(std::string_view content) const;

  struct Data;
  explicit Tokenizer(std::shared_ptr<const Data> data) : data_(std::move(data)) {}

 private:
  std::shared_ptr<const Data> data_;
};

}  // namespace nibble::text
