// SPDX-License-Identifier: Apache-2.0
// prefill_inst_fp16_256.cu: prefill kernels: q and out fp16, K and V fp16, head_dim 256.
#include "kernels/cuda/prefill.cuh"

PREFILL_INSTANCE(prefill_shapes<fp16, fp16>::d256);
PREFILL_INSTANCE(prefill_shapes<fp16, fp16>::d256_small);
