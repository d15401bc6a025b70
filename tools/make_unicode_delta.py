#!/usr/bin/env python3
"""Writes src/text/unicode_delta.cc: where the reference tokenizer's Unicode differs from that of our libraries.

Measures the PyPI `tokenizers` wheel: the general category of every code point as its regex engine (Oniguruma) sees it,
and the code points that its NFC does not know. Needs Python 3.11 (Unicode 14.0, the version of PCRE2 10.42) and PyPI
`tokenizers`, `unicodedata2`. Usage: make_unicode_delta.py > src/text/unicode_delta.cc
"""
import sys
import unicodedata

import tokenizers
import unicodedata2
from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn").split()
# Old characters, assigned before Unicode 14, one a category and UTF-8 length.
STAND_INS = {
    ("Mn", 3): 0x0E31, ("Mc", 3): 0x0903, ("Po", 3): 0x0E4F, ("Lu", 3): 0x1E00, ("Ll", 3): 0x1E01,
    ("So", 3): 0x2300, ("Cf", 3): 0x200B, ("Lo", 4): 0x10000, ("Nd", 4): 0x104A0, ("Lm", 4): 0x16B40,
    ("Lu", 4): 0x10400, ("Ll", 4): 0x10428, ("Mn", 4): 0x1D167, ("Mc", 4): 0x1D165, ("Pd", 4): 0x10EAD,
    ("Sm", 4): 0x1D6C1, ("Po", 4): 0x10100, ("So", 4): 0x1F300, ("Cf", 4): 0x1D173, ("No", 4): 0x10107,
}


def scalars():
    return (c for c in range(0x110000) if not 0xD800 <= c < 0xE000)


def reference_categories():
    seen = {}
    for name in CATEGORIES:
        split = pre_tokenizers.Split(Regex(r"\p{%s}" % name), "removed")
        for c in scalars():
            if not split.pre_tokenize_str(chr(c)):
                assert c not in seen
                seen[c] = name
    return seen


def ranges(points):
    """[(first, last, tag)] of sorted (code point, tag)."""
    out = []
    for c, tag in points:
        if out and out[-1][1] == c - 1 and out[-1][2] == tag:
            out[-1][1] = c
        else:
            out.append([c, c, tag])
    return out


def category_delta():
    categories = reference_categories()
    delta = {c: categories[c] for c in scalars() if categories[c] != unicodedata.category(chr(c))}
    delta[0x180E] = "Cf"  # white space to PCRE2, not to Oniguruma nor to Unicode
    assert categories[0x180E] == "Cf"
    points = []
    for c, name in sorted(delta.items()):
        stand_in = STAND_INS[name, len(chr(c).encode())]
        assert categories[stand_in] == unicodedata.category(chr(stand_in)) == name
        points.append((c, stand_in))
    return ranges(points)


def nfc_unknown():
    nfc = normalizers.NFC().normalize_str
    nfd = normalizers.NFD().normalize_str
    unknown = set()
    for c in scalars():
        char = chr(c)
        decomposed = unicodedata2.normalize("NFD", char)
        if decomposed != char:
            if nfd(char) != decomposed:
                # It neither falls apart nor comes together there: hold apart the parts too. A part that is an old
                # mark stays known; its new base does not.
                unknown.add(c)
                unknown.update(ord(p) for p in decomposed if unicodedata.category(p) == "Cn" or ord(p) == 0x11930)
            continue
        # A combining class shows in what the mark changes places with: class 1 (U+0334) and class 240 (U+0345).
        after_1 = nfc("x" + char + "\u0334")[1] == "\u0334"
        before_240 = nfc("x\u0345" + char)[-1] == "\u0345"
        ccc = unicodedata2.combining(char)
        if c not in (0x334, 0x345) and (after_1 != (ccc > 1) or before_240 != (0 < ccc < 240)):
            assert not after_1 and not before_240
            unknown.add(c)
    return ranges((c, None) for c in sorted(unknown))


def rows(items, per_line):
    return "\n".join("    " + " ".join(items[i:i + per_line]) for i in range(0, len(items), per_line))


def main():
    assert unicodedata.unidata_version == "14.0.0", "run with Python 3.11: PCRE2 10.42 is of Unicode 14.0"
    categories = ["{0x%05X, 0x%05X, 0x%05X}," % tuple(r) for r in category_delta()]
    unknown = ["{0x%05X, 0x%05X}," % (r[0], r[1]) for r in nfc_unknown()]
    sys.stdout.write(f"""// Written by tools/make_unicode_delta.py from tokenizers {tokenizers.__version__} and Unicode \
{unicodedata2.unidata_version} data. Do not edit.
#include "text/unicode_delta.h"

namespace nibble::text {{
namespace {{

// clang-format off
constexpr CategoryDelta kCategoryDeltas[] = {{
{rows(categories, 4)}
}};

constexpr CodePointRange kUnknownToNfc[] = {{
{rows(unknown, 5)}
}};
// clang-format on

}}  // namespace

std::span<const CategoryDelta> CategoryDeltas() {{ return kCategoryDeltas; }}
std::span<const CodePointRange> UnknownToNfc() {{ return kUnknownToNfc; }}

}}  // namespace nibble::text
""")


if __name__ == "__main__":
    main()
