#!/usr/bin/env python3
"""Holds nvfp4_blocks.py to plain loops over one weight after the other. Skipped without numpy."""
import sys
import unittest

try:
    import numpy as np
except ImportError:
    print("no numpy: skipped")
    sys.exit(77)  # ctest's SKIP_RETURN_CODE

import nvfp4_blocks

MAGNITUDE = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def value_of_code(code):
    return -MAGNITUDE[code & 7] if code & 8 else MAGNITUDE[code]


def value_of_scale(byte):
    exponent, mantissa = byte >> 3, byte & 7
    return mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def weights_of_checkpoint(codes, scales):
    """As modelopt says: [N][K]."""
    return [
        [value_of_code(int(codes[n, k // 2]) >> 4 * (k % 2) & 15) * value_of_scale(int(scales[n, k // 16])) for k in range(2 * codes.shape[1])]
        for n in range(codes.shape[0])
    ]


def weights_of_blocks(blocks):
    """As ggml-common.h's block_nvfp4 and its dequantization say: [N][K]."""
    out = []
    for row in blocks:
        weights = []
        for at in range(0, len(row), 36):
            for group in range(4):
                scale = value_of_scale(int(row[at + group]))
                codes = [int(byte) for byte in row[at + 4 + 8 * group : at + 12 + 8 * group]]
                weights += [value_of_code(byte & 15) * scale for byte in codes] + [value_of_code(byte >> 4) * scale for byte in codes]
        out.append(weights)
    return out


def random_weights(rows, k, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, k // 2), np.uint8), rng.integers(0, 0x7F, (rows, k // 16), np.uint8)


class Blocks(unittest.TestCase):
    def test_blocks_hold_the_same_weights(self):
        for rows, k in ((1, 64), (3, 128), (2, 320), (5, 2048)):
            codes, scales = random_weights(rows, k, rows * k)
            blocks = nvfp4_blocks.pack(codes, scales)
            self.assertEqual(blocks.shape, (rows, k // 64 * 36))
            self.assertEqual(weights_of_blocks(blocks), weights_of_checkpoint(codes, scales))

    def test_bf16_is_exact_without_a_multiplier(self):
        codes, scales = random_weights(130, 128, 1)
        scales.reshape(-1)[:127] = np.arange(127)
        bits = nvfp4_blocks.to_bf16(codes, scales)
        values = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        self.assertEqual(values.tolist(), weights_of_checkpoint(codes, scales))

    def test_a_multiplier_rounds_to_the_nearest_bf16(self):
        multiplier = 0.0123456789
        codes, scales = random_weights(16, 64, 2)
        values = (nvfp4_blocks.to_bf16(codes, scales, multiplier).astype(np.uint32) << 16).view(np.float32)
        for got, exact in zip(values.reshape(-1).tolist(), np.array(weights_of_checkpoint(codes, scales)).reshape(-1) * multiplier):
            self.assertLessEqual(abs(got - exact), abs(exact) * 2.0**-8 * (1 + 2.0**-16))
        ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8)])
        self.assertEqual(nvfp4_blocks.round_bf16(ties).tolist(), [0x3F80, 0x3F82, 0xBF80])

    def test_what_the_type_cannot_say_is_refused(self):
        codes, scales = random_weights(2, 64, 3)
        for byte in (0x7F, 0x80, 0xFF):
            bad = scales.copy()
            bad[1, 2] = byte
            self.assertRaises(ValueError, nvfp4_blocks.pack, codes, bad)
        self.assertRaises(ValueError, nvfp4_blocks.pack, codes[:, :24], scales[:, :3])
        self.assertRaises(ValueError, nvfp4_blocks.pack, codes, scales[:, :3])


if __name__ == "__main__":
    unittest.main()
