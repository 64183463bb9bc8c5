# SPDX-License-Identifier: Apache-2.0
"""peers: FlashInfer and PyTorch over the memory of a case. Whoever is absent, or does not take a shape, is
left out and said to be.
"""

import sys

import torch

from cases import FI_GROUPS

WORKSPACE_BYTES = 512 << 20


class FlashInfer:
    def __init__(self, path=None):
        """Raises ImportError. path: a folder with the package, before any installed one."""
        if path:
            sys.path.insert(0, path)
        import flashinfer.decode
        import flashinfer.page
        import flashinfer.prefill

        self.fi = flashinfer
        self.version = flashinfer.__version__
        self.workspaces = {}

    def _workspace(self, name):
        if name not in self.workspaces:
            self.workspaces[name] = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
        return self.workspaces[name]

    def decode_names(self, shape):
        if shape.q_len > 1:  # its decode takes one query token a sequence
            return ["FI fa2", "FI fa3"]
        names = ["FI tc"]
        if shape.qo_heads // shape.kv_heads in FI_GROUPS:
            names.append("FI cc")
        return names

    def plan_decode(self, wrapper, c, indptr, ids, last):
        s = c.shape
        wrapper.plan(
            indptr,
            ids,
            last,
            s.qo_heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            pos_encoding_mode="NONE",
            q_data_type=c.dtype,
            kv_data_type=c.kv_dtype,
        )

    def decode_wrapper(self, name):
        return self.fi.decode.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace(name), "HND", use_tensor_cores=name == "FI tc"
        )

    def decode(self, c, name):
        """A planned call; returns (body, output)."""
        wrapper = self.decode_wrapper(name)
        self.plan_decode(wrapper, c, c.kv_indptr, c.ids, c.last)
        out = torch.empty_like(c.q)
        return lambda: wrapper.run(c.q, c.pages, out=out), out

    def prefill(self, c, name):
        s = c.shape
        wrapper = self.fi.prefill.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace(name), "HND", backend=name.split()[1]
        )
        wrapper.plan(
            c.qo_indptr,
            c.kv_indptr,
            c.ids,
            c.last,
            s.qo_heads,
            s.kv_heads,
            s.head_dim,
            s.page_size,
            causal=True,
            q_data_type=c.dtype,
            kv_data_type=c.kv_dtype,
        )
        out = torch.empty_like(c.q)
        return lambda: wrapper.run(c.q, c.pages, out=out), out

    def positions(self, c):
        return self.fi.page.get_batch_indices_positions(c.qo_indptr, c.kv_len, c.q.shape[0])

    def append_call(self, c, indices, positions, ids, indptr, last):
        self.fi.page.append_paged_kv_cache(
            c.k, c.v, indices, positions, c.pages, ids, indptr, last, kv_layout="HND"
        )

    def append(self, c):
        indices, positions = self.positions(c)
        return lambda: self.append_call(c, indices, positions, c.ids, c.kv_indptr, c.last)


class Sdpa:
    """PyTorch's dense attention over contiguous K and V (no pages): prefill without a prefix."""

    names = ("SDPA flash", "SDPA cuDNN")

    def __init__(self, c):
        s = c.shape
        n, q = len(c.lengths), s.q_len

        def dense(heads):
            return torch.randn(n, heads, q, s.head_dim, dtype=c.dtype, device="cuda")

        self.q, self.k, self.v = dense(s.qo_heads), dense(s.kv_heads), dense(s.kv_heads)

    def call(self, name):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        backend = {
            "SDPA flash": SDPBackend.FLASH_ATTENTION,
            "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
        }[name]

        def body():
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(
                    self.q, self.k, self.v, is_causal=True, enable_gqa=True
                )

        return body
