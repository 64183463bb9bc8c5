// SPDX-License-Identifier: Apache-2.0
// decode_inst_fp16_same_64.cu: instances of decode.cuh.
#include "kernels/cuda/decode.cuh"

DECODE_INSTANCE(fp16, fp16, 64, 1)
DECODE_INSTANCE(fp16, fp16, 64, 2)
DECODE_INSTANCE(fp16, fp16, 64, 4)
