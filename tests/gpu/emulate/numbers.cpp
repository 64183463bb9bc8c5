// SPDX-License-Identifier: Apache-2.0
// numbers.cpp: fp16, bf16 and e4m3 to and from fp32: widening exact, narrowing to nearest even. Shares
// no code with the CPU backend. See emulator.h.
#include "tests/gpu/emulate/emulator.h"

#include <math.h>
#include <string.h>

// x rounded to a multiple of 2^exponent, ties to even. Exact scaling by powers of two.
static double round_to(double x, int exponent) { return ldexp(nearbyint(ldexp(x, -exponent)), exponent); }

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

struct fp16_table {
    float value[65536];
    fp16_table() {
        for (uint32_t i = 0; i < 65536; i++) {
            int exponent = (int)(i >> 10 & 31u);
            double fraction = (double)(i & 1023u) / 1024;
            double x = exponent == 0 ? ldexp(fraction, -14) : ldexp(1 + fraction, exponent - 15);
            if (exponent == 31)
                x = (i & 1023u) != 0 ? (double)NAN : (double)INFINITY;
            value[i] = (float)((i & 0x8000u) != 0 ? -x : x);
        }
    }
};
static const fp16_table FP16;

float emu_fp16_to_fp32(uint16_t h) { return FP16.value[h]; }

uint16_t emu_fp32_to_fp16(float x) {
    uint32_t bits = bits_of(x);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return 0x7fff;
    if (magnitude >= 0x477ff000u) // 65520 and more
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { // denormal: a multiple of 2^-24
        double m = round_to(fabs((double)x), -24);
        return (uint16_t)(sign | (uint16_t)ldexp(m, 24));
    }
    uint32_t odd = magnitude >> 13 & 1u;
    return (uint16_t)(sign | (magnitude + 0xfffu + odd - 0x38000000u) >> 13);
}

uint16_t emu_fp32_to_bf16(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float emu_e4m3_to_fp32(uint8_t b) {
    int exponent = b >> 3 & 15;
    double fraction = (double)(b & 7) / 8;
    double x = exponent == 0 ? ldexp(fraction, -6) : ldexp(1 + fraction, exponent - 7);
    if ((b & 0x7f) == 0x7f)
        x = (double)NAN;
    return (float)((b & 0x80) != 0 ? -x : x);
}

uint8_t emu_fp32_to_e4m3(float x) {
    uint8_t sign = (bits_of(x) & 0x80000000u) != 0 ? 0x80 : 0;
    if (isnan(x))
        return (uint8_t)(sign | 0x7f);
    double m = fabs((double)x);
    if (m >= 448)
        return (uint8_t)(sign | 0x7e);
    int exponent = m < 0x1p-6 ? -6 : ilogb(m);
    double steps = nearbyint(ldexp(m, 3 - exponent)); // of 2^(exponent-3); 8..16 when normal
    if (m < 0x1p-6)
        return (uint8_t)(sign | (uint8_t)steps); // 8 is the smallest normal's code as well
    uint32_t code = (uint32_t)(exponent + 7) * 8 + (uint32_t)steps - 8;
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}
