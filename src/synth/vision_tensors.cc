#include "synth/tensors.h"

// The vision tower of the Qwen3.5 family's wrappers: patches to blocks of attention and a two-layer
// MLP, to a merger into the language model's width. Every linear and norm has a bias.

namespace nibble::synth {
namespace {

using checkpoint::DType;

constexpr int64_t kMost = int64_t{1} << 20;

struct VisionSizes {
  uint64_t depth, hidden, intermediate, channels, patch, time, positions, merged, out;
};

Result<uint64_t> Size(const Json& config, std::string_view key) {
  NIBBLE_TRY(const auto value, config.GetInt(key, 1, kMost));
  if (value) return static_cast<uint64_t>(*value);
  return Err(ErrorCode::kCorruptFile, "\"{}\" is missing", key).At("config.json: vision_config");
}

Result<VisionSizes> ReadSizes(const Json& config) {
  VisionSizes s{};
  NIBBLE_TRY(s.depth, Size(config, "depth"));
  NIBBLE_TRY(s.hidden, Size(config, "hidden_size"));
  NIBBLE_TRY(s.intermediate, Size(config, "intermediate_size"));
  NIBBLE_TRY(s.channels, Size(config, "in_channels"));
  NIBBLE_TRY(s.patch, Size(config, "patch_size"));
  NIBBLE_TRY(s.time, Size(config, "temporal_patch_size"));
  NIBBLE_TRY(s.positions, Size(config, "num_position_embeddings"));
  NIBBLE_TRY(const uint64_t merge, Size(config, "spatial_merge_size"));
  NIBBLE_TRY(s.out, Size(config, "out_hidden_size"));
  s.merged = s.hidden * merge * merge;
  return s;
}

class VisionLister {
 public:
  std::vector<TensorSpec> List(const VisionSizes& s) {
    Weight("patch_embed.proj", {s.hidden, s.channels, s.time, s.patch, s.patch});
    Add("patch_embed.proj.bias", {s.hidden});
    Add("pos_embed.weight", {s.positions, s.hidden});
    for (uint64_t i = 0; i < s.depth; ++i) {
      const std::string block = fmt::format("blocks.{}.", i);
      Both(block + "norm1", {s.hidden}, s.hidden);
      Both(block + "attn.qkv", {3 * s.hidden, s.hidden}, 3 * s.hidden);
      Both(block + "attn.proj", {s.hidden, s.hidden}, s.hidden);
      Both(block + "norm2", {s.hidden}, s.hidden);
      Both(block + "mlp.linear_fc1", {s.intermediate, s.hidden}, s.intermediate);
      Both(block + "mlp.linear_fc2", {s.hidden, s.intermediate}, s.hidden);
    }
    Both("merger.norm", {s.hidden}, s.hidden);
    Both("merger.linear_fc1", {s.merged, s.merged}, s.merged);
    Both("merger.linear_fc2", {s.out, s.merged}, s.out);
    return std::move(out_);
  }

 private:
  void Add(const std::string& name, std::vector<uint64_t> shape) {
    out_.push_back({"model.visual." + name, DType::kBf16, std::move(shape),
                    Noise{Noise::Kind::kBf16, 0, 0.03125f}});
  }
  void Weight(const std::string& name, std::vector<uint64_t> shape) {
    Add(name + ".weight", std::move(shape));
  }
  void Both(const std::string& name, std::vector<uint64_t> shape, uint64_t outputs) {
    Weight(name, std::move(shape));
    Add(name + ".bias", {outputs});
  }

  std::vector<TensorSpec> out_;
};

}  // namespace

Result<std::vector<TensorSpec>> ListVisionTensors(const Json& vision_config) {
  NIBBLE_TRY(const VisionSizes sizes, ReadSizes(vision_config));
  return VisionLister().List(sizes);
}

}  // namespace nibble::synth
