#!/usr/bin/env python3
"""bench_test.py NIBBLE SOURCE_DIR: `nibble synth` and `nibble bench` as a person and a program use them. Standard library alone.

No figure is held to a time: only to the others that it must agree with."""
import csv
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import unittest

NIBBLE, SOURCE = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
SAMPLE = os.path.join(SOURCE, "models", "qwen3-moe-mini")
CONFIGS = os.path.join(SOURCE, "models", "configs")
MINI = os.path.join(CONFIGS, "qwen3.6-mini")


def run(*arguments, expect=0):
    done = subprocess.run([NIBBLE, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, f"{arguments}: exit {done.returncode}, expected {expect}\n{done.stderr}"
    return done


def digests(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            out[name] = hashlib.sha256(file.read()).hexdigest()
    return out


class Synth(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.out = os.path.join(self.folder.name, "out")

    def tearDown(self):
        self.folder.cleanup()

    def test_writes_what_inspect_and_run_take(self):
        for form in ("modelopt", "compressed-tensors"):
            out = f"{self.out}-{form}"
            told = json.loads(run("synth", MINI, "-o", out, "--format", form, "--json").stdout)
            self.assertGreater(told["tensors"], 500)
            seen = json.loads(run("inspect", out, "--json").stdout)
            self.assertEqual(seen["checkpoint"]["source_format"], form.replace("-", "_"))
            made = json.loads(run("run", out, "--prompt-ids", "1,2,3", "-n", "4", "--temperature", "0", "--ignore-eos", "--json").stdout)
            self.assertEqual(len(made["ids"]), 4)

    def test_same_options_same_files(self):
        run("synth", MINI, "-o", self.out, "--layers", "1", "--seed", "5")
        run("synth", MINI, "-o", self.out + "2", "--layers", "1", "--seed", "5")
        run("synth", MINI, "-o", self.out + "3", "--layers", "1", "--seed", "6")
        self.assertEqual(digests(self.out), digests(self.out + "2"))
        self.assertNotEqual(digests(self.out)["model.safetensors"], digests(self.out + "3")["model.safetensors"])

    def test_refuses_to_overwrite(self):
        run("synth", MINI, "-o", self.out, "--layers", "1")
        before = digests(self.out)
        refused = run("synth", MINI, "-o", self.out, "--layers", "2", expect=2)
        self.assertIn("--force", refused.stderr)
        self.assertEqual(digests(self.out), before)
        run("synth", MINI, "-o", self.out, "--layers", "2", "--force")
        self.assertNotEqual(digests(self.out), before)

    def test_bad_words(self):
        for bad in (["--scheme", "Q4_K"], ["--format", "gguf"], ["--layers", "400"]):
            self.assertIn(bad[1], run("synth", MINI, "-o", self.out, *bad, expect=2).stderr)
            self.assertFalse(os.path.exists(self.out))


class Bench(unittest.TestCase):
    def check(self, row, repetitions):
        self.assertEqual(len(row["samples_ts"]), repetitions)
        self.assertEqual(len(row["samples_ns"]), repetitions)
        tokens = row["n_prompt"] + row["n_gen"]
        for rate, ns in zip(row["samples_ts"], row["samples_ns"]):
            self.assertGreater(rate, 0)
            self.assertAlmostEqual(rate * ns * 1e-9 / tokens, 1, delta=1e-3)
        self.assertAlmostEqual(row["avg_ts"] / statistics.mean(row["samples_ts"]), 1, delta=1e-9)
        self.assertAlmostEqual(row["median_ts"] / statistics.median(row["samples_ts"]), 1, delta=1e-9)
        self.assertAlmostEqual(row["stddev_ts"], statistics.stdev(row["samples_ts"]), delta=1e-6 * row["avg_ts"])
        self.assertGreater(row["read_gb_per_s"], 0.01)

    def test_sample_as_json(self):
        done = run("bench", SAMPLE, "-p", "16,32", "-n", "8", "-pg", "16,4", "-r", "3", "-o", "json")
        rows = json.loads(done.stdout)
        self.assertEqual([row["test"] for row in rows], ["pp16", "pp32", "tg8", "pp16+tg4"])
        for row in rows:
            self.check(row, 3)
            self.assertEqual((row["model"], row["synthetic"], row["layers"]), ("qwen3-moe-mini", False, 6))
            # Embedding and head of 4096 x 256; a layer's attention, router, norms and 32 experts.
            attention = 256 * 256 * 2 + 256 * 128 * 2
            layer = attention + 32 * 256 + 2 * 256 + 2 * 64 + 32 * 3 * 256 * 128
            self.assertEqual(row["model_n_params"], 2 * 4096 * 256 + 256 + 6 * layer)
            # What a token reads: NVFP4 attention and 4 experts, bf16 router and head.
            a_token = 6 * ((attention + 4 * 3 * 256 * 128) * 0.5625 + 32 * 256 * 2) + 4096 * 256 * 2
            self.assertEqual(row["bytes_per_token"], a_token)
            self.assertIsNone(row["acceptance_length"])
            self.assertTrue(row["device"].startswith("cpu"), row["device"])
            self.assertGreater(row["peak_anonymous_bytes"], row["packed_bytes"])
            self.assertGreaterEqual(row["peak_resident_bytes"], row["peak_anonymous_bytes"])
        decode = rows[2]
        self.assertAlmostEqual(decode["gb_per_s"], decode["median_ts"] * decode["bytes_per_token"] * 1e-9, places=9)
        self.assertAlmostEqual(decode["share_of_read"], decode["gb_per_s"] / decode["read_gb_per_s"], places=9)
        self.assertIsNone(rows[0]["gb_per_s"])

    def test_other_forms(self):
        arguments = ["bench", SAMPLE, "-p", "8", "-n", "4", "-r", "2", "-t", "1,2"]
        lines = [json.loads(line) for line in run(*arguments, "-o", "jsonl").stdout.splitlines()]
        self.assertEqual([(row["n_threads"], row["test"]) for row in lines], [(1, "pp8"), (1, "tg4"), (2, "pp8"), (2, "tg4")])
        table = list(csv.DictReader(io.StringIO(run(*arguments, "-o", "csv").stdout)))
        self.assertEqual([row["test"] for row in table], ["pp8", "tg4", "pp8", "tg4"])
        self.assertEqual(table[0]["gb_per_s"], "")
        text = run(*arguments).stdout
        self.assertEqual(text.count("| tg4 |") + text.count(" tg4 |"), 2)
        self.assertEqual(text.count("peak memory"), 2)

    def test_synthetic_with_speculation(self):
        done = run("bench", "--synthetic", MINI, "-p", "8", "-n", "8", "-r", "2", "--spec", "mtp:2", "-o", "json")
        prompt, decode = json.loads(done.stdout)
        for row in (prompt, decode):
            self.check(row, 2)
            self.assertTrue(row["synthetic"])
            self.assertEqual(row["draft_tokens"], 2)
        self.assertIsNone(prompt["acceptance_length"])
        self.assertTrue(1 <= decode["acceptance_length"] <= 3, decode["acceptance_length"])

    def test_synthetic_is_what_synth_writes(self):
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out")
            run("synth", MINI, "-o", out, "--layers", "4")
            rows = [json.loads(run("bench", *where, "-p", "8", "-n", "0", "-r", "1", "-o", "json").stdout)[0]
                    for where in ([out], ["--synthetic", MINI, "--layers", "4"])]
            for key in ("model_size", "model_n_params", "packed_bytes", "bytes_per_token", "layers"):
                self.assertEqual(rows[0][key], rows[1][key], key)

    def test_bad_words(self):
        for bad in (["-p", "many"], ["-n", "5-3"], ["-pg", "512"], ["-o", "xml"], ["-p", "0", "-n", "0"], ["--synthetic", MINI]):
            run("bench", SAMPLE, *bad, expect=2)
        run("bench", expect=2)


class Requests(unittest.TestCase):
    WORKLOAD = ["--synthetic", MINI, "--requests", "4", "--warmup", "1", "--prefix-len", "60", "--input-len", "20", "--output-len", "33"]

    def test_figures_agree(self):
        told = json.loads(run("bench", *self.WORKLOAD, "--spec", "mtp:3", "--synthetic-acceptance", "3.15", "--json").stdout)
        self.assertEqual(told["output_tokens"], 4 * 33)
        self.assertEqual(told["synthetic_acceptance"], 3.15)
        self.assertTrue(2.8 < told["acceptance_length"] <= 3.2)
        self.assertAlmostEqual(told["output_throughput"], told["output_tokens"] / told["duration_s"], places=3)
        for kind in ("ttft_ms", "itl_ms", "latency_ms"):
            figures = [told[kind][name] for name in ("min", "p50", "p90", "p99", "max")]
            self.assertEqual(figures, sorted(figures))
            self.assertTrue(figures[0] <= told[kind]["mean"] <= figures[-1])
        self.assertAlmostEqual(told["latency_ms"]["mean"], told["ttft_ms"]["mean"] + 32 * told["itl_ms"]["mean"], places=3)
        self.assertLessEqual(4 * told["latency_ms"]["mean"], 1e3 * told["duration_s"] * 1.0001)

    def test_says_that_acceptance_is_synthetic(self):
        told = run("bench", *self.WORKLOAD, "--spec", "mtp:2", "--synthetic-acceptance", "2").stdout
        self.assertIn("SYNTHETIC acceptance", told)
        self.assertNotIn("SYNTHETIC", run("bench", *self.WORKLOAD, "--spec", "mtp:2").stdout)

    def test_bad_words(self):
        self.assertIn("1 … 3", run("bench", *self.WORKLOAD, "--spec", "mtp:2", "--synthetic-acceptance", "3.5", expect=2).stderr)
        self.assertIn("1 … 1", run("bench", *self.WORKLOAD, "--synthetic-acceptance", "2", expect=2).stderr)
        self.assertIn("--requests", run("bench", "--synthetic", MINI, "--input-len", "5", expect=2).stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
