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
    return not row.get("right", True)


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
    if row.get("error") is not None:
        head += f"  error {row['error']:.2f}"
        if row.get("peer_error"):
            head += f" (FI {min(row['peer_error'].values()):.2f})"
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
        if row.get("served_us"):
            verdict = f"served {row['served_us']:.0f} us"
        lines.append(
            f"{row['table']:8} {row['shape']:20} {row['limit_us']:8.1f} {us['ours']:8.1f} "
            f"{100 * row['limit_us'] / us['ours']:7.0f}% {best} {ratio} {verdict}"
            + ("  WRONG" if wrong(row) else "")
        )
    return "\n".join(lines)


def mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


def bars(head, rows):
    """[{name, value, bar, pass, shapes, of}]: pass is None where not all shapes that the bar speaks of were
    measured, with the peer where it needs one; but one shape that misses a bar for each fails it."""
    counts, out = head.get("shapes", {}), []
    right = [r for r in rows if not wrong(r)]

    def add(name, values, of, bar, met, each=False):
        """values: {shape: value}; bar: text; met(values) -> (value shown, whether it is met)."""
        value, ok = met(list(values.values())) if values else (None, None)
        if len(values) < of and (ok or not each):
            ok = None
        out.append({"name": name, "value": value, "bar": bar, "pass": ok,
                    "shapes": len(values), "of": of})

    def least(bar):
        return lambda v: (min(v), min(v) >= bar)

    def most(bar):
        return lambda v: (max(v), max(v) <= bar)

    def geometric(bar):
        return lambda v: (mean(v), mean(v) >= bar)

    def of(*tables):
        return [r for r in right if r["table"] in tables]

    def count(*tables):
        return sum(counts.get(t, 0) for t in tables)

    def us(table):
        return {r["shape"]: r["us"]["ours"] for r in of(table)}

    def tokens(shape):
        n, length = shape.split("x")
        return int(n) * int(length)

    def name_of(row):
        return row["table"] + " " + row["shape"]

    def ratios(selected):
        return {name_of(r): r["ratio"] for r in selected if r["ratio"]}

    def over(selected):
        return {name_of(r): r["us"]["ours"] - bar_us(r, head) for r in selected}

    add("results that are wrong", {name_of(r): float(wrong(r)) for r in rows if "right" in r},
        sum(n for t, n in counts.items() if t != "step"), "none", lambda v: (sum(v), not any(v)), True)

    even, n = of("even"), count("even")
    add("even: us over bytes / roof x 1.01 + 9; 1x1024: over 9", over(even), n, "<= 0", most(0), True)
    add("even: FI / ours, geometric mean", ratios(even), n, ">= 1.08", geometric(1.08))
    add("even: FI / ours, least", ratios(even), n, ">= 1.00", least(1.0), True)
    add("even: ours / seed, most", {name_of(r): r["us"]["ours"] / r["seed_us"] for r in even}, n,
        "<= 1.00", most(1.0), True)

    # Pages of 16 are the even shapes' and not a shape of their own.
    odd = [r for r in of("ragged", "short", "heads", "pages") if r["shape"] != "page16"]
    n = count("ragged", "short", "heads", "pages") - (counts.get("pages", 0) > 0)
    add("ragged, short, odd: FI / ours, geometric mean", ratios(odd), n, ">= 1.15", geometric(1.15))
    add("ragged, short, odd: FI / ours, least", ratios(odd), n, ">= 1.00", least(1.0), True)
    add("ragged: us over bytes / roof x 1.03 + 10", over(of("ragged")), count("ragged"), "<= 0",
        most(0), True)
    for heads in ("8/1", "32/1"):
        part = {name_of(r): r["limit_us"] / r["us"]["ours"] for r in of("heads") if r["shape"] == heads}
        add(f"heads {heads}: part of the roof", part, 1, ">= 0.68", least(0.68))
    group = us("groups")
    for name in ("group5", "group7", "group12"):
        part = {name: group["group8"] / group[name]} if {name, "group8"} <= group.keys() else {}
        add(f"{name}: bandwidth / group 8's", part, 1, ">= 0.97", least(0.97))
    add("pages 8 to 128: fastest / slowest", us("pages"), count("pages"), ">= 0.97",
        lambda v: (min(v) / max(v), min(v) / max(v) >= 0.97), True)
    fp8 = us("fp8")
    part = {"fp8": fp8["bf16-64x4096"] / fp8["e4m3-64x4096"]} if len(fp8) == 2 else {}
    add("fp8 K and V: bf16's time / e4m3's at 1 GiB of bf16", part, 1, ">= 1.70", least(1.7))

    # Up to 64 x 1024 tokens: the two shapes of twice the bytes and more are at the roof for longer than a third
    # of the peer's step.
    small = [r for r in of("step") if tokens(r["shape"]) <= 64 * 1024]
    n = count("step") - 2 * (counts.get("step", 0) > 0)
    add("whole step, to 64x1024: FI / ours, least", ratios(small), n, ">= 3.00", least(3.0), True)
    prefill = {name_of(r): fa2_ratio(r) for r in of("prefill") if fa2_ratio(r)}
    n = count("prefill")
    add("prefill: fa2 / ours, geometric mean", prefill, n, ">= 0.95", geometric(0.95))
    add("prefill: fa2 / ours, least", prefill, n, ">= 0.85", least(0.85), True)
    # Not slower by more than 5 %: ours <= 1.05 FI.
    append = {k: 1 / v for k, v in ratios(of("append")).items()}
    add("append: ours / FI, most", append, count("append"), "<= 1.05", most(1.05), True)
    return out


def verdicts(found):
    lines = ["", f"{'':12} {'bar':54} {'value':>8}  {'':>8}  shapes"]
    words = {True: "met", False: "MISSED", None: "not measured"}
    for bar in found:
        value = f"{bar['value']:8.3f}" if bar["value"] is not None else f"{'-':>8}"
        lines.append(
            f"{words[bar['pass']]:12} {bar['name']:54} {value}  {bar['bar']:>8}  "
            f"{bar['shapes']} of {bar['of']}"
        )
    tally = [sum(bar["pass"] is x for bar in found) for x in (True, False, None)]
    lines.append("bars: {} met, {} missed, {} not measured".format(*tally))
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1]) as f:
        data = json.load(f)
    print(table(data["head"], data["rows"]))
    print(verdicts(bars(data["head"], data["rows"])))
