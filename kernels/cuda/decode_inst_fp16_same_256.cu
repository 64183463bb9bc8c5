// SPDX-License-Identifier: Apache-2.0
// decode_inst_fp16_same_256.cu: instances of decode.cuh.
#include "kernels/cuda/decode.cuh"

DECODE_INSTANCE(fp16, fp16, 256, 1)
DECODE_INSTANCE(fp16, fp16, 256, 2)
