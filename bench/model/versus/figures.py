"""From samples to the figures of a report.

A sample is one process: {"round", "program", "point", "threads", "wall_s": […], "cpu_s": […]}, times of one repetition each; of Nibble also
"read_gb_per_s" and "bytes_per_token". A limit is {"round", "threads", "gflops": {instruction: …}}."""
import statistics

OURS = "nibble"
CLEAN = 0.95  # of threads * wall must be CPU time: nobody else took a core
MULTIPLIES = {"avx512bf16": "vdpbf16ps_zmm", "avx512": "fma_f32_zmm", "avx2": "fma_f32_ymm"}  # what an ISA's products are made of


def median(values):
    values = list(values)
    return statistics.median(values) if values else None


def tokens_of(point):
    return int(point[2:])


def speed(row):
    """What to show of a row: without what others took, where that was seen."""
    return row["clean_tokens_per_s"] or row["tokens_per_s"]


def summarize(result):
    """One row a point, number of threads and program, in the order in which they were measured."""
    rows = []
    for key in dict.fromkeys((s["point"], s["threads"]) for s in result["samples"]):
        limits = _limits(result, *key)
        for program in result["programs"]:
            rows.append(_row(result["samples"], program, *key, limits))
    return rows


def _select(samples, program, point, threads):
    return [s for s in samples if (s["program"], s["point"], s["threads"]) == (program, point, threads)]


def _clean(sample, threads):
    """Wall times of its clean repetitions."""
    return [w for w, c in zip(sample["wall_s"], sample["cpu_s"]) if c >= CLEAN * threads * w]


def _row(samples, program, point, threads, limits):
    chosen = _select(samples, program, point, threads)
    times = [(w, c) for s in chosen for w, c in zip(s["wall_s"], s["cpu_s"])]
    clean = [w for s in chosen for w in _clean(s, threads)]
    n = tokens_of(point)
    row = {
        "point": point, "threads": threads, "program": program, "repetitions": len(times), "clean": len(clean),
        "tokens_per_s": n / median(w for w, _ in times),
        "clean_tokens_per_s": n / median(clean) if clean else None,
        "tokens_per_cpu_s": n / median(c for _, c in times),
        "limit_tokens_per_s": median(limits.values()),
        "share": median(n / w / limits[s["round"]] for s in chosen if s["round"] in limits for w in _clean(s, threads)),
    }
    if program != OURS:
        ours = {s["round"]: s for s in _select(samples, OURS, point, threads)}
        for clock in ("wall_s", "cpu_s"):
            row[f"ratio_{clock[:-2]}"] = median(median(s[clock]) / median(ours[s["round"]][clock]) for s in chosen if s["round"] in ours)
    return row


def _limits(result, point, threads):
    """By round: tokens a second that memory (decode) or the multipliers (prefill) allow the checkpoint's own weights."""
    if point.startswith("tg"):
        ours = _select(result["samples"], OURS, point, threads)
        return {s["round"]: s["read_gb_per_s"] * 1e9 / s["bytes_per_token"] for s in ours}
    name = MULTIPLIES.get(result["isa"])
    return {r["round"]: r["gflops"][name] * 1e9 / result["flop_per_token"] for r in result["limits"] if r["threads"] == threads and name in r["gflops"]}


def compare(ours, theirs):
    """What two programs' logits [prompts, V] have in common: {"argmax_equal", "prompts", "rms_median", "rms_max", "kl_mean"}."""
    import numpy as np

    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    rms = np.sqrt(((b - a) ** 2).mean(1) / (a**2).mean(1))
    p, q = (x - x.max(1, keepdims=True) for x in (a, b))
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
    return {"prompts": len(a), "argmax_equal": int((a.argmax(1) == b.argmax(1)).sum()), "rms_median": float(np.median(rms)),
            "rms_max": float(rms.max()), "kl_mean": float((np.exp(p) * (p - q)).sum(1).mean())}
