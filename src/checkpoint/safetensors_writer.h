#pragma once

#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/dtype.h"

namespace nibble::checkpoint {

/// A tensor to be written. `bytes` must be what type and shape need; nothing here checks it, so
/// that a test can write what a reader must refuse.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<uint64_t> shape;
  std::string bytes;
};

/// A whole safetensors file: tensors in the order given, no holes, the header padded with spaces to
/// a multiple of eight bytes.
inline std::string SafetensorsBytes(std::span<const TensorToWrite> tensors) {
  Json header;
  header.Set("__metadata__", Json::Object{{"format", "pt"}});
  uint64_t begin = 0;
  for (const TensorToWrite& tensor : tensors) {
    const uint64_t end = begin + tensor.bytes.size();
    Json::Array shape;
    for (const uint64_t dim : tensor.shape) shape.emplace_back(dim);
    header.Set(tensor.name, Json::Object{{"dtype", Json(NameOf(tensor.dtype))},
                                         {"shape", std::move(shape)},
                                         {"data_offsets", Json::Array{Json(begin), Json(end)}}});
    begin = end;
  }
  std::string text = WriteJson(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string file;
  file.reserve(8 + text.size() + begin);
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(uint64_t{text.size()} >> (8 * i)));
  file += text;
  for (const TensorToWrite& tensor : tensors) file += tensor.bytes;
  return file;
}

/// errors kIo
inline Result<void> WriteSafetensors(const std::string& path,
                                     std::span<const TensorToWrite> tensors) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  const std::string bytes = SafetensorsBytes(tensors);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) return Err(ErrorCode::kIo, "cannot write").At(path);
  return {};
}

}  // namespace nibble::checkpoint
