#include "npy.h"

#include <cstring>
#include <limits>

#include "base/file.h"

namespace nibble::app {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);

/// The text of `'key': …` up to the next comma outside parentheses or the closing brace.
std::string_view FieldOf(std::string_view header, std::string_view key) {
  const size_t at = header.find(key);
  if (at == header.npos) return {};
  std::string_view rest = header.substr(at + key.size());
  rest.remove_prefix(std::min(rest.size(), rest.find_first_not_of("': ")));
  size_t end = 0;
  for (int depth = 0; end < rest.size(); ++end) {
    if (rest[end] == '(') ++depth;
    if (rest[end] == ')') --depth;
    if (depth == 0 && (rest[end] == ',' || rest[end] == '}')) break;
  }
  return rest.substr(0, end);
}

template <class T>
Result<std::vector<int32_t>> Convert(std::string_view data) {
  std::vector<int32_t> out(data.size() / sizeof(T));
  for (size_t i = 0; i < out.size(); ++i) {
    T v;
    std::memcpy(&v, data.data() + i * sizeof(T), sizeof(T));
    if (!std::in_range<int32_t>(v))
      return Err(ErrorCode::kCorruptFile, "value {} at {} is no token id", v, i);
    out[i] = static_cast<int32_t>(v);
  }
  return out;
}

Result<std::vector<int32_t>> Parse(std::string_view file) {
  const Error not_npy =
      Err(ErrorCode::kCorruptFile, "not a .npy file of one dimension of little-endian integers");
  if (file.size() < 12 || file.substr(0, 6) != kMagic) return not_npy;
  const size_t length_bytes = file[6] == 1 ? 2 : 4;
  size_t length = 0;
  for (size_t i = 0; i < length_bytes; ++i)
    length |= static_cast<size_t>(static_cast<uint8_t>(file[8 + i])) << (8 * i);
  if (length > file.size() - 8 - length_bytes) return not_npy;
  const std::string_view header = file.substr(8 + length_bytes, length),
                         data = file.substr(8 + length_bytes + length);
  const std::string_view type = FieldOf(header, "descr");
  const std::string_view shape = FieldOf(header, "shape");
  // "(229815,)" has one comma before the parenthesis; a matrix has a number behind it.
  const size_t comma = shape.find(',');
  if (comma == shape.npos || shape.find_first_of("0123456789", comma) != shape.npos) return not_npy;
  uint64_t count = 0;
  for (char c : shape.substr(0, comma)) {
    if (c >= '0' && c <= '9' && count < (uint64_t{1} << 40))
      count = count * 10 + static_cast<uint64_t>(c - '0');
  }
  const auto sized = [&](size_t element) { return data.size() == count * element; };
  if (type.starts_with("<i4") && sized(4)) return Convert<int32_t>(data);
  if (type.starts_with("<i8") && sized(8)) return Convert<int64_t>(data);
  if (type.starts_with("<u4") && sized(4)) return Convert<uint32_t>(data);
  if (type.starts_with("<u2") && sized(2)) return Convert<uint16_t>(data);
  if (type.starts_with("<i2") && sized(2)) return Convert<int16_t>(data);
  return not_npy;
}

}  // namespace

Result<std::vector<int32_t>> ReadTokensNpy(const std::string& path) {
  NIBBLE_TRY(const std::string file, ReadFile(path, uint64_t{4} << 30));
  auto tokens = Parse(file);
  if (!tokens) return std::move(tokens).error().At(path);
  return tokens;
}

Result<void> WriteFloatsNpy(const std::string& path, std::span<const float> values) {
  std::string header =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.size());
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file(kMagic);
  file += std::string("\x01\x00", 2);
  file += static_cast<char>(header.size() & 0xFF);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  file.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
  return WriteFileAtomically(path, std::as_bytes(std::span(file)));
}

}  // namespace nibble::app
