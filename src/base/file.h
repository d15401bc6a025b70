#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.h"

namespace nibble {

/// A file mapped read-only. The size is asked again after mapping: a file that changed in between
/// is refused. A file that is cut short by another process later still ends ours with SIGBUS, as
/// any mapping does; checkpoints are not to be edited while they run.
class MappedFile {
 public:
  /// errors kNotFound, kIo (with errno's text), kCorruptFile (size changed while mapping; not a
  /// regular file)
  static Result<MappedFile> Open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Takes the whole pages of `part`, which lies in bytes(), out of this process's memory. They stay
  /// the file's, mostly in the system's cache: who reads them again finds the same bytes.
  void Forget(std::span<const std::byte> part) const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Reads a whole small file. errors kNotFound, kIo, kCorruptFile (larger than max_bytes)
Result<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

/// Writes a file so that it is there whole or not at all: to a temporary name beside it, then
/// renamed.
Result<void> WriteFileAtomically(const std::string& path, std::span<const std::byte> bytes);

bool FileExists(const std::string& path);

}  // namespace nibble
