"""NVFP4 weights from a checkpoint's layout to those of GGUF. numpy alone.

A checkpoint (modelopt) has codes [N, K/2], the even k in a byte's low nibble; scales E4M3 [N, K/16]; and one fp32 multiplier.
GGML's type 40 has blocks of 64 weights: four scale bytes, then 32 bytes of codes. Of each 16 weights, byte j has k = j in its low nibble
and k = j + 8 in its high one. The multiplier is a tensor of its own, `.scale`, that the graph multiplies results by."""
import numpy as np

BLOCK, BLOCK_BYTES = 64, 36
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3(bits):
    """The value of each E4M3 byte below 0x7F, as float64."""
    exponent, mantissa = bits >> 3, bits & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent.astype(np.int64) - 10))


def check(codes, scales):
    """ValueError for what type 40 cannot say: a row that is no whole number of blocks, a scale that is negative or NaN."""
    rows, half = codes.shape
    if half % (BLOCK // 2):
        raise ValueError(f"rows of {2 * half} weights, expected a multiple of {BLOCK}")
    if scales.shape != (rows, half // 8):
        raise ValueError(f"scales {scales.shape}, expected {(rows, half // 8)} for codes {codes.shape}")
    if scales.max(initial=0) > 0x7E:
        raise ValueError("a block scale that is negative or NaN, which GGML's unsigned E4M3 has not")


def pack(codes, scales):
    """codes u8 [N, K/2], scales u8 [N, K/16] -> blocks u8 [N, K/64 * 36]. The bits of codes and scales stay as they are."""
    check(codes, scales)
    rows, groups = scales.shape
    pairs = codes.reshape(rows, groups, 2, 4)  # byte i of half h holds k = 8h + 2i and 8h + 2i + 1
    first, second = pairs[:, :, 0], pairs[:, :, 1]
    out = np.empty((rows, groups // 4, BLOCK_BYTES), np.uint8)
    out[:, :, :4] = scales.reshape(rows, groups // 4, 4)
    mixed = np.empty((rows, groups, 4, 2), np.uint8)
    mixed[..., 0] = first & 0x0F | second << 4
    mixed[..., 1] = first >> 4 | second & 0xF0
    out[:, :, 4:] = mixed.reshape(rows, groups // 4, 32)
    return out.reshape(rows, groups // 4 * BLOCK_BYTES)


def round_bf16(values):
    """Finite float64, rounded to fp32 -> bits of the nearest bf16, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def to_bf16(codes, scales, multiplier=1.0):
    """codes, scales as above -> bits of bf16 [N, K]. Exact where the multiplier is 1: a code times its scale has six bits."""
    check(codes, scales)
    scale = e4m3(np.arange(0x7F))[:, None] * float(multiplier)
    byte = np.arange(256)
    pair = round_bf16(np.stack([scale * E2M1[byte & 15], scale * E2M1[byte >> 4]], axis=-1))  # [scale, code byte, 2]
    table = np.ascontiguousarray(pair).view(np.uint32).reshape(-1)
    rows, groups = scales.shape
    index = (scales.astype(np.uint16) << 8)[:, :, None] | codes.reshape(rows, groups, 8)
    return table[index].view(np.uint16).reshape(rows, groups * 16)
