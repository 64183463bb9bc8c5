// SPDX-License-Identifier: Apache-2.0
// decode_inst_bf16_e4m3_256.cu: instances of decode.cuh.
#include "kernels/cuda/decode.cuh"

DECODE_INSTANCE(bf16, e4m3, 256, 1)
DECODE_INSTANCE(bf16, e4m3, 256, 2)
