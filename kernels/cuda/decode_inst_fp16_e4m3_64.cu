// SPDX-License-Identifier: Apache-2.0
// decode_inst_fp16_e4m3_64.cu: instances of decode.cuh.
#include "kernels/cuda/decode.cuh"

DECODE_INSTANCE(fp16, e4m3, 64, 1)
DECODE_INSTANCE(fp16, e4m3, 64, 2)
DECODE_INSTANCE(fp16, e4m3, 64, 4)
