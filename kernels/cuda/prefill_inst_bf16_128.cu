// SPDX-License-Identifier: Apache-2.0
// prefill_inst_bf16_128.cu: prefill kernels: q and out bf16, K and V bf16, head_dim 128.
#include "kernels/cuda/prefill.cuh"

PREFILL_INSTANCE(prefill_shapes<bf16, bf16>::d128);
