#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/dtype.h"

namespace nibble::checkpoint {

inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference implementation
inline constexpr size_t kMaxRank = 8;
inline constexpr uint64_t kMaxDim = uint64_t{1} << 40;
inline constexpr size_t kMaxNameBytes = 1024;

/// One tensor of a file: where its bytes are and what they mean. Proven when made: the bytes lie
/// inside the file, belong to no other tensor and are exactly as many as the shape and the type
/// need.
struct TensorInfo {
  std::string name;  // UTF-8 without control characters, 1 to 1024 bytes; never a path
  DType dtype = DType::kU8;
  uint32_t shard = 0;               // which file of its checkpoint
  std::vector<uint64_t> shape;      // at most 8 dimensions of at most 2^40; none: a scalar
  std::span<const std::byte> data;  // begins at any address: copy elements out, never cast in place
};

/// "[512,8]": a shape as error texts show it.
std::string ShapeText(std::span<const uint64_t> shape);

struct SafetensorsOptions {
  bool lenient = false;  // unknown fields of a tensor are a warning, not an error
};

/// A safetensors file, mapped. The tensors view the mapping, which stays where it is when the
/// object moves.
/// threads  safe to read from many
class SafetensorsFile {
 public:
  /// errors kNotFound, kIo, kCorruptFile (any breach of the format; names file, header byte,
  /// tensor)
  static Result<SafetensorsFile> Open(const std::string& path, SafetensorsOptions options = {});

  /// The tensors of a whole file's bytes, in the order of their data. Stricter than the format's
  /// reference implementation: no name twice, nothing before '{', only spaces behind '}', no empty
  /// or control-character names, no unknown fields, at least one tensor. The result views `file`.
  /// errors   kCorruptFile
  /// cost     O(header); memory below five times the header
  static Result<std::vector<TensorInfo>> ParseHeader(std::span<const std::byte> file,
                                                     SafetensorsOptions options = {});

  /// In the order of their data.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::string& path() const { return file_.path(); }

 private:
  MappedFile file_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace nibble::checkpoint
