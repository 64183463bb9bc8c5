# SPDX-License-Identifier: Apache-2.0
"""report: what bench.py prints: a line a shape, the whole table, geometric means and the bars that the
kernels are held to. No PyTorch in here: it also reads the JSON of an earlier run.

    report.py FILE.json
"""

import json
import math
import statistics
import sys


def steps(path):
    """kvpool-gpu-step's lines {"shape", "us": [...], "served_us": ...} by shape; {} without a file."""
    out = {}
    if path:
        with open(path) as f:
            for text in f:
                if text.startswith("{"):
                    row = json.loads(text)
                    out.setdefault(row["shape"], {}).update(row)
    return out


def heading(section):
    return {
        "decode": "decode: us, percent of the read roof; best FI / ours",
        "prefill": "prefill: TFLOP/s of causal attention; FI fa2 / ours",
        "append": "append: us; FI / ours",
        "step": "whole step of a new batch: us of wall time; best FI / ours",
    }[section]


def wrong(row):
    return row["error"] is not None and not row["error"] <= 1


def fa2_ratio(row):
    return row["us"]["FI fa2"] / row["us"]["ours"] if "FI fa2" in row["us"] else None


def line(row):
    us, table = row["us"], row["table"]
    head = f"{table:8} {row['shape']:20}"
    if table == "prefill":
        parts = [f"{k} {row['flops'] / v / 1e6:.0f}" for k, v in us.items()]
        ratio = fa2_ratio(row)
        head += " " + "  ".join(parts) + (f"  x{ratio:.2f}" if ratio else "")
    else:
        part = 100 * row["limit_us"] / us["ours"]
        head += f" limit {row['limit_us']:8.1f}  ours {us['ours']:8.1f} ({part:3.0f} %)"
        head += "".join(f"  {k} {v:8.1f}" for k, v in us.items() if k != "ours")
        if row["ratio"]:
            head += f"  x{row['ratio']:.2f}"
        if row.get("plan_us"):
            head += f"  plan {row['plan_us']:.1f}"
        if row.get("served_us"):
            head += f"  served {row['served_us']:.0f}"
    if row["error"] is not None:
        head += f"  error {row['error']:.2f}"
    return head + ("  WRONG" if wrong(row) else "")


def bar_us(row, head):
    """The most that a shape may take by itself, and why; None where there is no such bar."""
    limit = row["limit_us"]
    if row["table"] == "even":
        return 9.0 if row["shape"] == "1x1024" else limit * 1.01 + 9
    if row["table"] == "ragged":
        return limit * 1.03 + 10
    if row["table"] == "heads" and row["shape"] in ("8/1", "32/1"):
        return limit / 0.68
    return None


def table(head, rows):
    lines = [
        "",
        f"{head['gpu']}, read roof {head['read_gbs']:.0f} GB/s, copy roof {head['copy_gbs']:.0f} "
        f"GB/s, empty kernel {head['empty_us']:.1f} us; FlashInfer {head['flashinfer']}, "
        f"PyTorch {head['torch']}; us, medians of {head['samples']}",
        f"{'table':8} {'shape':20} {'limit':>8} {'ours':>8} {'of roof':>8} {'best FI':>8} "
        f"{'':7} {'FI/ours':>8} {'bar':>8}",
    ]
    for row in rows:
        us, bar = row["us"], bar_us(row, head)
        best = f"{us[row['best']]:8.1f} {row['best']:7}" if row["best"] else f"{'-':>8} {'':7}"
        ratio = f"{row['ratio']:8.2f}" if row["ratio"] else f"{'-':>8}"
        verdict = "" if bar is None else f"{bar:8.1f} {'pass' if us['ours'] <= bar else 'FAIL'}"
        lines.append(
            f"{row['table']:8} {row['shape']:20} {row['limit_us']:8.1f} {us['ours']:8.1f} "
            f"{100 * row['limit_us'] / us['ours']:7.0f}% {best} {ratio} {verdict}"
            + ("  WRONG" if wrong(row) else "")
        )
    return "\n".join(lines)


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def bars(head, rows):
    """[{name, value, bar, pass}] of what was measured; in brackets: over how many shapes."""
    out = []

    def add(name, value, bar, ok):
        out.append({"name": name, "value": value, "bar": bar, "pass": ok})

    def of(*tables):
        return [r for r in rows if r["table"] in tables]

    def ratios(selected):
        return [r["ratio"] for r in selected if r["ratio"]]

    def at_most(name, selected):
        within = [r["us"]["ours"] - bar_us(r, head) for r in selected if bar_us(r, head)]
        if within:
            add(f"{name} [{len(within)}]", max(within), "0 us over at most", max(within) <= 0)

    def at_least(name, value, bar):
        add(name, value, f">= {bar:.2f}", None if value is None else value >= bar)

    even, odd = of("even"), of("ragged", "short", "heads", "pages")
    odd = [r for r in odd if not (r["table"] == "pages" and r["shape"] == "page16")]
    at_most("even: bytes / roof x 1.01 + 9 us, 1x1024 in 9 us", even)
    for name, selected, bar in (("even", even, 1.08), ("ragged, short, odd", odd, 1.15)):
        if ratios(selected):
            n = len(ratios(selected))
            at_least(f"{name}: geometric mean of FI / ours [{n}]", mean(ratios(selected)), bar)
            at_least(f"{name}: least of FI / ours", min(ratios(selected)), 1.0)
    slower = [r["us"]["ours"] / r["seed_us"] for r in even if r["seed_us"]]
    if slower:
        add("even: most of ours / seed", max(slower), "<= 1", max(slower) <= 1)
    at_most("ragged: bytes / roof x 1.03 + 10 us", of("ragged"))
    for row in of("heads"):
        if row["shape"] in ("8/1", "32/1"):
            at_least(f"heads {row['shape']}: of the roof", row["limit_us"] / row["us"]["ours"], 0.68)
    group = {r["shape"]: r["us"]["ours"] for r in of("groups")}
    for name in ("group5", "group7", "group12"):
        if name in group and "group8" in group:
            at_least(f"{name}: bandwidth / group8's", group["group8"] / group[name], 0.97)
    page = [r["us"]["ours"] for r in of("pages")]
    if len(page) > 1:
        at_least("pages 8 to 128: slowest / fastest", min(page) / max(page), 0.97)
    fp8 = {r["shape"]: r["us"]["ours"] for r in of("fp8")}
    if len(fp8) == 2:
        at_least("fp8: bf16 / e4m3 at 1 GiB", fp8["bf16-64x4096"] / fp8["e4m3-64x4096"], 1.7)
    step = ratios(of("step"))
    if step:
        at_least(f"step: least of FI / ours [{len(step)}]", min(step), 3.0)
    prefill = [x for x in map(fa2_ratio, of("prefill")) if x]
    if prefill:
        at_least(f"prefill: geometric mean of fa2 / ours [{len(prefill)}]", mean(prefill), 0.95)
        at_least("prefill: least of fa2 / ours", min(prefill), 0.85)
    append = ratios(of("append"))
    if append:
        at_least(f"append: least of FI / ours [{len(append)}]", min(append), 1 / 1.05)
    return out


def verdicts(found):
    lines = [""]
    for bar in found:
        word = {True: "PASS", False: "FAIL", None: "-"}[bar["pass"]]
        lines.append(f"{word}  {bar['name']:54} {bar['value']:8.3f}  ({bar['bar']})")
    failed = sum(bar["pass"] is False for bar in found)
    lines.append(f"bars: {len(found) - failed} met, {failed} missed")
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1]) as f:
        data = json.load(f)
    print(table(data["head"], data["rows"]))
    print(verdicts(bars(data["head"], data["rows"])))
