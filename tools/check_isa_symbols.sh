#!/bin/sh
# check_isa_symbols.sh NM OBJECT...: fails when an object compiled for an instruction set exports anything but its table of kernels.
# A weak symbol there (an inline function, a template of a header) may be the copy that the linker keeps for everybody, and an older
# machine then dies of an illegal instruction far from the cause. See src/kernels/cpu/target.h.
set -eu
nm=$1
shift
[ $# -gt 0 ] || { echo "check_isa_symbols: no objects given" >&2; exit 2; }
bad=0
for object in "$@"; do
  # Harmless: the address of the exception personality, and what sanitizers add to every object.
  symbols=$("$nm" -C --defined-only --extern-only "$object" |
    grep -v -e ' DW\.ref\.' -e '__asan' -e '__ubsan' -e '__tsan' -e '__odr_asan' || true)
  others=$(printf '%s\n' "$symbols" | grep -v ' [DR] nibble::kernels::cpu::k\(Glue\)\?Avx[0-9a-zA-Z]*$' || true)
  if [ -n "$others" ]; then
    printf '%s: symbols that may leave it:\n%s\n' "$object" "$others" >&2
    bad=1
  fi
  printf '%s\n' "$symbols" | grep -q '::k\(Glue\)\?Avx' || { echo "$object: no table of kernels" >&2; bad=1; }
done
exit $bad
