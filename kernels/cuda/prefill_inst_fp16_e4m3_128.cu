// SPDX-License-Identifier: Apache-2.0
// prefill_inst_fp16_e4m3_128.cu: prefill kernels: q and out fp16, K and V e4m3, head_dim 128.
#include "kernels/cuda/prefill.cuh"

PREFILL_INSTANCE(prefill_shapes<fp16, e4m3>::d128);
