#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "command.h"
#include "synth/write_checkpoint.h"
#include "synth_options.h"

namespace nibble::app {
namespace {

struct Arguments {
  SynthOptions synth;
  std::string config_dir, out;
  bool force = false, json = false;
};

Result<void> Synth(const Arguments& a) {
  NIBBLE_TRY(const synth::Options options, a.synth.Parse());
  NIBBLE_TRY(const checkpoint::CheckpointParts parts, synth::Synthesize(a.config_dir, options));
  synth::WriteOptions how;
  how.force = a.force;
  ProgressBar bar("writing");
  NIBBLE_CHECK_OK(synth::WriteCheckpoint(
      parts, a.out, how, [&](uint64_t done, uint64_t total) { bar.Update(done, total, "MB"); }));
  uint64_t bytes = 0;
  for (const checkpoint::TensorInfo& tensor : parts.tensors) bytes += tensor.data.size();
  if (a.json) {
    PrintJson(Json::Object{{"checkpoint", Json(a.out)},
                           {"tensors", Json(static_cast<int64_t>(parts.tensors.size()))},
                           {"bytes", Json(bytes)}});
  } else {
    fmt::print("{}: {} tensors, {:.2f} GiB\n", a.out, parts.tensors.size(),
               static_cast<double>(bytes) / (1 << 30));
  }
  return {};
}

}  // namespace

void SynthOptions::AddTo(CLI::App& app) {
  app.add_option("--scheme", scheme,
                 "W4A16, W4A4, FP8, BF16, or recipe: what the config declares, module by module");
  app.add_option("--format", format,
                 "modelopt or compressed-tensors (default: the config's own dialect)");
  app.add_option("--layers", layers, "only the first so many layers")->check(CLI::Range(1, 4096));
  app.add_option("--seed", seed, "of the random numbers");
  app.add_flag("--vision", vision, "the vision tower's tensors too, which nothing runs");
}

Result<synth::Options> SynthOptions::Parse() const {
  synth::Options out;
  NIBBLE_TRY(out.scheme, synth::ParseScheme(scheme));
  if (!format.empty()) {
    NIBBLE_TRY(out.format, synth::ParseFormat(format));
  }
  out.layers = layers;
  out.seed = seed;
  out.vision = vision;
  return out;
}

Verb AddSynth(CLI::App& app) {
  auto a = std::make_shared<Arguments>();
  app.add_option("CONFIG_DIR", a->config_dir,
                 "directory with config.json and, where it is quantized, hf_quant_config.json")
      ->required();
  app.add_option("-o,--output", a->out, "directory to write the checkpoint to")->required();
  a->synth.AddTo(app);
  app.add_flag("--force", a->force, "replace a checkpoint that is there");
  app.add_flag("--json", a->json, "one JSON object on stdout, for programs");
  return [a] {
    auto done = Synth(*a);
    return done ? 0 : Fail(done.error(), a->json);
  };
}

}  // namespace nibble::app
