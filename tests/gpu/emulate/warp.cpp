// SPDX-License-Identifier: Apache-2.0
// warp.cpp: what the lanes of a warp do together, and cp.async. See emulator.h.
#include "tests/gpu/emulate/emulator.h"
#include "tests/gpu/emulate/lanes.h"

#include <string.h>

static bool in(uint32_t mask, uint32_t lane) { return lane < 32 && (mask >> lane & 1u) != 0; }

// --- shuffles, votes, reductions ----------------------------------------------------------------

struct shuffle {
    emu_shuffle how;
    uint64_t value, result;
    uint32_t by, width;
};
static void shuffle_perform(void *const *args, uint32_t mask) {
    for (uint32_t i = 0; i < 32; i++) {
        if (!in(mask, i))
            continue;
        shuffle *a = static_cast<shuffle *>(args[i]);
        if (a->width == 0 || a->width > 32 || (a->width & (a->width - 1)) != 0)
            emu_die("shuffle: width %u", a->width);
        uint32_t first = i & ~(a->width - 1), from = i;
        if (a->how == EMU_SHFL)
            from = first + (a->by & (a->width - 1));
        else if (a->how == EMU_SHFL_UP)
            from = i < first + a->by ? i : i - a->by;
        else if (a->how == EMU_SHFL_DOWN)
            from = a->by >= a->width || i + a->by >= first + a->width ? i : i + a->by;
        else if (((i ^ a->by) & ~(a->width - 1)) <= first)
            from = i ^ a->by;
        if (!in(mask, from))
            emu_die("shuffle: lane %u reads lane %u, which is not in mask %08x", i, from, mask);
        a->result = static_cast<const shuffle *>(args[from])->value;
    }
}
static const emu_op SHUFFLES[] = {{"__shfl_sync", shuffle_perform},
                                  {"__shfl_up_sync", shuffle_perform},
                                  {"__shfl_down_sync", shuffle_perform},
                                  {"__shfl_xor_sync", shuffle_perform}};
uint64_t emu_shfl(emu_shuffle how, uint32_t mask, uint64_t value, uint32_t by, uint32_t width) {
    shuffle a = {how, value, 0, by, width};
    emu_collective(&SHUFFLES[how], mask, &a);
    return a.result;
}

struct word {
    uint64_t value;
    uint32_t result;
};
static void ballot_perform(void *const *args, uint32_t mask) {
    uint32_t all = 0;
    for (uint32_t i = 0; i < 32; i++)
        if (in(mask, i) && static_cast<word *>(args[i])->value != 0)
            all |= 1u << i;
    for (uint32_t i = 0; i < 32; i++)
        if (in(mask, i))
            static_cast<word *>(args[i])->result = all;
}
static const emu_op BALLOT = {"a vote", ballot_perform};
uint32_t emu_ballot(uint32_t mask, bool predicate) {
    word a = {predicate, 0};
    emu_collective(&BALLOT, mask, &a);
    return a.result;
}

static void match_perform(void *const *args, uint32_t mask) {
    for (uint32_t i = 0; i < 32; i++) {
        if (!in(mask, i))
            continue;
        word *a = static_cast<word *>(args[i]);
        for (uint32_t j = 0; j < 32; j++)
            if (in(mask, j) && static_cast<word *>(args[j])->value == a->value)
                a->result |= 1u << j;
    }
}
static const emu_op MATCH = {"__match_any_sync", match_perform};
uint32_t emu_match_any(uint32_t mask, uint64_t value) {
    word a = {value, 0};
    emu_collective(&MATCH, mask, &a);
    return a.result;
}

static void nothing(void *const *, uint32_t) {}
static const emu_op SYNCWARP = {"__syncwarp", nothing};
void emu_syncwarp(uint32_t mask) { emu_collective(&SYNCWARP, mask, nullptr); }

uint32_t emu_activemask() {
    emu_die("__activemask: which lanes are together is not defined");
}

struct reduction {
    emu_reduction how;
    bool is_signed;
    uint32_t value, result;
};
static uint32_t reduce2(const reduction *a, uint32_t x, uint32_t y) {
    bool less = a->is_signed ? (int32_t)x < (int32_t)y : x < y;
    switch (a->how) {
    case EMU_ADD:
        return x + y;
    case EMU_MIN:
        return less ? x : y;
    case EMU_MAX:
        return less ? y : x;
    case EMU_AND:
        return x & y;
    case EMU_OR:
        return x | y;
    default:
        return x ^ y;
    }
}
static void reduce_perform(void *const *args, uint32_t mask) {
    const reduction *first = static_cast<const reduction *>(args[__builtin_ctz(mask)]);
    uint32_t result = first->value;
    for (uint32_t i = (uint32_t)__builtin_ctz(mask) + 1; i < 32; i++)
        if (in(mask, i))
            result = reduce2(first, result, static_cast<const reduction *>(args[i])->value);
    for (uint32_t i = 0; i < 32; i++)
        if (in(mask, i))
            static_cast<reduction *>(args[i])->result = result;
}
static const emu_op REDUCTIONS[] = {
    {"__reduce_add_sync", reduce_perform}, {"__reduce_min_sync", reduce_perform},
    {"__reduce_max_sync", reduce_perform}, {"__reduce_and_sync", reduce_perform},
    {"__reduce_or_sync", reduce_perform},  {"__reduce_xor_sync", reduce_perform}};
uint32_t emu_reduce(emu_reduction how, bool is_signed, uint32_t mask, uint32_t value) {
    reduction a = {how, is_signed, value, 0};
    emu_collective(&REDUCTIONS[how], mask, &a);
    return a.result;
}

// --- matrices -----------------------------------------------------------------------------------

static const uint32_t WARP = 0xffffffffu;

struct ldmatrix {
    uint32_t *r;
    uint32_t address;
    bool transposed;
};
static void ldmatrix_perform(void *const *args, uint32_t) {
    for (uint32_t m = 0; m < 4; m++) {
        uint16_t rows[8][8];
        for (uint32_t i = 0; i < 8; i++) {
            uint32_t address = static_cast<const ldmatrix *>(args[m * 8 + i])->address;
            memcpy(rows[i], emu_smem_at(address, 16, "ldmatrix"), 16);
        }
        for (uint32_t t = 0; t < 32; t++) {
            const ldmatrix *a = static_cast<const ldmatrix *>(args[t]);
            uint32_t g = t / 4, c = t % 4;
            uint16_t low = a->transposed ? rows[2 * c][g] : rows[g][2 * c];
            uint16_t high = a->transposed ? rows[2 * c + 1][g] : rows[g][2 * c + 1];
            a->r[m] = (uint32_t)low | (uint32_t)high << 16;
        }
    }
}
static const emu_op LDMATRIX[] = {{"ldmatrix", ldmatrix_perform},
                                  {"ldmatrix.trans", ldmatrix_perform}};
void emu_ldmatrix_x4(uint32_t *r, uint32_t address, bool transposed) {
    ldmatrix a = {r, address, transposed};
    emu_collective(&LDMATRIX[transposed], WARP, &a);
}

static void movmatrix_perform(void *const *args, uint32_t) {
    uint16_t m[8][8];
    for (uint32_t t = 0; t < 32; t++) {
        uint64_t x = static_cast<const word *>(args[t])->value;
        m[t / 4][t % 4 * 2] = (uint16_t)x;
        m[t / 4][t % 4 * 2 + 1] = (uint16_t)(x >> 16);
    }
    for (uint32_t t = 0; t < 32; t++) {
        uint32_t g = t / 4, c = t % 4;
        static_cast<word *>(args[t])->result = (uint32_t)m[2 * c][g] | (uint32_t)m[2 * c + 1][g] << 16;
    }
}
static const emu_op MOVMATRIX = {"movmatrix", movmatrix_perform};
uint32_t emu_movmatrix(uint32_t x) {
    word a = {x, 0};
    emu_collective(&MOVMATRIX, WARP, &a);
    return a.result;
}

struct mma {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};
template <bool BF16> static float element(uint32_t x, uint32_t half) {
    uint16_t h = (uint16_t)(x >> 16 * half);
    if constexpr (!BF16)
        return emu_fp16_to_fp32(h);
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
// Products are exact in fp32; sums are rounded one by one, k upwards.
template <bool BF16> static void mma_perform(void *const *args, uint32_t) {
    float a[16][16], b[16][8], d[16][8];
    for (uint32_t t = 0; t < 32; t++) {
        const mma *x = static_cast<const mma *>(args[t]);
        uint32_t g = t / 4, c = t % 4 * 2;
        for (uint32_t h = 0; h < 2; h++) {
            a[g][c + h] = element<BF16>(x->a[0], h);
            a[g + 8][c + h] = element<BF16>(x->a[1], h);
            a[g][c + 8 + h] = element<BF16>(x->a[2], h);
            a[g + 8][c + 8 + h] = element<BF16>(x->a[3], h);
            b[c + h][g] = element<BF16>(x->b[0], h);
            b[c + 8 + h][g] = element<BF16>(x->b[1], h);
            d[g][c + h] = x->d[h];
            d[g + 8][c + h] = x->d[2 + h];
        }
    }
    for (uint32_t i = 0; i < 16; i++)
        for (uint32_t k = 0; k < 16; k++)
            for (uint32_t j = 0; j < 8; j++)
                d[i][j] += a[i][k] * b[k][j];
    for (uint32_t t = 0; t < 32; t++) {
        const mma *x = static_cast<const mma *>(args[t]);
        uint32_t g = t / 4, c = t % 4 * 2;
        x->d[0] = d[g][c];
        x->d[1] = d[g][c + 1];
        x->d[2] = d[g + 8][c];
        x->d[3] = d[g + 8][c + 1];
    }
}
static const emu_op MMA[] = {{"mma.m16n8k16.f16", mma_perform<false>},
                             {"mma.m16n8k16.bf16", mma_perform<true>}};
void emu_mma_16816(bool is_bf16, float *d, const uint32_t *a, uint32_t b0, uint32_t b1) {
    mma x = {d, a, {b0, b1}};
    emu_collective(&MMA[is_bf16], WARP, &x);
}

// --- cp.async -----------------------------------------------------------------------------------

void emu_cp_async_16(uint32_t dst, const void *src, bool valid) {
    emu_lane *l = emu_lane_now();
    if (valid && (uintptr_t)src % 16 != 0)
        emu_die("cp.async: source %p is not a multiple of 16", src);
    emu_copy copy = {emu_smem_at(dst, 16, "cp.async"), valid ? src : nullptr, l->groups};
    memset(copy.dst, 0xff, 16);
    if (valid) { // touched now as well: a bad address is found where it is made
        volatile unsigned char touched = *static_cast<const volatile unsigned char *>(src);
        (void)touched;
    }
    l->copies.push_back(copy);
}
void emu_cp_async_commit() { emu_lane_now()->groups++; }
void emu_cp_async_wait(uint32_t newest_left) {
    emu_lane *l = emu_lane_now();
    while (!l->copies.empty()) {
        const emu_copy &copy = l->copies.front();
        bool done = newest_left == UINT32_MAX || copy.group + newest_left < l->groups;
        if (!done)
            break;
        if (copy.src != nullptr)
            memcpy(copy.dst, copy.src, 16);
        else
            memset(copy.dst, 0, 16);
        l->copies.pop_front();
    }
}
