#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include "base/checked.h"
#include "base/json.h"
#include "base/log.h"
#include "base/quoted.h"

namespace nibble::checkpoint {
namespace {

using Token = JsonReader::Token;

constexpr size_t kLengthBytes = 8;
// {"":{"dtype":"F4","shape":[],"data_offsets":[0,0]}} without the outer braces: no tensor takes
// fewer header bytes.
constexpr size_t kLeastHeaderBytesOfATensor = 49;
constexpr std::string_view kDownloadAgain = "the file is damaged or cut short; download it again";

/// The index of a name that an earlier one equals. Sorted by hash: fast, and, unlike a hash table,
/// not slow for names that were made to collide.
std::optional<size_t> FindDuplicate(const std::vector<std::string_view>& names) {
  std::vector<std::pair<size_t, uint32_t>> order(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    order[i] = {std::hash<std::string_view>()(names[i]), static_cast<uint32_t>(i)};
  }
  std::sort(order.begin(), order.end());
  for (size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && order[end].first == order[begin].first) ++end;
    if (end - begin == 1) continue;
    const auto first = order.begin() + static_cast<ptrdiff_t>(begin);
    const auto last = order.begin() + static_cast<ptrdiff_t>(end);
    std::sort(first, last,
              [&](const auto& a, const auto& b) { return names[a.second] < names[b.second]; });
    const auto twin = std::adjacent_find(first, last, [&](const auto& a, const auto& b) {
      return names[a.second] == names[b.second];
    });
    if (twin != last) return std::next(twin)->second;
  }
  return std::nullopt;
}

/// What makes a name unfit to be shown or looked up; empty when nothing does.
std::string_view FaultOfName(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > kMaxNameBytes) return "is longer than 1024 bytes";
  for (size_t i = 0; i < name.size(); ++i) {
    const auto c = static_cast<uint8_t>(name[i]);
    const auto before = static_cast<uint8_t>(i > 0 ? name[i - 1] : 0);
    const bool c1_control = before == 0xC2 && c >= 0x80 && c < 0xA0;  // U+0080 to U+009F
    if (c < 0x20 || c == 0x7F || c1_control) return "holds a control character";
  }
  return {};
}

class HeaderParser {
 public:
  HeaderParser(std::string_view header, std::span<const std::byte> data, SafetensorsOptions options)
      : json_(header, {.max_depth = 16, .max_values = header.size()}),
        data_(data),
        options_(options) {
    // Address space only: pages are touched as tensors are found.
    tensors_.reserve(header.size() / kLeastHeaderBytesOfATensor + 1);
  }

  Result<std::vector<TensorInfo>> Parse() {
    NIBBLE_CHECK_OK(Expect(Token::kBeginObject, "an object of tensors"));
    for (;;) {
      NIBBLE_TRY(Token token, Next());
      if (token == Token::kEndObject) break;
      if (json_.text() == "__metadata__") {
        NIBBLE_CHECK_OK(ReadMetadata());
      } else {
        NIBBLE_CHECK_OK(ReadTensor());
      }
    }
    NIBBLE_CHECK_OK(Expect(Token::kEnd, "the end of the header"));
    NIBBLE_CHECK_OK(CheckNames());
    NIBBLE_CHECK_OK(CheckRanges());
    return std::move(tensors_);
  }

 private:
  struct Uints {
    std::array<uint64_t, kMaxRank> value{};
    size_t count = 0;
    std::span<const uint64_t> span() const { return {value.data(), count}; }
  };

  Result<Token> Next() {
    auto token = json_.Next();
    if (!token) {
      Error error = std::move(token).error();
      error.where = "header " + error.where;
      error.hint = kDownloadAgain;
      return error;
    }
    return *token;
  }

  Error Wrong(std::string what, std::string_view hint = {}) const {
    return Error{ErrorCode::kCorruptFile, std::move(what),
                 fmt::format("header byte {}", json_.offset()), std::string(hint)};
  }
  static Error WrongData(uint64_t data_byte, std::string what) {
    return Error{
        ErrorCode::kCorruptFile, std::move(what), fmt::format("data byte {}", data_byte), {}};
  }
  Error WrongTensor(std::string_view name, std::string_view what,
                    std::string_view hint = {}) const {
    return Wrong(fmt::format("tensor {}: {}", Quoted(name), what), hint);
  }

  Result<void> Expect(Token expected, std::string_view what) {
    NIBBLE_TRY(Token token, Next());
    if (token != expected) return Wrong(fmt::format("expected {}", what));
    return {};
  }

  /// Behind the key: an object of strings. Nothing in it changes what a tensor is.
  Result<void> ReadMetadata() {
    if (std::exchange(seen_metadata_, true)) return Wrong("\"__metadata__\" stands here twice");
    NIBBLE_CHECK_OK(Expect(Token::kBeginObject, "\"__metadata__\" to be an object of strings"));
    std::vector<std::string> keys;
    for (;;) {
      NIBBLE_TRY(Token token, Next());
      if (token == Token::kEndObject) break;
      keys.emplace_back(json_.text());
      NIBBLE_CHECK_OK(Expect(Token::kString, "\"__metadata__\" to be an object of strings"));
    }
    if (auto twin = FindDuplicate({keys.begin(), keys.end()})) {
      return Wrong(fmt::format("\"__metadata__\" holds the key {} twice", Quoted(keys[*twin])));
    }
    return {};
  }

  /// Behind the key, which is the name.
  Result<void> ReadTensor() {
    TensorInfo tensor;
    tensor.name = json_.text();
    if (auto fault = FaultOfName(tensor.name); !fault.empty()) {
      return Wrong(fmt::format("the tensor name {} {}", Quoted(tensor.name), fault));
    }
    NIBBLE_CHECK_OK(Expect(Token::kBeginObject, "a tensor to be an object"));
    std::optional<DType> dtype;
    std::optional<Uints> shape, offsets;
    for (;;) {
      NIBBLE_TRY(Token token, Next());
      if (token == Token::kEndObject) break;
      const std::string_view field = json_.text();
      const bool twice = (field == "dtype" && dtype) || (field == "shape" && shape) ||
                         (field == "data_offsets" && offsets);
      if (twice) return WrongTensor(tensor.name, fmt::format("\"{}\" stands here twice", field));
      if (field == "dtype") {
        NIBBLE_TRY(dtype, ReadDType(tensor.name));
      } else if (field == "shape") {
        NIBBLE_TRY(shape, ReadUints(tensor.name, "shape", kMaxRank, kMaxDim));
      } else if (field == "data_offsets") {
        NIBBLE_TRY(offsets, ReadUints(tensor.name, "data_offsets", 2, UINT64_MAX));
      } else {
        NIBBLE_CHECK_OK(SkipUnknown(tensor.name));
      }
    }
    if (!dtype || !shape || !offsets || offsets->count != 2) {
      return WrongTensor(tensor.name, "expected a dtype, a shape and two data_offsets");
    }
    tensor.dtype = *dtype;
    tensor.shape.assign(shape->span().begin(), shape->span().end());
    NIBBLE_TRY(tensor.data, Locate(tensor, offsets->value[0], offsets->value[1]));
    tensors_.push_back(std::move(tensor));
    return {};
  }

  Result<DType> ReadDType(std::string_view name) {
    NIBBLE_TRY(Token token, Next());
    if (token != Token::kString) return WrongTensor(name, "\"dtype\" is no string");
    const auto dtype = ParseDType(json_.text());
    if (!dtype) {
      return WrongTensor(name,
                         fmt::format("dtype {} is none of this format", Quoted(json_.text())));
    }
    return *dtype;
  }

  Result<Uints> ReadUints(std::string_view name, std::string_view field, size_t most,
                          uint64_t max) {
    NIBBLE_TRY(Token token, Next());
    if (token != Token::kBeginArray)
      return WrongTensor(name, fmt::format("\"{}\" is no array", field));
    Uints out;
    for (;;) {
      NIBBLE_TRY(token, Next());
      if (token == Token::kEndArray) return out;
      const auto value = token == Token::kNumber ? json_.AsUint() : std::nullopt;
      if (!value) {
        return WrongTensor(
            name, fmt::format("\"{}\" holds what is no plain non-negative integer", field));
      }
      if (*value > max) {
        return WrongTensor(name,
                           fmt::format("\"{}\" holds {}, expected at most {}", field, *value, max));
      }
      if (out.count == most) {
        return WrongTensor(name, fmt::format("\"{}\" holds more than {} numbers", field, most));
      }
      out.value[out.count++] = *value;
    }
  }

  Result<void> SkipUnknown(std::string_view name) {
    const std::string field = Quoted(json_.text());
    if (!options_.lenient) {
      return WrongTensor(name, fmt::format("unknown field {}", field), "--lenient reads on");
    }
    Log(LogLevel::kWarning, "safetensors tensor={} unknown_field={}", Quoted(name), field);
    if (auto skipped = json_.SkipValue(); !skipped) {
      Error error = std::move(skipped).error();
      error.where = "header " + error.where;
      return error;
    }
    return {};
  }

  /// The bytes [begin, end) of the data, once it is proven that they are there and are what the
  /// tensor needs.
  Result<std::span<const std::byte>> Locate(const TensorInfo& tensor, uint64_t begin,
                                            uint64_t end) const {
    if (begin > end) {
      return WrongTensor(tensor.name,
                         fmt::format("data_offsets [{},{}] end before they begin", begin, end));
    }
    if (end > data_.size()) {
      return WrongTensor(tensor.name,
                         fmt::format("data_offsets [{},{}], but the file holds {} bytes of data",
                                     begin, end, data_.size()),
                         kDownloadAgain);
    }
    const auto bits = CheckedProduct(tensor.shape, BitsOf(tensor.dtype));
    if (!bits || *bits % 8 != 0 || *bits / 8 != end - begin) {
      const std::string needs = !bits            ? "more bytes than 64 bits can count"
                                : *bits % 8 != 0 ? "no whole number of bytes"
                                                 : fmt::format("{} bytes", *bits / 8);
      return WrongTensor(tensor.name, fmt::format("{} {} needs {}, data_offsets [{},{}] give {}",
                                                  NameOf(tensor.dtype), ShapeText(tensor.shape),
                                                  needs, begin, end, end - begin));
    }
    return data_.subspan(begin, end - begin);
  }

  Result<void> CheckNames() const {
    if (tensors_.empty()) return Wrong("no tensors");
    std::vector<std::string_view> names;
    names.reserve(tensors_.size());
    for (const TensorInfo& tensor : tensors_) names.push_back(tensor.name);
    if (auto twin = FindDuplicate(names))
      return WrongTensor(names[*twin], "the name stands here twice");
    return {};
  }

  /// Sorts the tensors by their data and proves that they cover all of it, each byte once.
  Result<void> CheckRanges() {
    auto by_data = [](const TensorInfo& a, const TensorInfo& b) {
      return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
    };
    if (!std::is_sorted(tensors_.begin(), tensors_.end(), by_data)) {
      std::sort(tensors_.begin(), tensors_.end(), by_data);
    }
    uint64_t covered = 0;
    for (const TensorInfo& tensor : tensors_) {
      const auto begin = static_cast<uint64_t>(tensor.data.data() - data_.data());
      if (begin != covered) {
        return WrongData(
            covered, fmt::format("tensor {} begins at data byte {}: {}", Quoted(tensor.name), begin,
                                 begin < covered ? "it shares bytes with another"
                                                 : "bytes before it belong to no tensor"));
      }
      covered += tensor.data.size();
    }
    if (covered == data_.size()) return {};
    return WrongData(
        covered,
        fmt::format("the tensors end here, but the file holds {} bytes of data", data_.size()));
  }

  JsonReader json_;
  std::span<const std::byte> data_;
  SafetensorsOptions options_;
  std::vector<TensorInfo> tensors_;
  bool seen_metadata_ = false;
};

/// The header's text without the spaces that may stand behind it; what follows it are the data.
Result<std::string_view> HeaderText(std::span<const std::byte> file) {
  auto wrong = [](uint64_t byte, std::string what) {
    return Error{ErrorCode::kCorruptFile, std::move(what), fmt::format("byte {}", byte),
                 std::string(kDownloadAgain)};
  };
  if (file.size() < kLengthBytes) {
    return wrong(0,
                 fmt::format("the file is {} bytes long, expected a length of 8 bytes and a header",
                             file.size()));
  }
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | std::to_integer<uint64_t>(file[i]);
  if (length > kMaxHeaderBytes) {
    return wrong(0, fmt::format("header length {}, expected at most {}", length, kMaxHeaderBytes));
  }
  if (length > file.size() - kLengthBytes) {
    return wrong(0, fmt::format("header length {}, but only {} bytes follow", length,
                                file.size() - kLengthBytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) return wrong(kLengthBytes, "the header does not begin with '{'");
  const size_t last = text.find_last_not_of(' ');
  if (text[last] != '}') {
    return wrong(kLengthBytes + last, "the header does not end with '}' and then only spaces");
  }
  return text;
}

}  // namespace

std::string ShapeText(std::span<const uint64_t> shape) {
  std::string out = "[";
  for (uint64_t dim : shape)
    fmt::format_to(std::back_inserter(out), "{}{}", out.size() > 1 ? "," : "", dim);
  return out + "]";
}

Result<std::vector<TensorInfo>> SafetensorsFile::ParseHeader(std::span<const std::byte> file,
                                                             SafetensorsOptions options) {
  NIBBLE_TRY(std::string_view header, HeaderText(file));
  return HeaderParser(header, file.subspan(kLengthBytes + header.size()), options).Parse();
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path, SafetensorsOptions options) {
  SafetensorsFile out;
  NIBBLE_TRY(out.file_, MappedFile::Open(path));
  auto tensors = ParseHeader(out.file_.bytes(), options);
  if (!tensors) return std::move(tensors).error().At(path);
  out.tensors_ = *std::move(tensors);
  return out;
}

}  // namespace nibble::checkpoint
