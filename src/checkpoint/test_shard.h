#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

// What the tests of this folder build their files with. Written by hand, without the code under
// test.

namespace nibble::checkpoint {

/// A safetensors file: a header text as it is, and data of `data_bytes` counting bytes.
inline std::string MakeShard(std::string_view header, size_t data_bytes) {
  std::string out;
  for (int i = 0; i < 8; ++i) out.push_back(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out.push_back(static_cast<char>(i));
  return out;
}

inline std::span<const std::byte> BytesOf(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

/// A directory of its own that goes away with the object.
class TestDir {
 public:
  TestDir() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "nibble_checkpoint_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TestDir() { std::filesystem::remove_all(path_); }
  TestDir(const TestDir&) = delete;
  TestDir& operator=(const TestDir&) = delete;

  std::string path() const { return path_.string(); }
  TestDir& Write(std::string_view name, std::string_view content) {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return *this;
  }
  TestDir& Link(std::string_view name, const std::filesystem::path& target) {
    std::filesystem::create_symlink(target, path_ / name);
    return *this;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace nibble::checkpoint
