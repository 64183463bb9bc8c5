#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""slim_flashinfer: a folder with what gpu-bench needs of FlashInfer, for a machine without a network.

    slim_flashinfer.py WHEEL FOLDER            unpacks the parts of the wheel that decode, paged prefill and
                                               append need (a few MB instead of hundreds)
    slim_flashinfer.py --build FOLDER          compiles their kernels for sm_90a with the local nvcc, from
                                               WHEEL unpacked whole in $FLASHINFER_SOURCE, into FOLDER

FlashInfer compiles at first use; where it finds a module under data/aot it loads that one instead. Its
__init__ imports every part of it, so an empty one takes its place; parts that it imports from elsewhere
(apache-tvm-ffi above all) are installed beside it: pip install --target FOLDER.

--build compiles only the instances that the bench calls (no mask and causal, paged). The libraries keep
undefined references to the others, which nothing calls: they are linked for lazy binding.
"""

import glob
import os
import re
import subprocess
import sys
import zipfile

# Folders of Python that nothing here imports, and are large.
LEFT_OUT = re.compile(
    r"flashinfer/(experimental|moe_ep|gdn_kernels|kda_kernels|prims_ts|msa_ops|attn_scores|topk_varlen"
    r"|attention/prims_ts|cute_dsl/attention|cute_dsl/sparse|gemm/kernels|fused_moe/(backends|cute_dsl|cake|cutile)"
    r"|comm|diffusion_ops|mega|testing|tuning_configs|cake_\w+|kda_\w+)[/.]"
)
SOURCES = re.compile(
    r"flashinfer/data/csrc/(batch_(decode|prefill)[a-z0-9_]*\.(cu|cuh|jinja)|page\.cu|flashinfer_page_binding\.cu"
    r"|[a-z_]+\.h)$"
)
INIT = '"""Of FlashInfer only what kvpool\'s bench measures."""\nfrom .version import __version__\n'


def unpack(wheel, folder):
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            python = name.endswith((".py", ".json")) and not name.startswith("flashinfer/data/")
            if SOURCES.match(name) or (python and not LEFT_OUT.match(name)):
                z.extract(name, folder)
    with open(os.path.join(folder, "flashinfer", "__init__.py"), "w") as f:
        f.write(INIT)


def modules():
    """(spec, objects that are needed): ends of their names, none: all."""
    import torch
    from flashinfer.jit import gen_batch_decode_module, gen_batch_prefill_module
    from flashinfer.jit.page import gen_page_module
    from flashinfer.prefill import _gen_batch_prefill_primary_module

    bf16, e4m3, i32 = torch.bfloat16, torch.float8_e4m3fn, torch.int32

    def prefill(generate, backend, kv):
        return generate(backend, bf16, kv, bf16, i32, 128, 128, 0, False, False, False)

    def decode(kv):
        return gen_batch_decode_module(bf16, kv, bf16, i32, 128, 128, 0, False, False)

    fa2 = _gen_batch_prefill_primary_module
    common = ["batch_prefill", "jit_binding"]
    return [
        (gen_page_module(), []),
        (decode(bf16), []),
        (decode(e4m3), []),
        (prefill(fa2, "fa2", bf16), ["paged_kernel_mask_0", "paged_kernel_mask_1", *common]),
        (prefill(fa2, "fa2", e4m3), ["paged_kernel_mask_0", *common]),
        (
            prefill(gen_batch_prefill_module, "fa3", bf16),
            ["paged_sm90_kernel_mask_1", "batch_prefill_sm90", "jit_binding"],
        ),
    ]


def build(folder):
    sys.path.insert(0, os.environ["FLASHINFER_SOURCE"])
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = "9.0a"
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for spec, wanted in modules():
        spec.write_ninja()
        with open(spec.ninja_path) as f:
            objects = re.findall(r"^build (\S+\.o):", f.read(), re.M)
        ends = tuple(f"_{end}.cuda.o" for end in wanted)
        needed = [o for o in objects if o.endswith(ends)] if ends else objects
        if len(needed) < max(1, len(ends)):
            sys.exit(f"{spec.name}: not all objects are there: {ends}")
        subprocess.run(
            ["ninja", "-C", os.path.dirname(spec.ninja_path), "-f", spec.ninja_path, *needed], check=True
        )
        to = os.path.join(folder, "flashinfer", "data", "aot", spec.name)
        os.makedirs(to, exist_ok=True)
        library = os.path.join(to, spec.name + ".so")
        link(needed, library, cuda)
        print(os.path.getsize(library), spec.name)


def link(objects, library, cuda):
    subprocess.run(
        ["c++", "-shared", "-Wl,-z,lazy", "-s", *objects, f"-L{cuda}/lib64", f"-L{cuda}/lib64/stubs",
         "-lcudart", "-lcuda", "-o", library],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--build":
        build(sys.argv[2])
    elif len(sys.argv) == 3:
        unpack(sys.argv[1], sys.argv[2])
    else:
        sys.exit(__doc__)
