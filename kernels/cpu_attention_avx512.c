// SPDX-License-Identifier: Apache-2.0
// cpu_attention_avx512.c: the attention kernel for AVX-512 (F, BW, VL, DQ). Call it only where
// cpu_attention.c found them.
#define ISA_PAIRS 0
#include "kernels/cpu_isa_avx512.h"

#include "kernels/cpu_attention_kernel.h"

const struct attn_isa attn_avx512 = {"avx512", attn_run, attn_finish};
