#!/usr/bin/env python3
"""Compares our tokenizer with PyPI `tokenizers` id by id, for both split patterns, and times runs of one letter.

usage: tokenizer_differential.py --program build/dev/tests/e2e/tokenizer_batch [--model models/qwen3-moe-mini]
       [--count 100000] [--seed 1]
Exit status 1 if any text gets other ids.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys
import tempfile

import tokenizers

import tokenizer_strings

LONG = [b"a" * (1 << 20), b" " * (1 << 20), b"a " * (1 << 19), "é".encode() * (1 << 19), b"\n" * (1 << 20),
        "\u0301\u0316".encode() * (1 << 17), b"<|im_start|>" * 5000, b"<" * (1 << 18), b"0" * (1 << 18), b"", b"\x00"]


def frames(texts):
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)


def ours(command, texts):
    out = subprocess.run(command, input=frames(texts), stdout=subprocess.PIPE, check=True).stdout
    at = 0
    for _ in texts:
        (n,) = struct.unpack_from("<I", out, at)
        yield list(struct.unpack_from(f"<{n}i", out, at + 4))
        at += 4 + 4 * n
    assert at == len(out)


def with_pattern(spec, pattern):
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def compare(program, model, name, pattern, count, seed):
    """model: a folder with a tokenizer.json."""
    spec = json.loads((model / "tokenizer.json").read_text())
    added = [t["content"] for t in spec["added_tokens"]]
    oracle = with_pattern(spec, pattern)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pattern_file:
        pattern_file.write(pattern)
        pattern_file.flush()
        command = [program, model, pattern_file.name]
        differences = 0
        texts = LONG + list(tokenizer_strings.strings(count, added, seed))
        expected = [e.ids for e in oracle.encode_batch([t.decode("utf-8", "replace") for t in texts],
                                                       add_special_tokens=False)]
        for text, want, got in zip(texts, expected, ours(command, texts)):
            if want != got:
                differences += 1
                if differences <= 5:
                    print(f"{name}: {text[:200]!r}\n  want {want[:40]}\n  got  {got[:40]}")
        print(f"{name}: {len(texts)} texts, {sum(map(len, texts))} bytes, {sum(map(len, expected))} ids, "
              f"{differences} differ")
        letters = [b"a" * (1 << 20), b"a" * (1 << 21)] * 3
        timed = subprocess.run([command[0], "-t", *command[1:]], input=frames(letters), stdout=subprocess.PIPE, check=True)
        seconds = [float(line.split()[2]) for line in timed.stdout.decode().splitlines()]
        one, two = min(seconds[0::2]), min(seconds[1::2])
        print(f"{name}: 1 MiB of one letter {one:.3f} s, 2 MiB {two:.3f} s, ratio {two / one:.2f}")
    return differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path("models/qwen3-moe-mini"))
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    # The sample's vocabulary hides where text is split: few of its merges reach beyond ASCII. The trained one shows every border.
    with tempfile.TemporaryDirectory() as trained_dir:
        trained = pathlib.Path(trained_dir)
        sample = json.loads((args.model / "tokenizer.json").read_text())
        added = [t["content"] for t in sample["added_tokens"]]
        texts = [t.decode("utf-8", "replace") for t in tokenizer_strings.strings(20_000, added, args.seed)]
        (trained / "tokenizer.json").write_text(json.dumps(tokenizer_strings.train_without_split(sample, texts, 8000)))
        differences = sum(compare(args.program, model, f"{vocabulary} vocabulary, {name} pattern", pattern, args.count, args.seed)
                          for vocabulary, model in (("sample", args.model), ("trained", trained))
                          for name, pattern in tokenizer_strings.PATTERNS.items())
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
