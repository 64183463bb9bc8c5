// SPDX-License-Identifier: Apache-2.0
// decode_inst_bf16_same_128.cu: instances of decode.cuh.
#include "kernels/cuda/decode.cuh"

DECODE_INSTANCE(bf16, bf16, 128, 1)
DECODE_INSTANCE(bf16, bf16, 128, 2)
DECODE_INSTANCE(bf16, bf16, 128, 4)
