#!/usr/bin/env python3
"""check_layers.py ROOT | --self-test: holds the order of includes of docs/structure.md over every #include "..." line."""
import pathlib
import re
import sys
import tempfile

# A folder may include itself and any row above its own; folders of one row do not know each other.
ROWS = [["nibble"], ["base"], ["numerics"], ["layout"], ["checkpoint", "kernels", "text"], ["scheme"], ["plan", "synth"],
        ["weights"], ["model"], ["engine"], ["serve"], ["apps", "bindings"]]
RANK = {folder: rank for rank, row in enumerate(ROWS) for folder in row}
ONLY = {"text": {"nibble", "base", "text"}}  # stricter than its row
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def folder_of(path):
    """src/base/x.h -> base; include/nibble/x.h -> nibble; apps/nibble/x.cc -> apps"""
    return path.parts[1] if path.parts[0] in ("src", "include") else path.parts[0]


def fault(source, included):
    own, other = folder_of(source), pathlib.PurePath(included).parts[0]
    if own in ("apps", "bindings") and other not in RANK:
        return None  # a header beside it
    if own not in RANK or other not in RANK or "/" not in included:
        return "a path from src/ that begins with a folder of the order"
    allowed = ONLY.get(own, {f for f in RANK if RANK[f] < RANK[own]} | {own})
    return None if other in allowed else f"{own} may include only {', '.join(sorted(allowed, key=RANK.get))}"


def check(root):
    faults, n_files = [], 0
    for top in ("src", "include", "apps", "bindings"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix not in (".h", ".cc", ".cuh", ".cu"):
                continue
            n_files += 1
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                match = INCLUDE.match(line)
                why = match and fault(path.relative_to(root), match[1])
                if why:
                    faults.append(f'{path.relative_to(root)}:{number}: #include "{match[1]}": {why}')
    return faults, n_files


def self_test():
    cases = {("src/base/a.h", "plan/p.h"): False, ("src/plan/a.cc", "base/b.h"): True, ("src/plan/a.cc", "plan/b.h"): True,
             ("src/kernels/cpu/a.cc", "checkpoint/c.h"): False, ("src/kernels/cpu/a.cu", "plan/p.h"): False,
             ("src/text/a.cc", "layout/l.h"): False, ("src/text/a.cc", "base/b.h"): True, ("src/base/a.cc", "b.h"): False,
             ("src/synth/a.cc", "scheme/s.h"): True, ("src/synth/a.cc", "plan/p.h"): False,
             ("src/kernels/cuda/a.cuh", "kernels/cuda/b.cuh"): True, ("include/nibble/a.h", "base/b.h"): False,
             ("src/base/a.cc", "nibble/b.h"): True, ("apps/nibble/a.cc", "engine/e.h"): True, ("apps/nibble/a.cc", "verb.h"): True}
    for (source, included), good in cases.items():
        with tempfile.TemporaryDirectory() as name:
            path = pathlib.Path(name, source)
            path.parent.mkdir(parents=True)
            path.write_text(f'#pragma once\n  # include "{included}"\n')
            faults, _ = check(pathlib.Path(name))
            assert (faults == []) == good, f"{source} includes {included}: {faults}"
            assert good or faults[0].startswith(f"{source}:2:"), faults
    print(len(cases), "cases")


if sys.argv[1:] == ["--self-test"]:
    self_test()
elif len(sys.argv) != 2:
    sys.exit("usage: check_layers.py SRC | --self-test")
else:
    found, files = check(pathlib.Path(sys.argv[1]))
    print("\n".join(found) or f"{files} files in order")
    sys.exit(bool(found) or files == 0)
