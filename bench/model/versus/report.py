"""A report in markdown, to be pasted into docs/performance.md."""
from . import figures


def number(value, digits=0, unit=""):
    return "" if value is None else f"{value:.{digits}f}{unit}"


def speeds(result):
    yield "| point | threads | program | tok/s | clean tok/s (of) | tok a CPU second | Nibble / it, wall | CPU | limit, tok/s | share of it |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in figures.summarize(result):
        clean = f'{number(row["clean_tokens_per_s"])} ({row["clean"]} of {row["repetitions"]})' if row["clean"] else f'none of {row["repetitions"]}'
        ours = row["program"] == figures.OURS
        cells = [
            row["point"], row["threads"], row["program"], number(row["tokens_per_s"]), clean, number(row["tokens_per_cpu_s"]),
            number(row.get("ratio_wall"), 2), number(row.get("ratio_cpu"), 2),
            number(row["limit_tokens_per_s"]) if ours else "",
            number(row["share"] and 100 * row["share"], 0, " %") if ours else "",
        ]
        yield "| " + " | ".join(map(str, cells)) + " |"


def limits(result):
    threads = list(dict.fromkeys(r["threads"] for r in result["limits"]))
    names = list(dict.fromkeys(name for r in result["limits"] for name in r["gflops"]))
    yield "| limit, median of the rounds | " + " | ".join(f'{n} thread{"s" if n > 1 else ""}' for n in threads) + " |"
    yield "|---|" + "---|" * len(threads)
    ours = [s for s in result["samples"] if s["program"] == figures.OURS]
    reads = [figures.median(s["read_gb_per_s"] for s in ours if s["threads"] == n) for n in threads]
    yield "| plain read, GB/s | " + " | ".join(number(v, 1) for v in reads) + " |"
    for name in names:
        values = [figures.median(r["gflops"][name] for r in result["limits"] if r["threads"] == n) for n in threads]
        yield f"| {name}, G operations a second | " + " | ".join(number(v) for v in values) + " |"


def proof(result):
    yield "| logits against Nibble's | same likeliest token | relative RMS, median (largest) | KL, mean |"
    yield "|---|---|---|---|"
    for name, p in result["proof"].items():
        yield f'| {name} | {p["argmax_equal"]} of {p["prompts"]} | {p["rms_median"]:.1e} ({p["rms_max"]:.1e}) | {p["kl_mean"]:.1e} |'


def markdown(result):
    m = result["machine"]
    yield f'{m["cpu"]}, {m["cores"]} CPUs, {result["date"]}, Nibble {result["nibble"]} ({result["isa"]}) and {result["peer"]}.'
    yield f'Load average {m["load_before"]:.1f} before, {m["load_after"]:.1f} after (the runs themselves make up to {max(result["threads"])}).'
    yield f'`{result["command"]}`'
    for table in (speeds, limits, proof):
        if table is not proof or result["proof"]:
            yield ""
            yield from table(result)
