#!/bin/sh
# install_dependencies.sh [--tests]: installs what Debian 12 has of what Nibble needs, and nothing that is already there.
# Without --tests: to build and run the command. With it: everything that tools/test.sh uses, too.
set -eu

packages="g++ cmake make libpcre2-dev libutf8proc-dev"
if [ "${1:-}" = --tests ]; then
  packages="$packages libgtest-dev python3-venv clang-14 clang-format-14 libfuzzer-14-dev libclang-rt-14-dev"
  [ "$(uname -m)" != x86_64 ] || packages="$packages g++-aarch64-linux-gnu qemu-user"
fi

if ! command -v apt-get >/dev/null; then
  echo "install_dependencies: no apt-get here; what Nibble needs goes by these names in Debian 12: $packages" >&2
  exit 0  # it may all be there: CMake will say
fi

missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo"
echo "install_dependencies: installing$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
