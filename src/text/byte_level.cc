#include "text/byte_level.h"

#include <array>

#include "text/utf8.h"

namespace nibble::text {
namespace {

constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> MakeCharOfByte() {
  std::array<char32_t, 256> table{};
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) table[b] = StandsForItself(b) ? static_cast<char32_t>(b) : next++;
  return table;
}
constexpr auto kCharOfByte = MakeCharOfByte();

constexpr char32_t kTableEnd = 0x144;
static_assert(kCharOfByte[0xAD] == kTableEnd - 1 && kCharOfByte[' '] == U'Ġ');

constexpr std::array<int16_t, kTableEnd> MakeByteOfChar() {
  std::array<int16_t, kTableEnd> table{};
  for (auto& entry : table) entry = -1;
  for (int b = 0; b < 256; ++b) table[kCharOfByte[b]] = static_cast<int16_t>(b);
  return table;
}
constexpr auto kByteOfChar = MakeByteOfChar();

}  // namespace

char32_t CharOfByte(unsigned char byte) { return kCharOfByte[byte]; }

std::optional<std::string> BytesOfToken(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t pos = 0; pos < token.size();) {
    const Utf8Step step = DecodeUtf8(token, pos);
    if (!step.valid || step.code_point >= kTableEnd || kByteOfChar[step.code_point] < 0) {
      return std::nullopt;
    }
    bytes += static_cast<char>(kByteOfChar[step.code_point]);
    pos += step.length;
  }
  return bytes;
}

}  // namespace nibble::text
