#!/bin/sh
# From a fresh Debian 12 to generated text: installs what is missing, builds build/release/nibble, runs the bundled sample.
set -eu
cd "$(dirname "$0")/.."

tools/install_dependencies.sh
cmake --preset release
cmake --build --preset release --target nibble -j "$(nproc)"
build/release/nibble run models/qwen3-moe-mini -p "My dear Watson," -n 72 --temperature 0.7 --top-p 0.9 --seed 1
