#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench: the kernels on this GPU, interleaved with FlashInfer's and PyTorch's over the same memory.

    bench.py [--only roof,decode,prefill,append,step] [--quick] [--ours-only] [--json FILE]
             [--flashinfer DIR] [--library libkvpool_gpu_bench.so] [--step-json FILE]

Every line is printed as it is measured, so that a run that is cut off leaves what it had; JSON is written
anew after each section. Results are compared with fp64 (cases.Sample) and with the peers'; one that is not
right is marked WRONG, counts for no bar and fails the run: a speed is never that of a wrong answer.
"""

import argparse
import json
import os
import statistics
import sys
import time

SECTIONS = {
    "decode": ("even", "ragged", "short", "batches", "draft", "heads", "groups", "pages", "fp8"),
    "prefill": ("prefill",),
    "append": ("append",),
    "step": ("step",),
}
QUICK = {"1x1024", "8x4096", "64x1024", "1x65536+31x4096", "64x300", "group7", "group8", "8x2048", "64"}


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--only", default="roof,decode,prefill,append,step")
    p.add_argument("--quick", action="store_true")
    p.add_argument("--ours-only", action="store_true")
    p.add_argument("--json")
    p.add_argument("--flashinfer", default=os.environ.get("KVPOOL_FLASHINFER"))
    p.add_argument("--library", default=os.environ.get("KVPOOL_GPU_BENCH_LIBRARY"))
    p.add_argument("--step-json", help="lines of kvpool-gpu-step --json: our whole steps")
    p.add_argument("--samples", type=int, default=0)
    o = p.parse_args()
    o.sections = o.only.split(",")
    o.samples = o.samples or (9 if o.quick else 30)
    return o


def say(*words):
    print(*words, flush=True)


class Bench:
    def __init__(self, o):
        self.o = o
        self.rows = []
        self.wrong = 0
        self.gpu = kvpool_gpu.Library(o.library)
        torch.zeros(1, device="cuda")
        self.gpu.open_device()
        self.clock = timing.Clock(self.gpu)
        self.pool = cases.Pool()
        self.fi = None
        if o.ours_only:
            say("peers: not measured (--ours-only)")
        else:
            try:
                self.fi = peers.FlashInfer(o.flashinfer)
                say(f"peers: FlashInfer {self.fi.version}, PyTorch {torch.__version__}")
            except Exception as e:
                say(f"peers: no FlashInfer ({type(e).__name__}: {e}): ours only")
        self.head = {
            "gpu": torch.cuda.get_device_name(),
            "sms": self.gpu.device.sms,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "flashinfer": self.fi.version if self.fi else None,
            "samples": o.samples,
            "shapes": {},
        }
        for s in self.gpu.shapes():
            table = s.table.decode()
            self.head["shapes"][table] = self.head["shapes"].get(table, 0) + 1

    def roof(self):
        self.head.update(self.clock.roofs(9 if self.o.quick else 15))
        say(
            "{gpu}: read {read_gbs:.0f} GB/s, copy {copy_gbs:.0f} GB/s, empty kernel "
            "{empty_us:.1f} us".format(**self.head)
        )

    def shapes(self, section):
        for s in self.gpu.shapes():
            if s.table.decode() in SECTIONS[section]:
                if not self.o.quick or s.name.decode() in QUICK:
                    yield s

    def case(self, s):
        try:
            return cases.Case(self.gpu, self.pool, s)
        except (ValueError, torch.cuda.OutOfMemoryError) as e:
            say(f"{s.table.decode():8} {s.name.decode():20} not measured: {e}")
            return None

    def verdict(self, c, outputs, us):
        """Compares c.out with fp64 at a sample of its rows, beside the peers' results there, and as a whole
        with each peer's (without one: with the generic kernel's, where that is not too slow). A peer that is
        itself wrong does not count. Returns what a row of the report says of it."""
        sample = cases.Sample(c)
        ours, peer = sample.errors(c.out), {}
        for name in [n for n in outputs if n in us]:
            errors = sample.errors(outputs[name])
            if errors[0] <= cases.LARGEST:
                peer[name] = errors
            else:
                say(f"    {name}: wrong, error {errors[0]:.1f}: left out")
                del us[name]
        apart = [cases.apart(c, c.out, outputs[name]) for name in peer]
        if not apart and self.gpu.flops(c.shape) < 2e11:
            apart = [cases.apart(c, c.out, self.generic(c))]
        right = cases.is_right(ours, list(peer.values())) and all(x <= cases.APART for x in apart)
        self.wrong += not right
        return {
            "right": right,
            "error": ours[0],
            "mean_error": ours[1],
            "peer_error": {name: e[0] for name, e in peer.items()},
            "peer_mean_error": {name: e[1] for name, e in peer.items()},
            "apart": max(apart, default=None),
        }

    def generic(self, c):
        ours = c.out.clone()
        c.generic()
        torch.cuda.synchronize()
        reference = c.out.clone()
        c.out.copy_(ours)
        return reference

    def add(self, s, us, limit_us, extra):
        medians = {k: statistics.median(v) for k, v in us.items()}
        others = {k: v for k, v in medians.items() if k.startswith("FI")}
        best = min(others, key=others.get) if others else None
        row = {
            "table": s.table.decode(),
            "shape": s.name.decode(),
            "limit_us": limit_us,
            "us": medians,
            "p10_p90": {k: (v[len(v) // 10], v[-1 - len(v) // 10]) for k, v in us.items()},
            "best": best,
            "ratio": others[best] / medians["ours"] if best else None,
            "seed_us": round(s.seed_us, 1),
            **extra,
        }
        self.rows.append(row)
        say(report.line(row))

    def decode(self):
        for s in self.shapes("decode"):
            c = self.case(s)
            if c is None:
                continue
            c.plan()
            bodies, outputs = {"ours": c.attend}, {}
            for name in self.fi.decode_names(s) if self.fi else []:
                call = self.fi.decode if s.q_len == 1 else self.fi.prefill
                body, out = self.attempt(name, lambda n=name: call(c, n))
                if body:
                    bodies[name], outputs[name] = body, out
            bodies["plan"] = c.plan
            c.out.fill_(float("nan"))
            us = self.clock.interleaved(bodies, self.o.samples)
            found = self.verdict(c, outputs, us)
            kv = self.gpu.kv_bytes(s)
            self.add(
                s,
                {k: v for k, v in us.items() if k != "plan"},
                kv / self.head["read_gbs"] / 1e3,
                {
                    "kv_bytes": kv,
                    "plan_us": statistics.median(us["plan"]),
                    **found,
                },
            )

    def attempt(self, name, make):
        try:
            return make()
        except Exception as e:
            say(f"    {name}: {type(e).__name__}: {str(e).splitlines()[0][:120] if str(e) else ''}")
            return None, None

    def prefill(self):
        for s in self.shapes("prefill"):
            c = self.case(s)
            if c is None:
                continue
            c.plan()
            bodies, outputs = {"ours": c.attend}, {}
            for name in ("FI fa2", "FI fa3") if self.fi else ():
                body, out = self.attempt(name, lambda n=name: self.fi.prefill(c, n))
                if body:
                    bodies[name], outputs[name] = body, out
            if not self.o.ours_only and s.kv_len == s.q_len:
                dense = peers.Sdpa(c)
                bodies.update({n: dense.call(n) for n in dense.names})
            c.out.fill_(float("nan"))
            us = self.clock.interleaved(bodies, max(9, self.o.samples // 2))
            found = self.verdict(c, outputs, us)
            self.add(
                s,
                us,
                self.gpu.kv_bytes(s) / self.head["read_gbs"] / 1e3,
                {"flops": self.gpu.flops(s), **found},
            )

    def append(self):
        for s in self.shapes("append"):
            c = self.case(s)
            if c is None:
                continue
            bodies = {"ours": c.append}
            if self.fi:
                body = self.attempt("FI", lambda: (self.fi.append(c), None))[0]
                if body:
                    bodies["FI"] = body
            wrong = self.append_differs(c, bodies)
            self.wrong += wrong
            us = self.clock.interleaved(bodies, self.o.samples)
            moved = 4 * c.k.numel() * c.k.element_size()
            self.add(
                s,
                us,
                moved / self.head["copy_gbs"] / 1e3,
                {"moved_bytes": moved, "right": not wrong},
            )
            self.pool.spoiled()

    def append_differs(self, c, bodies):
        """Whether the pages differ from FlashInfer's bit for bit (without it: from the rows themselves)."""
        c.pages.zero_()
        c.append()
        torch.cuda.synchronize()
        ours = c.pages.clone()
        if "FI" in bodies:
            c.pages.zero_()
            bodies["FI"]()
            torch.cuda.synchronize()
            return int(not torch.equal(ours.view(torch.int16), c.pages.view(torch.int16)))
        s, at = c.shape, 0
        for i, length in enumerate(c.lengths):
            for position in range(length - s.q_len, length):
                page = int(c.table[i, position // s.page_size])
                for half, rows in ((0, c.k), (1, c.v)):
                    if not torch.equal(ours[page, half, :, position % s.page_size], rows[at]):
                        return 1
                at += 1
            if i == 3:
                break
        return 0

    def step(self):
        """Wall time of the step of a new batch: ours from kvpool-gpu-step, the peer's here."""
        ours = report.steps(self.o.step_json)
        for s in self.shapes("step"):
            name = s.name.decode()
            us = {"ours": sorted(ours[name]["us"])} if name in ours else {}
            if self.fi:
                c = self.case(s)
                if c is None:
                    continue
                for kernel in self.fi.decode_names(s):
                    samples = self.attempt(kernel, lambda k=kernel: (self.fi_steps(c, k), None))[0]
                    if samples:
                        us[kernel] = samples
                self.pool.spoiled()
            extra = {"served_us": ours.get(name, {}).get("served_us")}
            if "ours" in us:
                self.add(s, us, self.gpu.kv_bytes(s) / self.head["read_gbs"] / 1e3, extra)
            elif us:
                say(f"step     {name:20} " + "  ".join(
                    f"{k} {statistics.median(v):.0f} us" for k, v in us.items()))

    def fi_steps(self, c, kernel):
        """plan + append + run + synchronise, with another order of pages each time. Where the new tokens go
        is found outside of what is timed, in the peer's favour."""
        wrapper = self.fi.decode_wrapper(kernel)
        indices, positions = self.fi.positions(c)
        out = torch.empty_like(c.q)
        batches = [
            c.ids_host[torch.randperm(c.ids_host.numel())].pin_memory() for _ in range(4)
        ]
        indptr, last = c.kv_indptr_host.pin_memory(), c.last_host.pin_memory()
        samples = []
        for turn in range(4 * self.o.samples + 5):  # the host has its moments
            self.clock.flush()
            torch.cuda.synchronize()
            begin = time.perf_counter_ns()
            ids = batches[turn % 4].to("cuda", non_blocking=True)
            indptr_d = indptr.to("cuda", non_blocking=True)
            last_d = last.to("cuda", non_blocking=True)
            self.fi.plan_decode(wrapper, c, indptr, ids, last)
            self.fi.append_call(c, indices, positions, ids, indptr_d, last_d)
            wrapper.run(c.q, c.pages, out=out)
            torch.cuda.synchronize()
            if turn >= 5:
                samples.append((time.perf_counter_ns() - begin) / 1e3)
        return sorted(samples)

    def save(self):
        if self.o.json:
            with open(self.o.json + ".part", "w") as f:
                json.dump({"head": self.head, "rows": self.rows}, f, indent=1)
                f.write("\n")
            os.replace(self.o.json + ".part", self.o.json)

    def run(self):
        self.roof()
        self.save()
        for section in ("decode", "prefill", "append", "step"):
            if section in self.o.sections:
                say(report.heading(section))
                getattr(self, section)()
                self.save()
        say(report.table(self.head, self.rows))
        bars = report.bars(self.head, self.rows)
        say(report.verdicts(bars))
        self.head["bars"] = bars
        self.save()
        if self.wrong:
            say(f"{self.wrong} results are WRONG")
        return 1 if self.wrong else 0


if __name__ == "__main__":
    options = parse()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        import torch
    except ImportError:
        print("no PyTorch: nothing measured here (kvpool-gpu-kernels measures without it)")
        sys.exit(77)
    if not torch.cuda.is_available():
        print("no GPU: nothing measured")
        sys.exit(77)
    import cases
    import kvpool_gpu
    import peers
    import report
    import timing

    sys.exit(Bench(options).run())
