#pragma once

#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/splitter.h"
#include "text/tokenizer.h"

namespace nibble::text {

/// What a tokenizer knows; written by ReadTokenizer only.
struct Tokenizer::Data {
  std::optional<Error> cannot_encode;  // this build lacks a library: decoding works all the same
  bool nfc = false;
  std::vector<Splitter> splitters;  // each cuts the pieces of the one before
  Bpe bpe;
  bool whole_piece_first = false;                           // "ignore_merges"
  std::unordered_map<std::string, int32_t> token_of_bytes;  // filled only if whole_piece_first

  std::deque<AddedToken> added;  // a deque: the matchers hold pointers
  size_t added_bytes = 0;        // of their contents
  AddedTokenMatcher raw_matcher;
  AddedTokenMatcher normalized_matcher;
  std::unordered_map<std::string_view, int32_t> added_ids;  // views into `added`

  std::string bytes;             // of all tokens, one after the other
  std::vector<uint32_t> begins;  // [vocab_size + 1]
  std::vector<bool> is_special;  // [vocab_size]
};

/// Builds the data from the two files' texts. errors as Tokenizer::FromJson
Result<void> ReadTokenizer(const Json& tokenizer, const Json& config, Tokenizer::Data& data);

}  // namespace nibble::text
