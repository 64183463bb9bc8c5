// SPDX-License-Identifier: Apache-2.0
// prefill_inst_variants.cu: other shapes of the bf16 kernel of head_dim 128 (prefill_shape.cuh).
#include "kernels/cuda/prefill.cuh"

PREFILL_INSTANCE(prefill_variants<bf16, bf16>::wide);
PREFILL_INSTANCE(prefill_variants<bf16, bf16>::low);
PREFILL_INSTANCE(prefill_variants<bf16, bf16>::many);
