#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "synth/synthesize.h"

namespace nibble::app {

/// What a random-weight checkpoint shall be, of `synth` and of `bench --synthetic`.
struct SynthOptions {
  std::string scheme = "recipe", format;
  int layers = 0;
  uint64_t seed = 0;
  bool vision = false;

  void AddTo(CLI::App& app);
  Result<synth::Options> Parse() const;
};

}  // namespace nibble::app
