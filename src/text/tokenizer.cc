#include "text/tokenizer.h"

#include "base/file.h"
#include "text/normalizer.h"
#include "text/tokenizer_data.h"
#include "text/utf8.h"

namespace nibble::text {
namespace {

// Qwen3.6's tokenizer.json has 20 MB; a vocabulary of millions would still fit.
constexpr uint64_t kMaxFileBytes = 256 << 20;
constexpr size_t kMaxTextBytes = size_t{UINT32_MAX} / 2;

/// Encodes the ordinary text between added tokens.
class TextEncoder {
 public:
  TextEncoder(const Tokenizer::Data& data, std::vector<int32_t>& ids) : data_(data), ids_(ids) {}

  Result<void> Encode(std::string_view text) {
    pieces_.assign(1, {0, text.size()});
    for (const Splitter& splitter : data_.splitters) {
      next_.clear();
      for (const Piece& piece : pieces_) {
        const size_t first = next_.size();
        NIBBLE_CHECK_OK(splitter.Split(text.substr(piece.begin, piece.end - piece.begin), next_));
        for (size_t i = first; i < next_.size(); ++i) {
          next_[i].begin += piece.begin;
          next_[i].end += piece.begin;
        }
      }
      pieces_.swap(next_);
    }
    for (const Piece& piece : pieces_)
      EncodePiece(text.substr(piece.begin, piece.end - piece.begin));
    return {};
  }

 private:
  void EncodePiece(std::string_view piece) {
    if (data_.whole_piece_first) {
      const auto whole = data_.token_of_bytes.find(std::string(piece));
      if (whole != data_.token_of_bytes.end()) {
        ids_.push_back(whole->second);
        return;
      }
    }
    data_.bpe.Encode(piece, ids_, scratch_);
  }

  const Tokenizer::Data& data_;
  std::vector<int32_t>& ids_;
  std::vector<Piece> pieces_, next_;
  Bpe::Scratch scratch_;
};

Result<Json> ParseNamed(std::string_view text, std::string_view name) {
  auto json = Json::Parse(text);
  if (!json) return std::move(json).error().At(name);
  if (!json->is_object()) {
    return Err(ErrorCode::kCorruptFile, "holds {}, expected an object", json->TypeName()).At(name);
  }
  return json;
}

}  // namespace

Result<Tokenizer> Tokenizer::Load(const std::string& dir) {
  NIBBLE_TRY(const std::string tokenizer, ReadFile(dir + "/tokenizer.json", kMaxFileBytes));
  std::string config;
  const std::string config_path = dir + "/tokenizer_config.json";
  if (FileExists(config_path)) {
    NIBBLE_TRY(config, ReadFile(config_path, kMaxFileBytes));
  }
  auto result = FromJson(tokenizer, config);
  if (!result) return std::move(result).error().At(dir);
  return result;
}

Result<Tokenizer> Tokenizer::FromJson(std::string_view tokenizer_json,
                                      std::string_view tokenizer_config_json) {
  NIBBLE_TRY(const Json tokenizer, ParseNamed(tokenizer_json, "tokenizer.json"));
  Json config;
  if (!tokenizer_config_json.empty()) {
    NIBBLE_TRY(config, ParseNamed(tokenizer_config_json, "tokenizer_config.json"));
  }
  auto data = std::make_shared<Data>();
  NIBBLE_CHECK_OK(ReadTokenizer(tokenizer, config, *data));
  return Tokenizer(std::move(data));
}

Result<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, EncodeOptions options) const {
  if (data_->cannot_encode) return Error(*data_->cannot_encode);
  if (text.size() > kMaxTextBytes) {
    return Err(ErrorCode::kInvalidArgument, "a text of {} bytes, expected at most {}", text.size(),
               kMaxTextBytes);
  }
  std::string lossy;
  if (!IsValidUtf8(text)) {
    lossy = LossyUtf8(text);
    text = lossy;
  }
  std::vector<int32_t> ids;
  TextEncoder encoder(*data_, ids);
  const AddedTokenMatcher nothing;
  for (const auto& raw : (options.parse_special ? data_->raw_matcher : nothing).Find(text)) {
    if (raw.token) {
      ids.push_back(raw.token->id);
      continue;
    }
    std::string composed;
    std::string_view normal = raw.text;
    if (data_->nfc) {
      composed = Nfc(raw.text);
      normal = composed;
    }
    for (const auto& segment :
         (options.parse_special ? data_->normalized_matcher : nothing).Find(normal)) {
      if (segment.token) {
        ids.push_back(segment.token->id);
      } else {
        NIBBLE_CHECK_OK(encoder.Encode(segment.text));
      }
    }
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (!(skip_special && IsSpecial(id))) bytes += TokenBytes(id);
  }
  return LossyUtf8(bytes);
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const uint32_t begin = data_->begins[id];
  return std::string_view(data_->bytes).substr(begin, data_->begins[id + 1] - begin);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->is_special[id];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(data_->is_special.size()); }

std::optional<int32_t> Tokenizer::AddedTokenId(std::string_view content) const {
  const auto found = data_->added_ids.find(content);
  if (found == data_->added_ids.end()) return std::nullopt;
  return found->second;
}

}  // namespace nibble::text
