#!/usr/bin/env python3
"""Nibble and llama.cpp on the very same weights, in turn: one command, from nothing to a table and a figure.

    python3 -m venv build/venv && build/venv/bin/pip install numpy==2.4.6 gguf==0.19.0
    build/venv/bin/python bench/model/versus_llama_cpp.py

Builds Nibble and a pinned llama.cpp from PyPI, makes a checkpoint of random weights, writes GGUF files of it, shows by logits that
all of them are the same model, and measures in rounds: in each, every program once at every point, a process each, the order turning with
the rounds. Times are wall and CPU of the same repetitions: where other programs share the machine, compare by CPU time and by "clean"
repetitions, in which nobody took a core. Ratios are taken within a round; then their median.

llama.cpp rounds activations to int8; Nibble runs W4A16. Not measured: loading, tokenizers. Decoding is greedy in both."""
import argparse
import datetime
import json
import os
import sys

import numpy as np

from versus import figures, gguf_files, plot, report
from versus.checkpoint import Checkpoint
from versus.llama_cpp import QUANTIZE, VERSION, LlamaCpp, log
from versus.nibble import Nibble

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
CONFIGS = os.path.join(ROOT, "models", "configs", "qwen3-moe-bench")
PROMPT_LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 24, 31, 48, 64, 100)
LOCAL = ("--work", "--llama", "--build", "--checkpoint", "-o", "--output", "--figure", "--from")  # of this machine: not told in results


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    build = os.path.join(ROOT, "build")
    many = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser.add_argument("--types", type=many(str), default=["nvfp4", "q4_0"], help="llama.cpp's files: nvfp4, bf16, " + ", ".join(QUANTIZE))
    parser.add_argument("--points", type=many(str), default=["pp512", "pp2048", "tg128"])
    parser.add_argument("--threads", type=many(int), default=sorted({1, os.cpu_count()}))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repetitions", type=int, default=1, help="in a process, besides one that is not counted")
    parser.add_argument("--avx2", action="store_true", help="both programs with AVX2 and nothing newer")
    parser.add_argument("--no-proof", action="store_true", help="leave out the comparison of logits")
    parser.add_argument("--checkpoint", help="modelopt NVFP4 of Qwen3-MoE; made of models/configs/qwen3-moe-bench unless given")
    parser.add_argument("--build", default=os.path.join(build, "release"), help="Nibble's build directory; built unless it is there")
    parser.add_argument("--work", default=os.path.join(build, "peer"), help="where files are made, up to 10 GB; kept for the next run")
    parser.add_argument("--llama", help="llama.cpp's sources, with or without build/ (default: fetched into --work)")
    parser.add_argument("-o", "--output", help="default: bench/results/versus_llama_cpp.json, or …_avx2.json")
    parser.add_argument("--figure", help="default: docs/figures/versus_llama_cpp.svg, or …_avx2.svg")
    parser.add_argument("--from", dest="results", help="print and draw these results; measure nothing")
    a = parser.parse_args()
    name = "versus_llama_cpp_avx2" if a.avx2 else "versus_llama_cpp"
    a.output = a.output or os.path.join(ROOT, "bench", "results", name + ".json")
    a.figure = a.figure or os.path.join(ROOT, "docs", "figures", name + ".svg")
    if min(a.rounds, a.repetitions, *a.threads) < 1:
        parser.error("expected at least one thread, round and repetition")
    for kind in a.types:
        if kind not in ("nvfp4", "bf16", *QUANTIZE):
            parser.error(f"type {kind!r}; known are nvfp4, bf16, {', '.join(QUANTIZE)}")
    for point in a.points:
        if point[:2] not in ("pp", "tg") or not point[2:].isdecimal() or int(point[2:]) == 0:
            parser.error(f"point {point!r}; expected pp512 or tg128")
    return a


class Files:
    """The GGUF files of a checkpoint in the work directory, made where they are missing."""

    def __init__(self, checkpoint, work, tools):
        self.checkpoint, self.work, self.tools = checkpoint, work, tools

    def path(self, form):
        return os.path.join(self.work, f"{os.path.basename(os.path.normpath(self.checkpoint.folder))}-{form}.gguf")

    def missing(self, path):
        """Older than the checkpoint counts as well."""
        made_of = os.path.join(self.checkpoint.folder, "config.json")
        return not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(made_of)

    def get(self, form):
        if self.missing(self.path(form)):
            log(f"making {os.path.basename(self.path(form))}")
            if form in QUANTIZE:
                self.tools.quantize(self.get("folded-bf16"), self.path(form), form)
            else:
                gguf_files.write(self.checkpoint, form, self.path(form) + ".part")
                os.rename(self.path(form) + ".part", self.path(form))
        return self.path(form)

    def drop(self, *forms):
        for form in forms:
            if os.path.exists(self.path(form)):
                os.remove(self.path(form))


def prompts(vocabulary):
    """Fixed, each a few ids all over the vocabulary."""
    return [[(7919 * (i + 1) * (n + 3) + 104729 * i) % vocabulary for i in range(n)] for n in PROMPT_LENGTHS]


def prove(nibble, llama, files, types, threads):
    """Logits of each file, by llama.cpp, against those of the checkpoint, by Nibble."""
    checkpoint = files.checkpoint
    asked = prompts(checkpoint.config["vocab_size"])
    log("logits: Nibble")
    ours = nibble.logits(checkpoint.folder, asked, threads)
    out = {}
    for kind in dict.fromkeys(["bf16", *types]):
        # llama.cpp is pinned, and so are the prompts: what it said once it says again.
        said = f"{files.path(kind)}.{llama.name}.logits"
        if files.missing(said):
            log(f"logits: llama.cpp {kind}")
            llama.logits(files.get(kind), asked, threads, said)
        theirs = np.fromfile(said, np.float32).reshape(ours.shape)
        out[f"llama.cpp {kind}"] = figures.compare(ours, theirs)
    return out


def measure(a, nibble, llama, files):
    """Yields after each round what all rounds so far have brought."""
    programs = {figures.OURS: None, **{f"llama.cpp {kind}": files.get(kind) for kind in a.types}}
    samples, limits, isa = [], [], None
    for number in range(a.rounds):
        turn = number % len(programs)
        for threads in a.threads:
            limits.append({"round": number, "threads": threads, "gflops": nibble.limits(threads)})
            for point in a.points:
                n = int(point[2:])
                work = (n, 0) if point.startswith("pp") else (0, n)
                for program in [*programs][turn:] + [*programs][:turn]:
                    ours = program == figures.OURS
                    row = (nibble.time(files.checkpoint.folder, *work, threads, a.repetitions) if ours
                           else llama.time(programs[program], *work, threads, a.repetitions))
                    sample = {"round": number, "program": program, "point": point, "threads": threads,
                              "wall_s": [1e-9 * t for t in row["samples_ns"]], "cpu_s": [1e-9 * t for t in row["samples_cpu_ns"]]}
                    if ours:
                        isa = row["isa"]
                        sample |= {key: row[key] for key in ("read_gb_per_s", "bytes_per_token")}
                    samples.append(sample)
                    log(f"round {number + 1} of {a.rounds}: {point}, {threads} threads, {program}: "
                        f"{n / figures.median(sample['wall_s']):.0f} tok/s, {n / figures.median(sample['cpu_s']):.0f} a CPU second")
        yield {"isa": isa, "programs": [*programs], "samples": samples, "limits": limits}


def command_told():
    told, words = ["bench/model/versus_llama_cpp.py"], iter(sys.argv[1:])
    for word in words:
        if word in LOCAL:
            next(words)
        elif word.split("=")[0] not in LOCAL:
            told.append(word)
    return " ".join(told)


def cpu_name():
    with open("/proc/cpuinfo") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown CPU")


def run(a):
    """Measures, and writes the results."""
    os.makedirs(a.work, exist_ok=True)
    load = os.getloadavg()[0]
    nibble = Nibble(os.path.abspath(a.build), "avx2" if a.avx2 else None)
    sources = os.path.abspath(a.llama or os.path.join(a.work, "llama.cpp"))
    native = LlamaCpp(sources, a.work, "native")
    llama = LlamaCpp(sources, a.work, "avx2") if a.avx2 else native
    folder = a.checkpoint or os.path.join(a.work, os.path.basename(CONFIGS))
    if not a.checkpoint and not os.path.exists(folder):
        nibble.synthesize(CONFIGS, folder)
    files = Files(Checkpoint(folder), a.work, native)
    for kind in a.types:
        files.get(kind)
    proof = {} if a.no_proof else prove(nibble, llama, files, a.types, max(a.threads))
    files.drop("folded-bf16", *({"bf16"} - set(a.types)))  # 5 GB each
    about = {
        "date": datetime.date.today().isoformat(), "command": command_told(), "nibble": nibble.version, "peer": VERSION,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_before": load},
        "checkpoint": os.path.basename(os.path.normpath(folder)), "threads": a.threads, "flop_per_token": files.checkpoint.flop_per_token(),
        "proof": proof,
    }
    for measured in measure(a, nibble, llama, files):
        about["machine"]["load_after"] = os.getloadavg()[0]
        result = {**about, **measured}
        with open(a.output, "w") as file:  # a run that is broken off keeps its rounds
            json.dump(result, file, indent=1)
            file.write("\n")
    return result


def main():
    a = arguments()
    if a.results:
        with open(a.results) as file:
            result = json.load(file)
    else:
        result = run(a)
    os.makedirs(os.path.dirname(os.path.abspath(a.figure)), exist_ok=True)
    plot.draw(result, a.figure)
    print("\n".join(report.markdown(result)))


if __name__ == "__main__":
    main()
