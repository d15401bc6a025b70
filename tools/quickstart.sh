#!/bin/sh
# From a fresh Debian 12 to generated text: installs what is missing, builds build/release/nibble, runs the bundled sample.
set -eu
cd "$(dirname "$0")/.."

tools/install_dependencies.sh
cmake --preset release
cmake --build --preset release --target nibble -j "$(nproc)"
build/release/nibble run models/qwen3-moe-mini -p "The morning after the storm," -n 96 --seed 1
