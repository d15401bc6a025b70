"""Nibble as a program that is run: its build, its times, its logits, and the limits of the machine."""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

PRECISION = ["--activation-precision", "bf16"]  # W4A16, whatever the checkpoint declares


class Nibble:
    def __init__(self, build, isa):
        """build: a directory of CMake; where there is none, the release preset is built there. isa: for NIBBLE_ISA, or None."""
        root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
        self.program, self.limits_bench = os.path.join(build, "nibble"), os.path.join(build, "bench", "kernels", "limits_bench")
        if not (os.path.exists(self.program) and os.path.exists(self.limits_bench)):
            subprocess.run(["cmake", "--preset", "release", "-S", root, "-B", build], check=True, stdout=sys.stderr)
            subprocess.run(["nice", "cmake", "--build", build, "--target", "nibble", "limits_bench"], check=True, stdout=sys.stderr)
        self.environment = dict(os.environ, **({"NIBBLE_ISA": isa} if isa else {}))
        self.version = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()

    def _run(self, *arguments):
        return subprocess.run([self.program, *arguments], env=self.environment, check=True, stdout=subprocess.PIPE).stdout

    def synthesize(self, configs, to):
        self._run("synth", configs, "-o", to + ".part")
        os.rename(to + ".part", to)

    def time(self, checkpoint, prompt, generated, threads, repetitions):
        """The row of `nibble bench`."""
        row = json.loads(self._run("bench", checkpoint, *PRECISION, "-p", str(prompt), "-n", str(generated), "-t", str(threads), "-r",
                                   str(repetitions), "-o", "jsonl"))
        if "samples_cpu_ns" not in row:
            raise ValueError(f"{self.program} does not tell samples_cpu_ns; build a newer one")
        return row

    def logits(self, checkpoint, prompts, threads):
        """float32 [prompts, V], of each prompt's last position."""
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "logits.npy")
            for ids in prompts:
                self._run("run", checkpoint, *PRECISION, "--threads", str(threads), "--prompt-ids", ",".join(map(str, ids)), "-n", "1",
                          "--ignore-eos", "--temperature", "0", "--json", "--dump-logits", out)
                rows.append(np.load(out))
        return np.stack(rows)

    def limits(self, threads):
        """GFLOP/s by name of instruction: of rounds that had the cores to themselves, or else by CPU time."""
        lines = subprocess.run([self.limits_bench, str(threads)], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        return {row["what"]: row["wall"] or row["cpu"] for row in map(json.loads, lines)}
