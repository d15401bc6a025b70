"""The figure of a report: bars of tokens a second, and the machine's limits as lines. SVG, by hand; readable on light and dark."""
from xml.sax.saxutils import escape

from . import figures

WIDTH, PANEL, TOP, LEFT, BOTTOM = 860, 200, 54, 54, 40
BAR, GAP = 26, 3
STYLE = """text{font-family:sans-serif;font-size:12px;fill:#24292f}.small{font-size:11px;fill:#57606a}.title{font-weight:600}
.axis{stroke:#8c959f;stroke-width:1}.grid{stroke:#8c959f;stroke-opacity:.3}.limit{stroke:#cf222e;stroke-width:2;stroke-dasharray:5 3}
.in{font-size:11px;fill:#fff}
.p0{fill:#1f7a4d}.p1{fill:#3b7dd8}.p2{fill:#b7791f}.p3{fill:#8250df}.p4{fill:#6e7781}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b3}.p0{fill:#3fb27f}.p1{fill:#6ea8fe}.p2{fill:#d9a23f}.p3{fill:#b392f0}
.limit{stroke:#ff7b72}.in{fill:#0d1117}}"""


def step_of(top):
    """A round distance of grid lines, of which at most six fit."""
    step = 1
    while top / step > 6:
        step *= 2.5 if str(step)[0] == "2" else 2
    return int(step)


def panel(rows, programs, left, width, title):
    out = [f'<text class="title" x="{left}" y="{TOP - 12}">{escape(title)}</text>']
    groups = list(dict.fromkeys((r["point"], r["threads"]) for r in rows))
    top = 1.05 * max(max(figures.speed(r), r["limit_tokens_per_s"] or 0) for r in rows)
    y = lambda value: round(TOP + PANEL * (1 - value / top), 1)
    step = step_of(top)
    for value in range(0, int(top) + 1, step):
        out.append(f'<line class="{"grid" if value else "axis"}" x1="{left}" y1="{y(value)}" x2="{left + width}" y2="{y(value)}"/>')
        out.append(f'<text class="small" x="{left - 6}" y="{y(value) + 4}" text-anchor="end">{value}</text>')
    for g, key in enumerate(groups):
        middle = left + width * (g + 0.5) / len(groups)
        chosen = [r for r in rows if (r["point"], r["threads"]) == key]
        start = middle - len(chosen) * (BAR + GAP) / 2
        for i, row in enumerate(chosen):
            x, h = round(start + i * (BAR + GAP), 1), y(figures.speed(row))
            out.append(f'<rect class="p{programs.index(row["program"]) % 5}" x="{x}" y="{h}" width="{BAR}" height="{round(TOP + PANEL - h, 1)}"/>')
            kind, at = ("in", h + 13) if TOP + PANEL - h > 16 else ("small", h - 3)
            out.append(f'<text class="{kind}" x="{x + BAR / 2:.1f}" y="{at:.1f}" text-anchor="middle">{figures.speed(row):.0f}</text>')
        limit = chosen[0]["limit_tokens_per_s"]
        if limit:
            x2 = start + len(chosen) * (BAR + GAP)
            out.append(f'<line class="limit" x1="{start - 6:.1f}" y1="{y(limit)}" x2="{x2 + 3:.1f}" y2="{y(limit)}"/>')
        threads = f'{key[1]} thread{"s" if key[1] > 1 else ""}'
        out.append(f'<text class="small" x="{middle:.1f}" y="{TOP + PANEL + 16}" text-anchor="middle">{key[0]}</text>')
        out.append(f'<text class="small" x="{middle:.1f}" y="{TOP + PANEL + 30}" text-anchor="middle">{threads}</text>')
    return out


def legend(programs):
    out, x = [], LEFT
    for i, program in enumerate(programs):
        out.append(f'<rect class="p{i % 5}" x="{x}" y="8" width="12" height="12"/><text x="{x + 17}" y="18">{escape(program)}</text>')
        x += 34 + 7 * len(program)
    out.append(f'<line class="limit" x1="{x}" y1="14" x2="{x + 24}" y2="14"/>')
    out.append(f'<text x="{x + 30}" y="18">limit of the machine: memory (tg), multipliers (pp)</text>')
    return out


def draw(result, path):
    rows, programs = figures.summarize(result), result["programs"]
    prefill, decode = ([r for r in rows if r["point"].startswith(kind)] for kind in ("pp", "tg"))
    panels = [(r, t) for r, t in ((prefill, "Prefill, tokens a second"), (decode, "Decode, tokens a second")) if r]
    groups = sum(len(r) // len(programs) for r, _ in panels)
    unit = (WIDTH - LEFT * len(panels) - 10) / groups
    height = TOP + PANEL + BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">', f"<style>{STYLE}</style>",
           *legend(programs)]
    left = LEFT
    for chosen, title in panels:
        width = unit * len(chosen) / len(programs)
        out += panel(chosen, programs, round(left, 1), round(width, 1), title)
        left += width + LEFT
    with open(path, "w") as file:
        file.write("\n".join(out + ["</svg>"]) + "\n")
