"""A modelopt NVFP4 checkpoint of Qwen3-MoE as numpy sees it: tensors as views into the mapped shards."""
import json
import os
import struct

import numpy as np

TYPES = {"U8": np.uint8, "F8_E4M3": np.uint8, "BF16": np.uint16, "F32": np.float32}


class Checkpoint:
    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "config.json")) as file:
            self.config = json.load(file)
        self._refuse_what_gguf_would_not_say()
        self.tensors = {}
        for name in sorted(os.listdir(folder)):
            if name.endswith(".safetensors"):
                self._map(os.path.join(folder, name))

    def _refuse_what_gguf_would_not_say(self):
        expected = {
            "model_type": "qwen3_moe", "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
            "attention_bias": False, "use_sliding_window": False, "rope_scaling": None,
        }
        for key, value in expected.items():
            if self.config.get(key, value) != value:
                raise ValueError(f"{self.folder}/config.json: {key} is {self.config[key]!r}; the converter knows {value!r}")

    def _map(self, path):
        data = np.memmap(path, np.uint8, "r")
        length = struct.unpack("<Q", data[:8].tobytes())[0]
        for name, info in json.loads(data[8 : 8 + length].tobytes()).items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            raw = data[8 + length + begin : 8 + length + end]
            # A tensor of four bytes may lie at an odd place.
            kind = np.dtype(TYPES[info["dtype"]])
            self.tensors[name] = np.frombuffer(raw.tobytes() if kind.itemsize == 4 else raw, kind).reshape(info["shape"])

    def nvfp4(self, module):
        """codes u8 [N, K/2], scales u8 [N, K/16], multiplier of a quantized module."""
        t = self.tensors
        if f"{module}.weight_scale_2" not in t:
            raise ValueError(f"{self.folder}: {module} has no weight_scale_2; expected modelopt's NVFP4 with quantized q, k, v, o and experts")
        return t[f"{module}.weight"], t[f"{module}.weight_scale"], float(t[f"{module}.weight_scale_2"].reshape(-1)[0])

    def flop_per_token(self):
        """Of the quantized products: 2 each weight. Neither attention itself nor router and lm_head, which are a few per cent."""
        c = self.config
        heads = c["head_dim"] * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])  # q and o; k and v
        experts = 3 * c["num_experts_per_tok"] * c["moe_intermediate_size"]
        return 2 * c["num_hidden_layers"] * c["hidden_size"] * (heads + experts)
