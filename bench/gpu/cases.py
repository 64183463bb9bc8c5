# SPDX-License-Identifier: Apache-2.0
"""cases: a shape made real: one pool whose pages are handed out in random order, queries, new tokens,
page tables in our form and in FlashInfer's, and the calls that are measured, all over the same memory.
"""

import math

import torch

import kvpool_gpu as kg

POOL_BYTES = 4352 << 20
NO_PAGE = 2147480000
DTYPES = {kg.BF16: torch.bfloat16, kg.FP16: torch.float16, kg.E4M3: torch.float8_e4m3fn}
DECODE_QUERIES = 8
FI_GROUPS = (1, 2, 3, 4, 6, 8, 16)  # what FlashInfer's CUDA-core decode takes


class Pool:
    """Memory that all shapes use in turn, filled with normal numbers."""

    def __init__(self):
        self.memory = torch.empty(POOL_BYTES, dtype=torch.uint8, device="cuda")
        self.dtype = None

    def pages(self, shape):
        """[pages][2][kv_heads][page_size][head_dim]"""
        dtype = DTYPES[shape.kv_dtype]
        if self.dtype != dtype:
            flat, step = self.memory.view(dtype), 64 << 20
            for at in range(0, flat.numel(), step):
                n = min(step, flat.numel() - at)
                flat[at : at + n] = torch.randn(n, dtype=torch.bfloat16, device="cuda").to(dtype)
            self.dtype = dtype
        page = 2 * shape.kv_heads * shape.page_size * shape.head_dim
        flat = self.memory.view(dtype)
        n = flat.numel() // page
        return flat[: n * page].view(n, 2, shape.kv_heads, shape.page_size, shape.head_dim)

    def spoiled(self):
        self.dtype = None


class Case:
    def __init__(self, gpu, pool, shape):
        self.gpu, self.shape = gpu, shape
        s, device = shape, "cuda"
        self.lengths = gpu.lengths(s)
        n = len(self.lengths)
        self.kv_dtype, self.dtype = DTYPES[s.kv_dtype], DTYPES[s.dtype]
        self.counts = [-(-x // s.page_size) for x in self.lengths]
        total, entries = sum(self.counts), max(self.counts)
        generator = torch.Generator().manual_seed(total)
        pages = pool.pages(s)
        if total > pages.shape[0]:
            raise ValueError("does not fit")
        self.pages = pages[:total]
        ids = torch.randperm(total, generator=generator, dtype=torch.int64).to(torch.int32)
        table = torch.full((n, entries), NO_PAGE, dtype=torch.int32)
        at = 0
        for i, c in enumerate(self.counts):
            table[i, :c] = ids[at : at + c]
            at += c
        i32 = {"dtype": torch.int32, "device": device}
        self.table = table.to(device)
        self.rows = torch.arange(n, **i32)
        self.kv_len = torch.tensor(self.lengths, **i32)
        self.qo_indptr = torch.arange(0, (n + 1) * s.q_len, s.q_len, **i32)
        # FlashInfer's form; the host copies are what its plan() wants.
        self.kv_indptr_host = torch.tensor(
            [0] + torch.tensor(self.counts).cumsum(0).tolist(), dtype=torch.int32
        )
        self.last_host = torch.tensor(
            [(x - 1) % s.page_size + 1 for x in self.lengths], dtype=torch.int32
        )
        self.ids_host = ids.pin_memory()
        self.kv_indptr, self.last = self.kv_indptr_host.to(device), self.last_host.to(device)
        self.ids = ids.to(device)
        nnz = n * s.q_len
        torch.manual_seed(1)
        self.q = torch.randn(nnz, s.qo_heads, s.head_dim, dtype=self.dtype, device=device)
        self.out = torch.empty_like(self.q)
        self.k = torch.randn(nnz, s.kv_heads, s.head_dim, dtype=self.dtype, device=device)
        self.v = torch.randn_like(self.k)
        self.decode = s.q_len <= DECODE_QUERIES
        self._arguments(n, nnz, entries)

    def _arguments(self, n, nnz, entries):
        s, half = self.shape, self.shape.kv_heads * self.shape.page_size * self.shape.head_dim
        kv = kg.Kv(
            k=self.pages.data_ptr(),
            page_stride=2 * half,
            value_stride=half,
            head_stride=s.page_size * s.head_dim,
            token_stride=s.head_dim,
            kv_heads=s.kv_heads,
            head_dim=s.head_dim,
            page_shift=s.page_size.bit_length() - 1,
            dtype=s.kv_dtype,
            k_scale=1,
            v_scale=1,
        )
        batch = kg.Batch(
            n=n,
            nnz=nnz,
            max_q_len=s.q_len,
            row_entries=entries,
            table=self.table.data_ptr(),
            rows=self.rows.data_ptr(),
            kv_len=self.kv_len.data_ptr(),
            qo_indptr=self.qo_indptr.data_ptr(),
        )
        self.attention = kg.Attention(
            kv=kv,
            batch=batch,
            q=kg.tensor(self.q),
            out=kg.tensor(self.out),
            dtype=s.dtype,
            qo_heads=s.qo_heads,
            sm_scale=1 / math.sqrt(s.head_dim),
            window_left=-1,
            causal=True,
        )
        self.append_arguments = kg.Append(
            kv=kv, batch=batch, k=kg.tensor(self.k), v=kg.tensor(self.v), dtype=s.dtype
        )
        self.kernel = "decode" if self.decode else "prefill"
        if not self.gpu.takes(self.kernel, self.attention):
            raise ValueError(f"{self.kernel} does not take this shape")
        plan = self.gpu.bytes_of(self.kernel, "plan", self.attention)
        work = self.gpu.bytes_of(self.kernel, "workspace", self.attention)
        self.plan_memory = torch.zeros(max(plan, 16), dtype=torch.uint8, device="cuda")
        self.work_memory = torch.zeros(max(work, 16), dtype=torch.uint8, device="cuda")
        self.attention.plan = self.plan_memory.data_ptr()
        self.attention.workspace = self.work_memory.data_ptr()
        self.attention.workspace_bytes = work

    def plan(self):
        self.gpu.launch(self.kernel + "_plan", self.attention)

    def attend(self):
        self.gpu.launch(self.kernel, self.attention)

    def generic(self):
        self.gpu.launch("generic", self.attention)

    def append(self):
        self.gpu.launch("append", self.append_arguments)


# --- what is right ------------------------------------------------------------------------------------
#
# Errors are counted in units: what one rounding to the type of the result may cost, 2^-8 (bf16) or 2^-11
# (fp16) of the element and of the root mean square of its row (a token and a head). The row's share stands
# for the rounding of the weights: their errors, times V, are as large as the row, also in an element whose
# terms cancel. It is the row's and not the whole result's: rows of few keys are many times larger than
# those of many. Weights in 16 bits and all else exact give 2 to 3 units at most over 10^8 elements, 0.25 in
# the mean; one key of 1,000 left out gives 100 and 2.

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
LARGEST, MEAN = 4.0, 0.4  # units: of a right result, whatever the peers have
APART = 6.0  # units: between two right results
SEQUENCES, TOKENS = 12, 32  # sampled at most, tokens of each sequence


def in_units(c, got, want):
    """|got - want|, [..., head_dim], in units of the rows of want."""
    want = want.to(torch.promote_types(want.dtype, torch.float32))
    row = want.square().mean(-1, keepdim=True).sqrt()
    return (got.to(want.dtype) - want).abs() / (UNIT[c.dtype] * (want.abs() + row) + 1e-30)


def apart(c, got, want):
    """The largest difference of two whole results in units; infinite where got is not finite."""
    worst, step = 0.0, 2048
    for at in range(0, got.shape[0], step):
        a, b = got[at : at + step], want[at : at + step]
        if not torch.isfinite(a).all():
            return math.inf
        worst = max(worst, in_units(c, a, b).max().item())
    return worst


class Sample:
    """Rows of the result, computed in fp64 from what the pages hold: the shortest and the longest
    sequence, the first and the last, and others; of their query tokens the first ones, those around
    tiles, the last and others; all heads."""

    def __init__(self, c):
        self.case = c
        n, q_len = len(c.lengths), c.shape.q_len
        generator = torch.Generator().manual_seed(n * 1000003 + q_len)
        order = torch.randperm(n, generator=generator).tolist()
        by_length = sorted(range(n), key=lambda i: c.lengths[i])
        chosen = list(dict.fromkeys([by_length[0], by_length[-1], 0, n - 1] + order))[:SEQUENCES]
        edges = [0, 1, 2, 3, 7, 15, 16, 31, 32, 63, 64, 127, 128, q_len // 2, q_len - 2, q_len - 1]
        tokens = edges + torch.randperm(q_len, generator=generator).tolist()[:TOKENS]
        tokens = list(dict.fromkeys(t for t in tokens if 0 <= t < q_len))[:TOKENS]
        self.tokens = torch.tensor(sorted(tokens), device=c.q.device)
        self.rows = [(i * q_len + self.tokens, self.exact(i)) for i in chosen]

    def exact(self, i):
        """[tokens][qo_heads][head_dim] of sequence i."""
        c, s = self.case, self.case.shape
        length, group = c.lengths[i], s.qo_heads // s.kv_heads
        ids = c.table[i, : c.counts[i]].long()
        seen = length - s.q_len + self.tokens + 1
        blind = torch.arange(length, device=c.q.device)[None, :] >= seen[:, None]
        q = c.q[i * s.q_len + self.tokens].double()
        out = torch.empty_like(q)
        pages = c.pages.view(torch.uint8)  # not every type can be indexed
        for h in range(s.kv_heads):
            heads = slice(h * group, (h + 1) * group)
            k, v = (
                pages[ids, half, h].view(c.kv_dtype).reshape(-1, s.head_dim)[:length].float().double()
                for half in (0, 1)
            )
            logits = torch.matmul(q[:, heads], k.T) * c.attention.sm_scale
            logits.masked_fill_(blind[:, None, :], -math.inf)
            out[:, heads] = torch.matmul(logits.softmax(-1), v)
        return out

    def errors(self, out):
        """The largest and the mean error of these rows of a result, in units."""
        largest, total = 0.0, 0.0
        for at, want in self.rows:
            got = out[at]
            if not torch.isfinite(got).all():
                return math.inf, math.inf
            units = in_units(self.case, got, want)
            largest = max(largest, units.max().item())
            total += units.mean().item()
        return largest, total / len(self.rows)


def is_right(ours, peers):
    """ours and each of peers: (largest, mean) of a sample. Right: within the limits, and not much worse than
    the best peer."""
    largest, mean = ours
    if not (largest <= LARGEST and mean <= MEAN):
        return False
    if not peers:
        return True
    return largest <= 2 * min(p[0] for p in peers) + 1 and mean <= 1.5 * min(
        p[1] for p in peers
    ) + 0.05
