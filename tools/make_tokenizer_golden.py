#!/usr/bin/env python3
"""Writes tests/golden/text/tokenizer.json: strings and their ids by PyPI `tokenizers`, for the C++ unit test.

The sample checkpoint's own vocabulary says little about where text is split: few of its merges reach beyond ASCII. So a second one is
trained here on the same strings without any split; under a split pattern its ids change with every piece.
usage: make_tokenizer_golden.py MODEL_DIR > tests/golden/text/tokenizer.json
"""
import base64
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/e2e"))
import tokenizer_strings  # noqa: E402
import tokenizers  # noqa: E402

COUNT = 1200
PATTERNS = {
    **tokenizer_strings.PATTERNS,
    "three digits": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                    r"|\s+(?!\S)|\s+",
    "letter case": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                   r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
                   r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def main():
    model = pathlib.Path(sys.argv[1])
    sample = json.loads((model / "tokenizer.json").read_text())
    added = [t["content"] for t in sample["added_tokens"]]
    texts = list(tokenizer_strings.strings(COUNT, added, seed=20))
    decoded = [t.decode("utf-8", "replace") for t in texts]
    trained = tokenizer_strings.train_without_split(sample, decoded, 1600)
    trained["added_tokens"] += [
        {"id": 3000, "content": "https://example", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False},
        {"id": 3001, "content": "foo_bar(baz)", "single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": True},
        {"id": 3002, "content": "A\u030a", "single_word": False, "lstrip": True, "rstrip": False, "normalized": True,
         "special": False},
    ]
    # The reference numbers added tokens on from the vocabulary: fill the gap up to theirs.
    next_id = max(t["id"] for t in trained["added_tokens"] if t["id"] < 3000) + 1
    for token in trained["added_tokens"]:
        if token["id"] >= 3000:
            token["id"], next_id = next_id, next_id + 1
    runs = []
    for vocabulary, spec in (("sample", sample), ("trained", trained)):
        for name, pattern in PATTERNS.items():
            if vocabulary == "sample" and name not in tokenizer_strings.PATTERNS:
                continue
            for whole in (False, True):
                if whole and (vocabulary, name) != ("trained", "qwen3"):
                    continue
                spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
                spec["model"]["ignore_merges"] = whole
                oracle = tokenizers.Tokenizer.from_str(json.dumps(spec))
                encodings = [oracle.encode(t, add_special_tokens=False).ids for t in decoded]
                # Every third text is enough for the patterns beyond the two; ids as base 36 words take half the space.
                step = 1 if vocabulary == "trained" and name in tokenizer_strings.PATTERNS and not whole else 3
                runs.append({"vocabulary": vocabulary, "pattern": pattern, "whole_piece_first": whole, "step": step,
                             "ids": [" ".join(map(str, e)) for e in encodings[::step]],
                             "decoded": oracle.decode(encodings[0], skip_special_tokens=True)})
            spec["model"]["ignore_merges"] = False
    json.dump({"tokenizers": tokenizers.__version__, "trained": trained,
               "texts": [base64.b64encode(t).decode() for t in texts], "runs": runs},
              sys.stdout, ensure_ascii=True, separators=(",", ":"))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
