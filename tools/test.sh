#!/usr/bin/env bash
# Every check of the project, from a fresh machine on: installs what is missing, builds, tests. Ends with "N passed, N failed".
#   NIBBLE_TEST_DATA     folder of larger checkpoints (tests/golden/README.md); tests that need it are skipped without it
#   NIBBLE_FUZZ_SECONDS  for each fuzz target; 10 unless said
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
tools/install_dependencies.sh --tests || exit 1

table=""
declare -i passed=0 failed=0 skipped=0

# stage NAME COMMAND…: runs it, counts how it ended, and goes on.
stage() {
  local name=$1 result=passed start=$SECONDS
  shift
  printf '\n==== %s\n' "$name"
  if "$@"; then passed+=1; else failed+=1 result=FAILED; fi
  table+=$(printf '%-52s %-7s %4d s' "$name" "$result" $((SECONDS - start)))$'\n'
}

skip() {  # NAME WHY
  printf '\n==== %s: skipped, %s\n' "$1" "$2"
  skipped+=1
  table+=$(printf '%-52s skipped: %s' "$1" "$2")$'\n'
}

build() {  # PRESET [cmake --build arguments…]
  cmake --preset "$1" -DNIBBLE_FUZZ_SECONDS="${NIBBLE_FUZZ_SECONDS:-10}" >/dev/null &&
    cmake --build --preset "$1" -j "$(nproc)" -- -s "${@:2}"
}

check() {  # PRESET [ctest arguments…]
  ctest --preset "$1" -j "$(nproc)" --no-tests=error "${@:2}"
}

formatted() {
  find src include apps tests bench -regex '.*[.]\(cc\|h\|cu\|cuh\)' -print0 | xargs -0 clang-format-14 --dry-run -Werror
}

dev() { build dev all bench_kernels && check dev; }

# Under AddressSanitizer and UndefinedBehaviorSanitizer: all that reads what a stranger wrote, and the kernels.
asan() { build asan && env -u NIBBLE_TEST_DATA ctest --preset asan -j "$(nproc)" --no-tests=error -LE golden; }

# Under ThreadSanitizer: all that starts threads.
tsan() {
  build tsan base_test kernels_test kernels_cpu_test golden_test &&
    check tsan -R '^(base|kernels|kernels_cpu)_test$' &&
    env -u NIBBLE_TEST_DATA build/tsan/tests/golden/golden_test --gtest_filter=Cpu.ResultsDoNotDependOnTheNumberOfThreads
}

fuzz() { build fuzz fuzz_targets && check fuzz -L fuzz; }

tokenizers() {
  build/venv/bin/python tests/e2e/tokenizer_differential.py --program build/dev/tests/e2e/tokenizer_batch --count 100000
}

# pip_install PACKAGE==VERSION…: into build/venv, without what they would bring along.
pip_install() {
  { [ -x build/venv/bin/pip ] || python3 -m venv build/venv; } && build/venv/bin/pip install -q --no-deps "$@"
}

# nvcc from the PATH; else from PyPI, where it comes without two links that nvcc and CMake look for.
find_nvcc() {
  command -v nvcc && return
  pip_install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2 || return
  local cuda
  cuda=$(echo "$PWD"/build/venv/lib/python3*/site-packages/nvidia/cu13)
  ln -sfn lib "$cuda/lib64" && ln -sf libcudart.so.13 "$cuda/lib/libcudart.so" && echo "$cuda/bin/nvcc"
}

benches=(cuda_moe_bench cuda_layer_bench cuda_linear_bench cuda_operators_bench cuda_delta_bench)

cuda() { CUDACXX=$nvcc build cuda nibble "${benches[@]}"; }

# The kernels' own checks and the whole program, on an emulator of a GPU; it reads the toolkit's headers alone.
emulated() {
  CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")") build emulated nibble "${benches[@]}" && check emulated -L emulated
}

# PCRE2 and utf8proc of 64-bit Arm, unpacked and not installed: this machine's packages stay what they are.
arm_libraries() {
  local into=$PWD/build/aarch64-libraries
  [ -f "$into/usr/include/utf8proc.h" ] && return
  local apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists="$into/lists"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  mkdir -p "$into/lists/partial" && "${apt[@]}" update &&
    (cd "$into/lists" && "${apt[@]}" download libpcre2-dev:arm64 libutf8proc-dev:arm64) &&
    for package in "$into"/lists/*.deb; do dpkg-deb -x "$package" "$into" || return; done &&
    rm -r "$into/lists"
}

# All but apps and synth, under an emulator that takes ten to thirty times as long. Not run for that: the rules of the plan over random
# models, which are whole numbers, the sample's 64 tokens a prompt, and attention's batches over threads; the two-layer checkpoints run whole.
aarch64() {
  arm_libraries || echo "no libraries of that machine: the encoding of text is not tested"
  local tests=(base numerics layout checkpoint text kernels kernels_reference kernels_cpu scheme plan weights engine golden)
  build aarch64 "${tests[@]/%/_test}" &&
    env -u NIBBLE_TEST_DATA GTEST_FILTER='-OracleProperty.*:Reference.W4A16*:Cpu.W4A16*:HostAttention.BatchesOf*:HostAttention.ThreadsAnd*' \
      ctest --preset aarch64 -j "$(nproc)" --no-tests=error -R "^($(IFS='|' && echo "${tests[*]}"))_test$"
}

stage "format of the sources" formatted
stage "dev: -Werror, all tests" dev
if pip_install tokenizers==0.23.3; then
  stage "tokenizer against PyPI tokenizers, 10^5 strings" tokenizers
else
  skip "tokenizer against PyPI tokenizers" "PyPI is out of reach"
fi
if pip_install numpy==2.4.6; then
  stage "blocks of GGUF, for bench/model/versus_llama_cpp.py" build/venv/bin/python bench/model/versus/nvfp4_blocks_test.py
else
  skip "blocks of GGUF" "PyPI is out of reach"
fi
stage "asan: tests under Address- and UBSanitizer" asan
stage "tsan: tests under ThreadSanitizer" tsan
stage "fuzz: each target ${NIBBLE_FUZZ_SECONDS:-10} s" fuzz
if [ "$(uname -m)" = x86_64 ]; then
  stage "aarch64: tests under qemu" aarch64
else
  skip "aarch64: tests under qemu" "this is no x86-64"
fi
if nvcc=$(find_nvcc); then
  stage "cuda: all of it compiles (sm_80, sm_90a, sm_120)" cuda
  stage "emulated: the CUDA kernels on this CPU" emulated
else
  skip "cuda: all of it compiles (sm_80, sm_90a, sm_120)" "no nvcc, and PyPI is out of reach"
  skip "emulated: the CUDA kernels on this CPU" "the toolkit's headers come with nvcc"
fi
if [ -z "${NIBBLE_TEST_DATA:-}" ]; then
  skip "golden tests of the larger checkpoints" "NIBBLE_TEST_DATA is not set"
fi

printf '\n%s\n%d passed, %d failed, %d skipped\n' "$table" "$passed" "$failed" "$skipped"
exit $((failed > 0))
