#!/usr/bin/env python3
"""variants_test.py NIBBLE SOURCE_DIR: spellings and shapes that the genuine checkpoints do not have.

Each variant is derived from a genuine checkpoint (a tiny one; of MTP modules, one that NIBBLE_TEST_DATA leads to) so that it must compute what another one does: experts stacked or one by
one, head tied or equal to the embedding, a dense layer or a single expert, old and new spellings of a config field, an MTP module in
four bits.
Standard library alone."""
import bisect
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

NIBBLE, SOURCE = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
TINY = os.path.join(SOURCE, "tests", "golden", "tiny")
PROMPT = "1226,315,258,1263,274,352,1941,88,779,11,274"


class Checkpoint:
    """Tensors and config of a single-file checkpoint, to be changed and written elsewhere."""

    def __init__(self, name):
        self.base = os.path.join(TINY, name)
        with open(os.path.join(self.base, "model.safetensors"), "rb") as file:
            data = file.read()
        length = struct.unpack("<Q", data[:8])[0]
        self.tensors = {}
        for key, info in json.loads(data[8 : 8 + length]).items():
            if key != "__metadata__":
                begin, end = info["data_offsets"]
                self.tensors[key] = (info["dtype"], info["shape"], data[8 + length + begin : 8 + length + end])
        with open(os.path.join(self.base, "config.json")) as file:
            self.config = json.load(file)
        self.drop_hf_quant_config = False

    def write(self, folder):
        os.makedirs(folder)
        header, body = {}, b""
        for key, (dtype, shape, data) in self.tensors.items():
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        text = json.dumps(header).encode()
        with open(os.path.join(folder, "model.safetensors"), "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + body)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(self.config, file)
        if not self.drop_hf_quant_config and os.path.exists(os.path.join(self.base, "hf_quant_config.json")):
            shutil.copy(os.path.join(self.base, "hf_quant_config.json"), folder)
        return folder


class Variants(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.count = 0

    def logits(self, checkpoint, *flags, env=None):
        self.count += 1
        folder = checkpoint.write(os.path.join(self.folder, str(self.count)))
        out = os.path.join(folder, "logits.npy")
        done = subprocess.run([NIBBLE, "run", folder, "--prompt-ids", PROMPT, "-n", "1", "--dump-logits", out, *flags],
                              capture_output=True, timeout=120, env={**os.environ, **(env or {})})
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        with open(out, "rb") as file:
            data = file.read()
        length = struct.unpack("<H", data[8:10])[0]
        return struct.unpack(f"<{(len(data) - 10 - length) // 4}f", data[10 + length :])

    def assertClose(self, a, b, limit):
        norm = math.sqrt(sum(y * y for y in b))
        self.assertGreater(norm, 0)
        self.assertLessEqual(math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b))) / norm, limit)

    def assertFar(self, a, b):
        with self.assertRaises(AssertionError):
            self.assertClose(a, b, 0.02)

    def test_rope_in_both_spellings(self):
        new = Checkpoint("modelopt-w4a16")
        old = Checkpoint("modelopt-w4a16")
        theta = old.config.pop("rope_parameters")["rope_theta"]
        old.config.update(rope_theta=theta, rope_scaling=None)
        expected = self.logits(new)
        self.assertEqual(self.logits(old), expected)
        old.config["rope_theta"] = 100.0
        self.assertFar(self.logits(old), expected)

    def test_expert_count_in_both_spellings(self):
        one, other = Checkpoint("ct-nvfp4a16"), Checkpoint("ct-nvfp4a16")
        other.config["num_experts"] = other.config.pop("num_local_experts")
        self.assertEqual(self.logits(one), self.logits(other))

    def test_tied_head_is_the_embedding(self):
        for base in ("modelopt-w4a16", "ct-nvfp4a16"):
            untied, tied = Checkpoint(base), Checkpoint(base)
            untied.tensors["lm_head.weight"] = untied.tensors["model.embed_tokens.weight"]
            del tied.tensors["lm_head.weight"]
            tied.config["tie_word_embeddings"] = True
            self.assertEqual(self.logits(tied), self.logits(untied))
            self.assertFar(self.logits(tied), self.logits(Checkpoint(base)))

    def test_stacked_experts_equal_one_by_one(self):
        """modelopt's fused export: gate and up rows of all experts in one tensor, scalars a row an expert."""
        stacked = Checkpoint("modelopt-w4a16")
        for layer in range(stacked.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.mlp.experts."
            count = stacked.config["num_local_experts"]
            take = lambda e, name: stacked.tensors.pop(f"{prefix}{e}.{name}")
            parts = [{p: {f: take(e, f"{p}_proj.{f}") for f in ("weight", "weight_scale", "weight_scale_2")}
                      for p in ("gate", "up", "down")} for e in range(count)]

            def stack(field, projections):
                dtype, shape, _ = parts[0][projections[0]][field]
                data = b"".join(part[p][field][2] for part in parts for p in projections)
                return dtype, [count, shape[0] * len(projections), *shape[1:]], data

            for name, projections in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
                stacked.tensors[prefix + name] = stack("weight", projections)
                stacked.tensors[prefix + name + "_weight_scale"] = stack("weight_scale", projections)
                scalars = b"".join(part[p]["weight_scale_2"][2] for part in parts for p in projections)
                shape = [count, 2] if len(projections) == 2 else [count]
                stacked.tensors[prefix + name + "_weight_scale_2"] = ("F32", shape, scalars)
        self.assertEqual(self.logits(stacked), self.logits(Checkpoint("modelopt-w4a16")))

    def bf16_experts(self, stacked):
        """The pair (NVFP4 with every expert's global scale 2^-13, the same numbers as BF16 experts): code * scale * 2^-13 is exact."""
        e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
        e4m3 = lambda b: math.ldexp(b & 7, -9) if b < 8 else math.ldexp(8 + (b & 7), (b >> 3) - 10)
        bf16 = lambda v: struct.pack("<f", v)[2:]
        fp4, wide = Checkpoint("modelopt-w4a16"), Checkpoint("modelopt-w4a16")
        for key in list(fp4.tensors):
            if ".experts." not in key or not key.endswith(".weight"):
                continue
            for one in (fp4, wide):
                one.tensors[key + "_scale_2"] = ("F32", [], struct.pack("<f", 2.0**-13))
            _, (n, half), codes = fp4.tensors[key]
            scales = wide.tensors.pop(key + "_scale")[2]
            del wide.tensors[key + "_scale_2"]
            data = bytearray()
            for i in range(n * half * 2):
                code = codes[i // 2] >> (4 * (i % 2)) & 15
                value = e2m1[code & 7] * e4m3(scales[i // 16]) * 2.0**-13
                data += bf16(-value if code & 8 else value)
            wide.tensors[key] = ("BF16", [n, half * 2], bytes(data))
        wide.config["quantization_config"]["ignore"].append("*.mlp.experts*")
        wide.drop_hf_quant_config = True
        if stacked:
            for layer in range(wide.config["num_hidden_layers"]):
                prefix = f"model.layers.{layer}.mlp.experts."
                count = wide.config["num_local_experts"]
                take = lambda name: [wide.tensors.pop(f"{prefix}{e}.{name}_proj.weight") for e in range(count)]
                gate, up, down = take("gate"), take("up"), take("down")
                n, k = gate[0][1]
                wide.tensors[prefix + "gate_up_proj"] = ("BF16", [count, 2 * n, k], b"".join(g[2] + u[2] for g, u in zip(gate, up)))
                wide.tensors[prefix + "down_proj"] = ("BF16", [count, *down[0][1]], b"".join(d[2] for d in down))
        return fp4, wide

    def test_bf16_experts_stacked_or_not(self):
        for stacked in (False, True):
            fp4, wide = self.bf16_experts(stacked)
            for flags, limit in (((), 1e-3), (("--moe-backend", "reference"), 1e-6)):
                self.assertClose(self.logits(wide, *flags), self.logits(fp4, *flags), limit)

    def single_expert(self, dense_layers):
        """A model of one expert a layer; in `dense_layers` that expert is a plain MLP instead."""
        made = Checkpoint("modelopt-w4a16")
        made.config.update(num_local_experts=1, num_experts_per_tok=1, norm_topk_prob=True,
                           mlp_only_layers=dense_layers, intermediate_size=made.config["moe_intermediate_size"])
        for key in list(made.tensors):
            if ".mlp.experts." in key and ".mlp.experts.0." not in key:
                del made.tensors[key]
        for layer in range(made.config["num_hidden_layers"]):
            gate = f"model.layers.{layer}.mlp.gate.weight"
            dtype, shape, data = made.tensors[gate]
            made.tensors[gate] = (dtype, [1, shape[1]], data[: 2 * shape[1]])
            if layer in dense_layers:
                del made.tensors[gate]
                for key in [k for k in made.tensors if k.startswith(f"model.layers.{layer}.mlp.experts.0.")]:
                    made.tensors[key.replace("experts.0.", "")] = made.tensors.pop(key)
        return made

    def test_a_dense_layer_is_a_single_expert(self):
        for flags, limit in (((), 1e-3), (("--moe-backend", "reference"), 1e-6)):
            moe = self.logits(self.single_expert([]), *flags)
            for layers in ([0], [1], [0, 1]):
                self.assertClose(self.logits(self.single_expert(layers), *flags), moe, limit)

    def test_decoder_sparse_step(self):
        """Layer i is MoE iff (i + 1) % step == 0: with step 2, layer 0 is dense."""
        by_list, by_step = self.single_expert([0]), self.single_expert([0])
        by_step.config.update(mlp_only_layers=[], decoder_sparse_step=2)
        self.assertEqual(self.logits(by_step), self.logits(by_list))

    def test_norm_topk_prob(self):
        def made(renormalize, top_k):
            one = Checkpoint("modelopt-w4a16")
            one.config.update(norm_topk_prob=renormalize, num_experts_per_tok=top_k)
            return self.logits(one, "--moe-backend", "reference")

        experts = Checkpoint("modelopt-w4a16").config["num_local_experts"]
        self.assertClose(made(True, experts), made(False, experts), 1e-6)
        self.assertFar(made(True, 1), made(False, 1))

    def test_gate_and_up_may_have_different_global_scales(self):
        """up_proj's global scale times 2^k with its block scales divided by it: the same numbers, so the same bits, whatever k."""
        expected = self.logits(Checkpoint("modelopt-w4a16"))
        counts = {}
        for power in (-1, 1, 2, 3):
            made, count = Checkpoint("modelopt-w4a16"), 0
            for key, (dtype, shape, data) in list(made.tensors.items()):
                moved = [b - 8 * power for b in data]  # an e4m3 exponent step is 8
                if not key.endswith("up_proj.weight_scale") or not all(8 <= b <= 126 for b in moved):
                    continue  # exact only where the scales stay normal numbers
                count += 1
                made.tensors[key] = (dtype, shape, bytes(moved))
                scalar = made.tensors[key + "_2"]
                value = struct.unpack("<f", scalar[2])[0] * 2.0**power
                made.tensors[key + "_2"] = (scalar[0], scalar[1], struct.pack("<f", value))
            self.assertEqual(self.logits(made), expected, power)
            counts[power] = count
        self.assertTrue(all(counts[p] > 0 for p in (1, 2, 3)), counts)

    # Ratios of w1's and w3's global scales as published checkpoints have them: arbitrary, up to ten times.
    RATIOS = [0.1, 0.137, 0.5, 0.7071, 1.0, 1.3, 2.0, 3.337, 7.91, 10.0]

    def scale_globals(self, made, factors):
        """Multiplies every expert's global scales: factors(layer, expert) gives those of gate, up and down. Both dialects; each
        number is rounded to fp32 as it is stored."""
        reciprocal = "weight_global_scale" in " ".join(made.tensors)
        name = "weight_global_scale" if reciprocal else "weight_scale_2"
        for layer in range(made.config["num_hidden_layers"]):
            for expert in range(made.config["num_local_experts"]):
                for projection, factor in zip(("gate", "up", "down"), factors(layer, expert)):
                    key = f"model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.{name}"
                    dtype, shape, data = made.tensors[key]
                    value = struct.unpack("<f", data)[0]
                    made.tensors[key] = (dtype, shape, struct.pack("<f", value / factor if reciprocal else value * factor))
        return made

    def test_any_ratio_of_the_global_scales_of_gate_and_up(self):
        """up is linear in an expert: its scale times r answers what down's scale times r does, where gate and up keep one scale. So
        two files, one of which has w1 != w3, must agree; using one scale for both halves is off by up to ten times."""
        ratio = lambda layer, expert: self.RATIOS[(4 * layer + expert) % len(self.RATIOS)]
        for base in ("modelopt-w4a16", "ct-nvfp4a16"):
            apart = self.scale_globals(Checkpoint(base), lambda l, e: (1, ratio(l, e), 1))
            equal = self.scale_globals(Checkpoint(base), lambda l, e: (1, 1, ratio(l, e)))
            wrong = self.scale_globals(Checkpoint(base), lambda l, e: (1, 1, 1))
            for flags, limit in ((("--moe-backend", "reference"), 2e-6), ((), 5e-3)):
                truth = self.logits(equal, *flags)
                self.assertClose(self.logits(apart, *flags), truth, limit)
                self.assertFar(self.logits(wrong, *flags), truth)
            # What is left on a CPU is bf16's rounding of h, which r moves. With the same rounding REFERENCE answers the same within
            # fp32's accumulation: verify's distance.
            folder = apart.write(os.path.join(self.folder, "apart-" + base))
            for isa in self.isas():
                for layer in self.verify(folder, "--device", "cpu-" + isa)["layers"]:
                    self.assertLessEqual(layer["distance"], 1e-4, (base, isa))

    def test_a_global_scale_of_2e_minus_5_loses_nothing(self):
        """down's scale at 2e-5 against the same weights whose block scales are 2^k times smaller under a 2^k times larger global
        scale: equal numbers, so equal bits. Folding 2e-5 into e4m3 would leave nothing of them."""
        for base in ("modelopt-w4a16", "ct-nvfp4a16"):
            small, ordinary = Checkpoint(base), Checkpoint(base)
            reciprocal = base.startswith("ct")
            name = "weight_global_scale" if reciprocal else "weight_scale_2"
            moved = 0
            for key in list(small.tensors):
                if ".experts." not in key or not key.endswith(".weight_scale"):
                    continue
                scalar = key[: -len("weight_scale")] + name
                dtype, shape, _ = small.tensors[scalar]
                # fp32's neighbour of 2e-5, and of 5e4 = 1 / 2e-5 where the reciprocal is stored.
                small.tensors[scalar] = (dtype, shape, struct.pack("<f", 5e4 if reciprocal else 2e-5))
                low = [b - 16 for b in small.tensors[key][2]]  # two e4m3 exponents
                if all(8 <= b <= 126 for b in low):
                    moved += 1
                    ordinary.tensors[key] = (*small.tensors[key][:2], bytes(low))
                    ordinary.tensors[scalar] = (dtype, shape, struct.pack("<f", 1.25e4 if reciprocal else 8e-5))
                else:
                    ordinary.tensors[scalar] = small.tensors[scalar]
            self.assertGreater(moved, 10)
            for flags in ((), ("--moe-backend", "reference")):
                self.assertEqual(self.logits(small, *flags), self.logits(ordinary, *flags), base)

    def isas(self):
        with open("/proc/cpuinfo") as file:
            flags = file.read()
        needs = {"scalar": "", "avx2": "avx2", "avx512": "avx512bw", "avx512bf16": "avx512_bf16"}
        return [isa for isa, flag in needs.items() if flag in flags]

    def verify(self, folder, *flags):
        done = subprocess.run([NIBBLE, "verify", folder, "--json", *flags], capture_output=True, timeout=300)
        self.assertIn(done.returncode, (0, 4), done.stderr.decode())
        return json.loads(done.stdout)

    def test_stale_activation_scales_change_no_bit_of_any_kernel(self):
        """A W4A16 file that carries activation scales, good ones and garbage, forced on every kernel that runs here."""
        for base in ("modelopt-w4a16", "ct-nvfp4a16"):
            clean, stale = Checkpoint(base), Checkpoint(base)
            name = "input_global_scale" if base.startswith("ct") else "input_scale"
            for key in list(stale.tensors):
                if key.endswith(("_proj.weight", "_proj.weight_packed")) and stale.tensors[key][0] == "U8":
                    value = [0.01, 0.0, float("nan"), -1.0, 1.0][len(stale.tensors) % 5]
                    stale.tensors[key.rsplit(".", 1)[0] + "." + name] = ("F32", [1], struct.pack("<f", value))
            self.assertGreater(len(stale.tensors), len(clean.tensors) + 20)
            folder = stale.write(os.path.join(self.folder, "stale-" + base))
            kernels = set()
            for flags in [("--moe-backend", "reference"), *(("--moe-backend", "cpu", "--device", "cpu-" + isa) for isa in self.isas())]:
                proof = self.verify(folder, *flags)
                self.assertTrue(proof["agrees"], flags)
                for layer in proof["layers"]:
                    kernels.add(layer["kernel"])
                    self.assertEqual((layer["declared"], layer["measured"]), ("bf16", "bf16"))
                    self.assertGreaterEqual(layer["margin"], 10)
            self.assertEqual(len(kernels), 1 + len(self.isas()))
            for env, flags in [({}, ("--moe-backend", "reference")), *(({"NIBBLE_ISA": isa}, ("--moe-backend", "cpu")) for isa in self.isas())]:
                self.assertEqual(self.logits(stale, *flags, env=env), self.logits(clean, *flags, env=env), (base, env, flags))

    def test_the_log_counts_every_layer_of_a_deep_model(self):
        """One line an expert kernel's construction: 40 of 40."""
        deep = Checkpoint("ct-nvfp4a16")
        deep.config["num_hidden_layers"] = 40
        deep.config["quantization_config"]["ignore"] = ["lm_head", "re:.*mlp.gate$"]
        for key in [k for k in deep.tensors if k.startswith(("model.layers.0.", "model.layers.1."))]:
            _, _, layer, rest = key.split(".", 3)
            for copy in range(int(layer) + 2, 40, 2):
                deep.tensors[f"model.layers.{copy}.{rest}"] = deep.tensors[key]
        folder = deep.write(os.path.join(self.folder, "deep"))
        done = subprocess.run([NIBBLE, "run", folder, "--prompt-ids", "1", "-n", "1", "--log-level", "debug"], capture_output=True,
                              timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        lines = [l for l in done.stderr.decode().splitlines() if "experts layer=" in l]
        self.assertEqual(len(lines), 40)
        for layer, line in enumerate(lines):
            for field in (f"layer={layer} ", "backend=CPU", "activation_precision=bf16", "source_format=compressed_tensors"):
                self.assertIn(field, line + " ")

    def test_both_dialects_of_one_checkpoint_compute_the_same(self):
        """A modelopt checkpoint rewritten as compressed-tensors: reciprocal globals, other names; within the rounding of 1/x."""
        modelopt = Checkpoint("modelopt-w4a16")
        other = Checkpoint("ct-nvfp4a16")
        other.tensors = {}
        for key, (dtype, shape, data) in modelopt.tensors.items():
            if key.endswith(".weight_scale_2"):
                inverse = struct.pack("<f", 1 / struct.unpack("<f", data)[0])
                other.tensors[key.replace("weight_scale_2", "weight_global_scale")] = ("F32", [1], inverse)
            elif dtype == "U8":
                other.tensors[key.replace(".weight", ".weight_packed")] = (dtype, shape, data)
            else:
                other.tensors[key] = (dtype, shape, data)
        for flags in ((), ("--moe-backend", "reference")):
            self.assertClose(self.logits(other, *flags), self.logits(modelopt, *flags), 2e-6 if flags else 5e-3)


DATA = os.environ.get("NIBBLE_TEST_DATA")
E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
E4M3 = [m / 512 if e == 0 else (8 + m) * 2.0 ** (e - 10) for e in range(16) for m in range(8)][:127]


def nearest(table, value):
    i = min(max(bisect.bisect_left(table, value), 1), len(table) - 1)
    return i - (value - table[i - 1] < table[i] - value)


def quantize_nvfp4(values, scale_2):
    """Codes and block scales of values whose weight_scale_2 is given."""
    codes, scales = bytearray(), bytearray()
    for at in range(0, len(values), 16):
        block = values[at : at + 16]
        scale = nearest(E4M3, max(map(abs, block)) / 6 / scale_2)
        factor = 1 / (E4M3[scale] * scale_2) if scale else 0
        nibbles = [nearest(E2M1, abs(v) * factor) | (8 if v < 0 else 0) for v in block]
        codes += bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2]))
        scales.append(scale)
    return bytes(codes), bytes(scales)


@unittest.skipUnless(DATA, "NIBBLE_TEST_DATA is not set: a trained MTP module's variants are skipped")
class MtpVariants(unittest.TestCase):
    """The MTP module's experts as other exporters leave them: one by one, and in four bits."""

    EXPERTS = "mtp.layers.0.mlp.experts."

    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def load(self):
        checkpoint = Checkpoint(os.path.join(DATA, "checkpoints", "qwen3.6-moe-mini-modelopt-W4A16_NVFP4"))
        checkpoint.drop_hf_quant_config = True
        return checkpoint

    def run_json(self, checkpoint, name):
        folder = checkpoint.write(os.path.join(self.folder, name))
        done = subprocess.run([NIBBLE, "run", folder, "--prompt-ids", PROMPT, "-n", "96", "--temperature", "0", "--ignore-eos",
                               "--batch-invariant", "--spec", "mtp:3", "--json"], capture_output=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return json.loads(done.stdout)

    def split(self, checkpoint):
        """Takes the stacked experts out: name -> (rows, columns, bytes), expert by expert."""
        parts = {}
        for name, halves in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            _, (experts, rows, columns), data = checkpoint.tensors.pop(self.EXPERTS + name)
            rows //= len(halves)
            size = rows * columns * 2
            for index in range(experts * len(halves)):
                expert, half = divmod(index, len(halves))
                parts[f"{self.EXPERTS}{expert}.{halves[half]}"] = (rows, columns, data[index * size : (index + 1) * size])
        return parts

    def test_one_by_one_equals_stacked(self):
        stacked, single = self.load(), self.load()
        for name, (rows, columns, data) in self.split(single).items():
            single.tensors[name + ".weight"] = ("BF16", [rows, columns], data)
        a, b = self.run_json(stacked, "stacked"), self.run_json(single, "single")
        self.assertEqual(a["ids"], b["ids"])
        self.assertEqual(a["speculation"], b["speculation"])
        self.assertGreater(a["speculation"]["mean_acceptance_length"], 2)

    def test_in_four_bits_drafts_hardly_less_and_changes_no_token(self):
        plain, quantized = self.load(), self.load()
        ignore = quantized.config["quantization_config"]["ignore"]
        ignore.remove("mtp.layers.0*")
        ignore += ["mtp.layers.0.self_attn*", "mtp.layers.0.mlp.gate", "mtp.layers.0.mlp.shared_expert*"]
        for name, (rows, columns, data) in self.split(quantized).items():
            values = [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
            scale_2 = max(map(abs, values)) / (6 * 448)
            codes, scales = quantize_nvfp4(values, scale_2)
            quantized.tensors[name + ".weight"] = ("U8", [rows, columns // 2], codes)
            quantized.tensors[name + ".weight_scale"] = ("F8_E4M3", [rows, columns // 16], scales)
            quantized.tensors[name + ".weight_scale_2"] = ("F32", [], struct.pack("<f", scale_2))
        a, b = self.run_json(plain, "plain"), self.run_json(quantized, "quantized")
        self.assertEqual(a["ids"], b["ids"])
        lengths = [r["speculation"]["mean_acceptance_length"] for r in (a, b)]
        print(f"mean acceptance length: MTP experts in BF16 {lengths[0]:.2f}, in NVFP4 {lengths[1]:.2f}")
        self.assertGreater(lengths[1], 0.8 * lengths[0])


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
