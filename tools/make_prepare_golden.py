#!/usr/bin/env python3
"""Writes tests/golden/weights/prepare.json: what weight preparation must give, byte for byte.

Written from the definitions, not from src/weights: the interleaved scale layout as the view (row tile, group tile, 32, 4, 4)
of its dimensions, padding and half order by building lists of rows, common scales by trying every power of two in exact
fractions. Bytes are hexadecimal. Standard library only. Usage: make_prepare_golden.py > tests/golden/weights/prepare.json
"""
import json
import random
import struct
import sys
from fractions import Fraction

random.seed(20)


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def e4m3(byte):
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    magnitude = Fraction(mantissa, 512) if exponent == 0 else Fraction(8 + mantissa) * Fraction(2) ** (exponent - 10)
    return -magnitude if sign else magnitude


E4M3 = {e4m3(b): b for b in range(0x7F)}


def to_e4m3(x):
    """Nearest, ties to the even byte, saturating."""
    return min(range(0x7F), key=lambda b: (abs(e4m3(b) - x), b & 1))


def random_bytes(n, top=256):
    return [random.randrange(top) for _ in range(n)]


def rows_of(flat, width):
    return [flat[i:i + width] for i in range(0, len(flat), width)]


def text(rows):
    return bytes(b for row in rows for b in row).hex()


# ---- Interleaved block scales.

def swizzle(rows):
    groups = len(rows[0])
    row_tiles, group_tiles = -(-len(rows) // 128), -(-groups // 4)
    out = []
    for row_tile in range(row_tiles):
        for group_tile in range(group_tiles):
            for low in range(32):
                for high in range(4):
                    for g in range(4):
                        m, k = row_tile * 128 + high * 32 + low, group_tile * 4 + g
                        out.append(rows[m][k] if m < len(rows) and k < groups else 0)
    return out


def swizzle_cases():
    for rows, groups in [(1, 1), (33, 5), (128, 4), (130, 9)]:
        linear = rows_of(random_bytes(rows * groups, 0x7F), groups)
        yield {"rows": rows, "groups": groups, "linear": text(linear), "swizzled": bytes(swizzle(linear)).hex()}


# ---- Half order and padding.

def matrix(n, k):
    return {"codes": rows_of(random_bytes(n * k // 2), k // 2), "scales": rows_of(random_bytes(n * k // 16, 0x7F), k // 16)}


def padded_rows(rows, to):
    return rows + [[0] * len(rows[0])] * (to - len(rows))


def w13(gate, up, order, padded):
    out = {}
    for part in ("codes", "scales"):
        g, u = padded_rows(gate[part], padded), padded_rows(up[part], padded)
        out[part] = {"gate_up": g + u, "up_gate": u + g, "interleaved": [r for pair in zip(g, u) for r in pair]}[order]
    return out


def hexed(m):
    return {part: text(rows) for part, rows in m.items()}


def w13_cases():
    for hidden, intermediate, pad_to in [(16, 48, 64), (32, 5, 16), (16, 16, 16)]:
        padded = -(-intermediate // pad_to) * pad_to
        gate, up = matrix(intermediate, hidden), matrix(intermediate, hidden)
        case = {"hidden": hidden, "intermediate": intermediate, "pad_to": pad_to, "padded": padded, "gate": hexed(gate), "up": hexed(up)}
        for order in ("gate_up", "up_gate", "interleaved"):
            case[order] = hexed(w13(gate, up, order, padded))
        yield case


def w2_cases():
    for hidden, intermediate, pad_to in [(16, 48, 64), (3, 80, 64), (5, 128, 128)]:
        padded = -(-intermediate // pad_to) * pad_to
        down = matrix(hidden, intermediate)
        wide = {"codes": [r + [0] * (padded // 2 - len(r)) for r in down["codes"]],
                "scales": [r + [0] * (padded // 16 - len(r)) for r in down["scales"]]}
        yield {"hidden": hidden, "intermediate": intermediate, "pad_to": pad_to, "padded": padded, "down": hexed(down),
               "w2": hexed(wide), "swizzled_scales": bytes(swizzle(wide["scales"])).hex()}


# ---- Scalar scales.

def common_alpha(gate, up, gate_scales, up_scales):
    """(alpha, gate shift, up shift), moving the gate as little as can be, or None."""
    ratio = Fraction(gate) / Fraction(up)
    for gate_shift in sorted(range(-40, 41), key=abs):
        alpha = Fraction(gate) / Fraction(2) ** gate_shift
        factor = Fraction(up) / alpha
        for up_shift in range(-40, 41):
            if factor != Fraction(2) ** up_shift:
                continue
            if all(e4m3(b) * Fraction(2) ** gate_shift in E4M3 for b in gate_scales) and \
               all(e4m3(b) * Fraction(2) ** up_shift in E4M3 for b in up_scales):
                return float(alpha), gate_shift, up_shift
    return None, float(ratio)


def common_cases():
    s2 = f32(2.2e-4)
    full = list(range(0x7F))
    middle = [0x20, 0x38, 0x47, 0x51, 0]
    rows = [
        ("equal scales", s2, s2, full, full),
        ("the gate twice the up", 2 * s2, s2, middle, middle),
        ("the up eight times the gate", s2, 8 * s2, middle, middle),
        ("the gate cannot move up: 448", s2 / 4, s2, [0x7E, 0x30], [0x38]),
        ("the up cannot move at all, the gate can", 4 * s2, s2, [0x38], full),
        ("neither reaches the other, both meet between", 8 * s2, s2, [0x70], [0x19]),
        ("down sixteen times", 16 * s2, s2, [0x38], [0x7E, 0x24]),
        ("down to an exact subnormal", s2, s2 / 8, [0x7E], [0x20, 0x08]),
        ("a subnormal would lose a bit", s2, s2 / 16, [0x7E, 0x01], [0x09]),
        ("zeros go anywhere", 1024 * s2, s2 / 1024, [0, 0], full),
        ("both at both ends", 2 * s2, s2, full, full),
        ("up to exactly 448", s2, 2 * s2, [0x01], [0x76]),
        ("three times", 3 * s2, s2, middle, middle),
        ("one unit in the last place", f32(1.0), 1.0 + 2.0 ** -23, [0x38], [0x38]),
    ]
    for what, gate, up, gate_scales, up_scales in rows:
        gate, up = f32(gate), f32(up)
        found = common_alpha(gate, up, gate_scales, up_scales)
        case = {"what": what, "gate": gate, "up": up, "gate_scales": bytes(gate_scales).hex(), "up_scales": bytes(up_scales).hex()}
        if found[0] is None:
            yield case | {"ratio": found[1]}
            continue
        alpha, gate_shift, up_shift = found
        yield case | {
            "alpha": alpha, "gate_shift": gate_shift, "up_shift": up_shift,
            "gate_shifted": bytes(E4M3[e4m3(b) * Fraction(2) ** gate_shift] for b in gate_scales).hex(),
            "up_shifted": bytes(E4M3[e4m3(b) * Fraction(2) ** up_shift] for b in up_scales).hex()}


def scale_cases():
    """Two experts; activation scales [[1, 2], [3, 1]] for gate and up, [5, 4] for down."""
    s13, s2 = [[f32(3e-4), f32(3e-4)], [f32(7e-5), f32(7e-5)]], [f32(2e-4), f32(9e-5)]
    a13, a2 = [[1.0, 2.0], [3.0, 1.0]], [5.0, 4.0]
    flat = sum(s13, [])
    everywhere = max(sum(a13, []))
    given = {"g1": flat, "g2": s2, "a1": sum(a13, []), "a2": a2}
    rows = max(a13[0]), max(a13[1])
    own = {"g1": flat, "g2": s2, "a1": sum(a13, []), "a2": a2, "fc2": None, "widened": 0}
    folded = {"g1": [f32(s13[e][0] * everywhere) for e in range(2)], "g2": [f32(s * max(a2)) for s in s2],
              "a1": [everywhere] * 2, "a2": [max(a2)] * 2, "fc2": None, "widened": 4}
    alone = {"g1": flat, "g2": s2, "a1": None, "a2": None, "fc2": None, "widened": 0}
    per_expert = {"g1": flat, "g2": s2, "a1": list(rows), "a2": a2, "fc2": a2, "widened": 2}
    return {"given": given, "w4a4": {"REFERENCE": own, "CPU": own, "MARLIN": own, "HOPPER": own, "B12X": per_expert, "CUTLASS": folded},
            "w4a16": {"REFERENCE": alone, "CPU": alone, "MARLIN": alone, "HOPPER": alone, "B12X": alone | {"fc2": [1.0, 1.0]},
                      "CUTLASS": alone | {"g1": [s[0] for s in s13]}}}


# ---- What others lose by multiplying the global scale into the block scales; negative zeros.

def bake_cases():
    s2 = f32(2e-5)
    for value in (448, 256, 100, 48, 30, 1, Fraction(1, 512)):
        byte = E4M3[Fraction(to_value(value))]
        yield {"scale": byte, "global": s2, "baked": to_e4m3(e4m3(byte) * Fraction(s2))}


def to_value(value):
    return e4m3(to_e4m3(Fraction(value)))


def without_negative_zeros(byte):
    nibbles = [0 if n == 8 else n for n in (byte & 15, byte >> 4)]
    return nibbles[0] | nibbles[1] << 4


def main():
    codes = list(range(256)) + [0x88] * 13
    golden = {
        "swizzle": list(swizzle_cases()), "w13": list(w13_cases()), "w2": list(w2_cases()), "common_alpha": list(common_cases()),
        "scales": scale_cases(), "bake": list(bake_cases()),
        "negative_zero": {"codes": bytes(codes).hex(), "cleared": bytes(map(without_negative_zeros, codes)).hex()}}
    json.dump(golden, sys.stdout, indent=1)
    print()


main()
