// SPDX-License-Identifier: Apache-2.0
// cpu_attention_avx512bf16.c: the attention kernel for AVX-512 with AVX512_BF16, which multiplies
// pairs of bf16. Call it only where cpu_attention.c found them.
#define ISA_PAIRS 1
#include "kernels/cpu_isa_avx512.h"

#include "kernels/cpu_attention_kernel.h"

const struct attn_isa attn_avx512bf16 = {"avx512bf16", attn_run, attn_finish};
