// SPDX-License-Identifier: Apache-2.0
// prefill_inst_fp16_e4m3_256.cu: prefill kernels: q and out fp16, K and V e4m3, head_dim 256.
#include "kernels/cuda/prefill.cuh"

PREFILL_INSTANCE(prefill_shapes<fp16, e4m3>::d256);
PREFILL_INSTANCE(prefill_shapes<fp16, e4m3>::d256_small);
