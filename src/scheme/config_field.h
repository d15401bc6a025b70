#pragma once

#include <string>

#include "base/json.h"

namespace nibble::scheme {

/// A part of a configuration: an object and its path for evidence and errors.
struct ConfigField {
  const Json* json = nullptr;
  std::string path;  // "config.json: quantization_config"
};

}  // namespace nibble::scheme
