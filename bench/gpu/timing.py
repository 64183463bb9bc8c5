# SPDX-License-Identifier: Apache-2.0
"""timing: one protocol for everybody: CUDA-graph replay between two events, after the L2 has been flushed
by reading a buffer of 256 MB twice (writing one would leave dirty lines, whose write-back the measured
kernel would pay), contenders taking turns, the median of the samples.
"""

import statistics

import torch

FLUSH_BYTES = 256 << 20
ROOF_BYTES = 2 << 30


class Clock:
    def __init__(self, gpu):
        self.gpu = gpu
        self.buffer = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.words = torch.zeros(1024, dtype=torch.int32, device="cuda")
        self.stream = torch.cuda.Stream()

    def flush(self):
        for _ in range(2):
            self.gpu.launch(
                "roof_read", self.buffer.data_ptr(), FLUSH_BYTES, 4, self.words.data_ptr()
            )

    def capture(self, body):
        """A graph of one call of body, which has run once before."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            body()
            self.stream.synchronize()
            with torch.cuda.graph(graph, stream=self.stream):
                body()
        return graph

    def interleaved(self, bodies, samples):
        """{name: body} to {name: [us, sorted]}. A body that fails is left out, with a line that says so."""
        torch.cuda.synchronize()  # what was made on other streams
        graphs = {}
        for name, body in bodies.items():
            try:
                graphs[name] = self.capture(body)
            except Exception as e:  # a peer that does not take this shape
                if name == "ours":
                    raise
                print(f"    {name}: {type(e).__name__}: {str(e).splitlines()[0][:120]}", flush=True)
        us = {name: [] for name in graphs}
        events = {
            name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in graphs
        }
        with torch.cuda.stream(self.stream):
            for turn in range(samples + 2):
                for name, graph in graphs.items():
                    self.flush()
                    events[name][0].record()
                    graph.replay()
                    events[name][1].record()
                self.stream.synchronize()
                if turn >= 2:
                    for name, (begin, end) in events.items():
                        us[name].append(1e3 * begin.elapsed_time(end))
        return {name: sorted(v) for name, v in us.items()}

    def roofs(self, samples):
        """GB/s: read, copy (read + write); us: an empty kernel."""
        a = torch.empty(ROOF_BYTES, dtype=torch.uint8, device="cuda").random_()
        b = torch.empty_like(a)
        reads = {
            f"read{n}": lambda n=n: self.gpu.launch(
                "roof_read", a.data_ptr(), ROOF_BYTES, n, self.words.data_ptr()
            )
            for n in (0, 2, 4, 8)
        }
        copies = {
            f"copy{n}": lambda n=n: self.gpu.launch(
                "roof_copy", b.data_ptr(), a.data_ptr(), ROOF_BYTES, n
            )
            for n in (0, 2, 4, 8)
        }
        copies["torch"] = lambda: b.copy_(a)
        read = min(statistics.median(v) for v in self.interleaved(reads, samples).values())
        copy = min(statistics.median(v) for v in self.interleaved(copies, samples).values())
        empty = statistics.median(
            self.interleaved({"empty": self.gpu.empty}, max(samples, 15))["empty"]
        )
        return {
            "read_gbs": ROOF_BYTES / read / 1e3,
            "copy_gbs": 2 * ROOF_BYTES / copy / 1e3,
            "empty_us": empty,
        }
