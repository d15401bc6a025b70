#!/usr/bin/env python3
"""strip_reference.py IN.safetensors OUT.safetensors N: keeps the tensors of the first N prompts of a reference file
(p0.* … p<N-1>.*) and those of the layer-0 MoE. The committed references hold the short prompts alone."""
import json
import re
import struct
import sys

source, target, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = open(source, "rb").read()
length = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8 : 8 + length])
body = data[8 + length :]
kept, out = {}, b""
for name, info in header.items():
    match = re.match(r"p(\d+)\.", name)
    if name == "__metadata__" or (match and int(match.group(1)) >= count):
        continue
    begin, end = info["data_offsets"]
    kept[name] = dict(info, data_offsets=[len(out), len(out) + end - begin])
    out += body[begin:end]
text = json.dumps(kept, separators=(",", ":")).encode()
text += b" " * (-len(text) % 8)
open(target, "wb").write(struct.pack("<Q", len(text)) + text + out)
