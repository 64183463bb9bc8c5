# SPDX-License-Identifier: Apache-2.0
"""kvpool_gpu: the CUDA launchers of kernels/cuda/launch.h for a process that has PyTorch.

Mirrors the structs of launch.h and checks their sizes against the library's when it is opened. Pointers
are data_ptr() of tensors that the caller keeps alive; a launch goes to PyTorch's current stream.
"""

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_double, c_float, c_int, c_int32, c_int64
from ctypes import c_size_t, c_uint32, c_uint64, c_void_p

FP16, BF16, FP32, E4M3 = 1, 2, 3, 4


class Device(ctypes.Structure):
    _fields_ = [(n, c_int32) for n in ("ordinal", "sms", "major", "minor", "smem_optin", "l2_bytes")]


class Kv(ctypes.Structure):
    _fields_ = [
        ("k", c_void_p),
        ("page_stride", c_int64),
        ("value_stride", c_int64),
        ("head_stride", c_int64),
        ("token_stride", c_int64),
        ("kv_heads", c_uint32),
        ("head_dim", c_uint32),
        ("page_shift", c_uint32),
        ("dtype", c_uint32),
        ("k_scales", c_void_p),
        ("v_scales", c_void_p),
        ("k_scale", c_float),
        ("v_scale", c_float),
    ]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n", c_uint32),
        ("nnz", c_uint32),
        ("max_q_len", c_uint32),
        ("row_entries", c_uint32),
        ("index", c_void_p),
        ("table", c_void_p),
        ("rows", c_void_p),
        ("kv_len", c_void_p),
        ("qo_indptr", c_void_p),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("token_stride", c_int64), ("head_stride", c_int64)]


class Attention(ctypes.Structure):
    _fields_ = [
        ("kv", Kv),
        ("batch", Batch),
        ("q", Tensor),
        ("out", Tensor),
        ("lse", Tensor),
        ("sinks", c_void_p),
        ("dtype", c_uint32),
        ("qo_heads", c_uint32),
        ("sm_scale", c_float),
        ("soft_cap", c_float),
        ("window_left", c_int32),
        ("causal", c_bool),
        ("batch_invariant", c_bool),
        ("after_previous", c_bool),
        ("max_ctas", c_uint32),
        ("plan", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    ]


class Append(ctypes.Structure):
    _fields_ = [
        ("kv", Kv),
        ("batch", Batch),
        ("k", Tensor),
        ("v", Tensor),
        ("dtype", c_uint32),
        ("after_previous", c_bool),
    ]


class Shape(ctypes.Structure):
    _fields_ = [
        ("table", c_char_p),
        ("name", c_char_p),
        ("n", c_uint32),
        ("kv_len", c_uint32),
        ("n2", c_uint32),
        ("kv_len2", c_uint32),
        ("q_len", c_uint32),
        ("qo_heads", c_uint32),
        ("kv_heads", c_uint32),
        ("head_dim", c_uint32),
        ("page_size", c_uint32),
        ("dtype", c_uint32),
        ("kv_dtype", c_uint32),
        ("seed_us", c_float),
    ]


MIRRORS = {
    "device": Device,
    "kv": Kv,
    "batch": Batch,
    "tensor": Tensor,
    "attention": Attention,
    "append": Append,
    "shape": Shape,
}


def tensor(t):
    """A [tokens][heads][head_dim] tensor of PyTorch."""
    assert t.stride(2) == 1
    return Tensor(t.data_ptr(), t.stride(0), t.stride(1))


class Library:
    """libkvpool_gpu_bench.so. Every launcher raises RuntimeError for an error of CUDA."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        size = self._function("sizeof", c_size_t, [c_char_p])
        for name, mirror in MIRRORS.items():
            if size(name.encode()) != ctypes.sizeof(mirror):
                raise RuntimeError(
                    f"{path}: struct {name} has {size(name.encode())} bytes, its mirror "
                    f"{ctypes.sizeof(mirror)}"
                )
        d, a = POINTER(Device), POINTER(Attention)
        self._launchers = {
            "decode_plan": self._function("decode_plan", c_int, [d, a, c_void_p]),
            "decode": self._function("decode", c_int, [d, a, c_void_p]),
            "prefill_plan": self._function("prefill_plan", c_int, [d, a, c_void_p]),
            "prefill": self._function("prefill", c_int, [d, a, c_void_p]),
            "generic": self._function("generic", c_int, [d, a, c_void_p]),
            "append": self._function("append", c_int, [d, POINTER(Append), c_void_p]),
            "roof_read": self._function(
                "roof_read", c_int, [d, c_void_p, c_uint64, c_uint32, c_void_p, c_void_p]
            ),
            "roof_copy": self._function(
                "roof_copy", c_int, [d, c_void_p, c_void_p, c_uint64, c_uint32, c_void_p]
            ),
        }
        self._takes = {k: self._function(f"{k}_takes", c_bool, [a]) for k in ("decode", "prefill")}
        self._bytes = {
            (k, what): self._function(f"{k}_{what}_bytes", c_size_t, [d, a])
            for k in ("decode", "prefill")
            for what in ("plan", "workspace")
        }
        self._empty = self._function("empty", c_int, [c_void_p])
        self._kv_bytes = self._function("shape_kv_bytes", c_double, [POINTER(Shape)])
        self._flops = self._function("shape_flops", c_double, [POINTER(Shape)])
        self._lengths = self._function("shape_lengths", None, [POINTER(Shape), POINTER(c_uint32)])
        self._shapes = self._function("shapes", c_size_t, [POINTER(POINTER(Shape))])
        self._device = self._function("device", c_int, [POINTER(Device)])
        self.device = Device()

    def _function(self, name, result, arguments):
        f = getattr(self.lib, "kvpool_gpu_" + name)
        f.restype, f.argtypes = result, arguments
        return f

    @staticmethod
    def _stream():
        import torch

        return torch.cuda.current_stream().cuda_stream

    @staticmethod
    def _check(name, e):
        if e != 0:
            raise RuntimeError(f"{name}: CUDA error {e}")

    def open_device(self):
        """Of PyTorch's current device, which has been used at least once."""
        self._check("device", self._device(byref(self.device)))

    def launch(self, name, *arguments):
        """launch("decode", attention); launch("roof_read", address, bytes, ctas, words)"""
        values = [byref(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        self._check(name, self._launchers[name](byref(self.device), *values, self._stream()))

    def empty(self):
        self._check("empty", self._empty(self._stream()))

    def takes(self, kernel, attention):
        return self._takes[kernel](byref(attention))

    def bytes_of(self, kernel, what, attention):
        return self._bytes[kernel, what](byref(self.device), byref(attention))

    def shapes(self):
        first = POINTER(Shape)()
        n = self._shapes(byref(first))
        return [first[i] for i in range(n)]

    def lengths(self, shape):
        n = shape.n + shape.n2
        out = (c_uint32 * n)()
        self._lengths(byref(shape), out)
        return list(out)

    def kv_bytes(self, shape):
        return self._kv_bytes(byref(shape))

    def flops(self, shape):
        return self._flops(byref(shape))
