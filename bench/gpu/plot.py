#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""plot: the bandwidth of decode against the bytes of K and V that it reads, from gpu-bench's JSON.

    plot.py FILE.json docs/decode-bandwidth.svg
"""

import json
import sys

TABLES = ("even", "ragged", "short")


def points(rows, name):
    """(MB, GB/s) of every shape, by bytes; name "best FI" is the peer's best kernel of each."""
    out = []
    for row in rows:
        us = row["us"].get(row["best"] if name == "best FI" else name)
        if row["table"] in TABLES and us:
            out.append((row["kv_bytes"] / 1e6, row["kv_bytes"] / us / 1e3, row["table"] == "even"))
    return sorted(out)


def main(source, target):
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot: no matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "kvpool"  # the same figures give the same file
    import matplotlib.pyplot as plt

    with open(source) as f:
        data = json.load(f)
    head, rows = data["head"], data["rows"]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    version = f"FlashInfer {head['flashinfer']}, better kernel"
    for name, label, color in (("ours", "kvpool", "#1f5fa8"), ("best FI", version, "#c05020")):
        p = points(rows, name)
        if not p:
            continue
        even = [(x, y) for x, y, is_even in p if is_even]
        odd = [(x, y) for x, y, is_even in p if not is_even]
        axes.plot(*zip(*even), "o-", color=color, label=label, markersize=4, linewidth=1)
        if odd:
            axes.plot(*zip(*odd), "x", color=color, markersize=5, label=label + ", ragged and short")
    axes.axhline(head["read_gbs"], color="#555555", linewidth=0.8, linestyle="--")
    axes.annotate("read roof", (0.02, head["read_gbs"]), xycoords=("axes fraction", "data"), va="bottom")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("K and V read, MB")
    axes.set_ylabel("GB/s")
    axes.set_title(f"Paged decode, bf16, 32/8 heads of 128, pages of 16, cold L2: {head['gpu']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
