// SPDX-License-Identifier: Apache-2.0
// emulator.cpp: see emulator.h. The scheduler: blocks, warps, lanes and what they wait for.
#include "tests/gpu/emulate/emulator.h"
#include "tests/gpu/emulate/fibre.h"
#include "tests/gpu/emulate/lanes.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <mutex>
#include <vector>

// --- shared memory --------------------------------------------------------------------------------

enum { SMEM_BYTES = 227 * 1024, RESIDENT = 3 };
// Kernels declare it by these names, in no namespace or in an unnamed one. A new name is added here.
alignas(1024) unsigned char smem[SMEM_BYTES];
#define SAME(symbol) extern unsigned char symbol[] __attribute__((alias("smem")))
SAME(shared);
SAME(dynamic);
SAME(prefill_smem);
SAME(_ZN12_GLOBAL__N_14smemE); // (anonymous namespace)::smem
SAME(_ZN12_GLOBAL__N_16sharedE);
SAME(_ZN12_GLOBAL__N_17dynamicE);

// The arrays declared __shared__, of all kernels.
static unsigned char anchor[16] __attribute__((section("emu_shared"), used));
extern "C" unsigned char __start_emu_shared[], __stop_emu_shared[];

static emu_block *loaded; // whose shared memory is in place
static size_t smem_bytes; // of the launch

static size_t statics() {
    return (size_t)(__stop_emu_shared - __start_emu_shared);
}

static void load_shared(emu_block *b) {
    if (loaded == b)
        return;
    if (loaded != nullptr) {
        memcpy(loaded->smem.data(), smem, smem_bytes);
        std::copy_n(__start_emu_shared, statics(), loaded->statics.data());
    }
    memcpy(smem, b->smem.data(), smem_bytes);
    std::copy_n(b->statics.data(), statics(), __start_emu_shared);
    loaded = b;
}

uint32_t emu_smem_address(const void *p) {
    uintptr_t at = (uintptr_t)p, base = (uintptr_t)smem;
    if (at < base || at > base + smem_bytes)
        emu_die("%p is not in the block's %zu bytes of dynamic shared memory", p, smem_bytes);
    return (uint32_t)(at - base);
}
unsigned char *emu_smem_at(uint32_t address, size_t bytes, const char *what) {
    if (address % bytes != 0)
        emu_die("%s: shared address %u is not a multiple of %zu", what, address, bytes);
    if ((size_t)address + bytes > smem_bytes)
        emu_die("%s: shared address %u is outside the block's %zu bytes", what, address,
                smem_bytes);
    return smem + address;
}

// --- where and who ----------------------------------------------------------------------------------

static emu_place place;
const emu_place *emu_at = &place;
static emu_lane *now;
static emu_fibre home; // the scheduler
static void (*entry)(void *);
static void *entry_arg;
static uint64_t launches, random_state;

static uint64_t random_next() { // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void say_lanes(const emu_warp *w) {
    for (uint32_t i = 0; i < w->count; i++) {
        const emu_lane *l = &w->lanes[i];
        const char *op = l->op != nullptr ? l->op->name : "?";
        if (l->state == EMU_EXITED)
            fprintf(stderr, "  lane %2u has exited\n", i);
        else if (l->state == EMU_WAITS_WARP)
            fprintf(stderr, "  lane %2u waits in %s with mask %08x\n", i, op, l->mask);
        else if (l->state == EMU_WAITS_BLOCK)
            fprintf(stderr, "  lane %2u waits at barrier %u of %u threads\n", i, l->barrier,
                    l->count);
        else
            fprintf(stderr, "  lane %2u runs\n", i);
    }
}

void emu_die(const char *format, ...) {
    va_list args;
    fflush(stdout);
    fprintf(stderr, "emulator: ");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    if (now != nullptr) {
        fprintf(stderr, "\n  in block (%u, %u, %u), thread (%u, %u, %u), launch %lu\n",
                place.block.x, place.block.y, place.block.z, place.thread.x, place.thread.y,
                place.thread.z, (unsigned long)launches);
    }
    fputc('\n', stderr);
    abort();
}

emu_lane *emu_lane_now() {
    if (now == nullptr)
        emu_die("a device function outside a kernel");
    return now;
}

// A fault in a kernel loses the device, as on a GPU: it says where, the grid ends, and from then on
// everything fails: as soon as somebody has waited for the device.
static bool lost, seen;
bool emu_device_lost() {
    return lost;
}
bool emu_device_loss_seen(bool look) {
    seen = seen || (look && lost);
    return seen;
}

static void lane_faulted() {
    lost = true;
    emu_fibre_exit(&now->fibre, &home);
}
static void fault(int sig, siginfo_t *info, void *context) {
    if (now == nullptr) { // not a kernel's: the usual way
        signal(sig, SIG_DFL);
        return;
    }
    fprintf(stderr,
            "emulator: access to %p, which is no memory of the device\n"
            "  in block (%u, %u, %u), thread (%u, %u, %u), launch %lu\n",
            info->si_addr, place.block.x, place.block.y, place.block.z, place.thread.x,
            place.thread.y, place.thread.z, (unsigned long)launches);
    // The lane goes on in lane_faulted, its stack aligned as after a call.
    greg_t *r = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
    r[REG_RSP] = ((r[REG_RSP] - 256) & ~(greg_t)15) - 8;
    r[REG_RIP] = (greg_t)(uintptr_t)&lane_faulted;
}
static void catch_faults() {
    static unsigned char stack[64 * 1024];
    const stack_t alternate = {stack, 0, sizeof stack};
    struct sigaction action = {};
    action.sa_sigaction = fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaltstack(&alternate, nullptr);
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr); // so ends an address that no pointer has, relative to RBP
}

static void leave() {
    emu_fibre_switch(&now->fibre, &home);
}

static void lane_main() {
    entry(entry_arg);
    now->state = EMU_EXITED;
    emu_fibre_exit(&now->fibre, &home);
}

static void run_lane(emu_lane *l) {
    now = l;
    place.thread = l->thread;
    emu_fibre_switch(&home, &l->fibre);
    now = nullptr;
}

// --- warps ------------------------------------------------------------------------------------------

void emu_collective(const emu_op *op, uint32_t mask, void *arg) {
    emu_lane *l = emu_lane_now();
    if ((mask >> l->index & 1u) == 0)
        emu_die("%s: lane %u is not in its own mask %08x", op->name, l->index, mask);
    l->op = op;
    l->mask = mask;
    l->arg = arg;
    l->state = EMU_WAITS_WARP;
    leave();
}

// Performs every collective whose lanes are all there. True if any lane may run.
static bool perform(emu_warp *w) {
    bool any = false;
    for (uint32_t i = 0; i < w->count; i++) {
        emu_lane *l = &w->lanes[i];
        if (l->state == EMU_RUNS)
            any = true;
        if (l->state != EMU_WAITS_WARP)
            continue;
        void *args[32] = {};
        bool all = true;
        for (uint32_t j = 0; j < 32; j++) {
            if ((l->mask >> j & 1u) == 0)
                continue;
            emu_lane *m = &w->lanes[j];
            if (j >= w->count || m->state != EMU_WAITS_WARP || m->op != l->op || m->mask != l->mask)
                all = false;
            else
                args[j] = m->arg;
        }
        if (!all)
            continue;
        uint32_t mask = l->mask;
        now = l; // for messages
        place.thread = l->thread;
        l->op->perform(args, mask);
        now = nullptr;
        for (uint32_t j = 0; j < w->count; j++)
            if ((mask >> j & 1u) != 0)
                w->lanes[j].state = EMU_RUNS;
        any = true;
    }
    return any;
}

// Runs the warp until none of its lanes can go on or chance says so.
static void run_warp(emu_warp *w) {
    for (;;) {
        uint64_t r = random_next();
        uint32_t start = (uint32_t)r & 31u, step = (r & 32u) != 0 ? 1 : 31;
        for (uint32_t i = 0, at = start; i < 32; i++, at = (at + step) & 31u)
            if (at < w->count && w->lanes[at].state == EMU_RUNS && !lost)
                run_lane(&w->lanes[at]);
        if (lost || !perform(w))
            return;
        if ((r >> 32 & 15u) == 0)
            return;
    }
}

// --- blocks -----------------------------------------------------------------------------------------

void emu_barrier_arg(uint32_t id, uint32_t count, bool wait, bool predicate) {
    emu_lane *l = emu_lane_now();
    emu_block *b = l->warp->block;
    if (id >= 16)
        emu_die("barrier %u: there are 16", id);
    if (count == 0)
        count = (uint32_t)((b->threads + 31) / 32 * 32);
    if (count % 32 != 0 || count > (b->threads + 31) / 32 * 32)
        emu_die("barrier %u: %u threads of a block of %zu", id, count, b->threads);
    emu_barrier_state *s = &b->barriers[id];
    l->barrier = id;
    l->count = count;
    if (s->arrived != 0 && s->count != count)
        emu_die("barrier %u: %u threads, but %u are waited for", id, count, s->count);
    s->count = count;
    s->arrived++;
    s->predicates += predicate;
    if (wait) {
        l->state = EMU_WAITS_BLOCK;
        s->waiting.push_back(l);
    }
    // The warps' lanes that do not exist count as there.
    uint32_t absent =
        s->count == (b->threads + 31) / 32 * 32 ? (uint32_t)(s->count - b->threads) : 0;
    if (s->arrived + absent == s->count) {
        for (emu_lane *m : s->waiting) {
            m->state = EMU_RUNS;
            m->warp->able = true;
            m->predicates = s->predicates;
        }
        s->waiting.clear();
        s->arrived = 0;
        s->predicates = 0;
    }
    leave();
}
void emu_barrier(uint32_t id, uint32_t count, bool wait) {
    emu_barrier_arg(id, count, wait, false);
}
uint32_t emu_barrier_count(bool predicate) {
    emu_barrier_arg(0, 0, true, predicate);
    return now->predicates;
}

void emu_yield() {
    emu_lane_now();
    leave();
}

static bool exited(const emu_warp *w) {
    for (uint32_t i = 0; i < w->count; i++)
        if (w->lanes[i].state != EMU_EXITED)
            return false;
    return true;
}

// A warp none of whose lanes runs: all wait at barriers or have exited, or it will never go on.
static void check_stuck(const emu_block *b, const emu_warp *w) {
    uint32_t states = 0;
    for (uint32_t i = 0; i < w->count; i++) {
        states |= 1u << w->lanes[i].state;
        if (w->lanes[i].state == EMU_WAITS_BLOCK && w->lanes[i].barrier != w->lanes[0].barrier)
            states |= 1u << EMU_WAITS_WARP;
    }
    if (states == 1u << EMU_WAITS_BLOCK || states == 1u << EMU_EXITED)
        return;
    place.block = b->index;
    fflush(stdout);
    fprintf(stderr,
            "emulator: the lanes of warp %u of block (%u, %u, %u) wait for different things:\n",
            w->index, b->index.x, b->index.y, b->index.z);
    say_lanes(w);
    emu_die("divergent collective");
}

static std::vector<emu_warp> spare_warps; // with their lanes' stacks

static void block_start(emu_block *b, uint64_t linear, const dim3 &grid, const dim3 &block) {
    b->index = uint3{(unsigned)(linear % grid.x), (unsigned)(linear / grid.x % grid.y),
                     (unsigned)(linear / ((uint64_t)grid.x * grid.y))};
    b->threads = (size_t)block.x * block.y * block.z;
    b->smem.assign(smem_bytes, 0xff);
    b->statics.assign(statics(), 0xff);
    b->live = true;
    size_t warps = (b->threads + 31) / 32;
    for (; b->warps.size() > warps; b->warps.pop_back())
        spare_warps.push_back(std::move(b->warps.back()));
    for (; b->warps.size() < warps && !spare_warps.empty(); spare_warps.pop_back())
        b->warps.push_back(std::move(spare_warps.back()));
    b->warps.resize(warps);
    for (size_t w = 0; w < warps; w++) {
        emu_warp *warp = &b->warps[w];
        warp->block = b;
        warp->index = (uint32_t)w;
        warp->able = true;
        warp->count = (uint32_t)(b->threads - w * 32 < 32 ? b->threads - w * 32 : 32);
        for (uint32_t i = 0; i < warp->count; i++) {
            emu_lane *l = &warp->lanes[i];
            unsigned t = (unsigned)(w * 32 + i);
            l->thread = uint3{t % block.x, t / block.x % block.y, t / (block.x * block.y)};
            l->warp = warp;
            l->index = i;
            l->state = EMU_RUNS;
            l->copies.clear();
            l->groups = 0;
            emu_fibre_start(&l->fibre, lane_main);
        }
    }
    for (emu_barrier_state &s : b->barriers)
        s = emu_barrier_state();
}

// Runs one warp of the block, chosen by chance. False: the block has ended.
static bool block_step(emu_block *b) {
    emu_warp *able[32];
    uint32_t n = 0;
    for (emu_warp &w : b->warps)
        if (w.able)
            able[n++] = &w;
    if (n == 0) {
        bool ended = true;
        for (emu_warp &w : b->warps)
            ended = ended && exited(&w);
        if (ended)
            return false;
        fflush(stdout);
        fprintf(stderr, "emulator: block (%u, %u, %u): no warp can go on\n", b->index.x, b->index.y,
                b->index.z);
        for (emu_warp &w : b->warps) {
            fprintf(stderr, " warp %u:\n", w.index);
            say_lanes(&w);
        }
        emu_die("deadlock at a barrier");
    }
    load_shared(b);
    place.block = b->index;
    emu_warp *w = able[random_next() % n];
    run_warp(w);
    w->able = false;
    for (uint32_t i = 0; i < w->count && !w->able; i++)
        w->able = w->lanes[i].state == EMU_RUNS;
    if (!w->able && !lost)
        check_stuck(b, w);
    return true;
}

static void block_end(emu_block *b) {
    for (emu_barrier_state &s : b->barriers)
        if (s.arrived != 0)
            emu_die("block (%u, %u, %u) ended with %u threads at a barrier of %u", b->index.x,
                    b->index.y, b->index.z, s.arrived, s.count);
    b->live = false;
    if (loaded == b)
        loaded = nullptr;
}

static void run_grid(const dim3 &grid, const dim3 &block) {
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
    static emu_block resident[RESIDENT]; // kept: so are their fibres' stacks
    uint64_t next = 0;
    for (;;) {
        uint32_t live[RESIDENT], n = 0;
        for (uint32_t i = 0; i < RESIDENT; i++) {
            if (!resident[i].live && next < blocks)
                block_start(&resident[i], next++, grid, block);
            if (resident[i].live)
                live[n++] = i;
        }
        if (lost)
            for (emu_block &b : resident)
                b.live = false;
        if (n == 0 || lost)
            return;
        emu_block *b = &resident[live[random_next() % n]];
        for (uint64_t steps = 1 + random_next() % 64; steps != 0 && !lost; steps--)
            if (!block_step(b)) {
                block_end(b);
                break;
            }
    }
}

int emu_launch(void (*start)(void *), void *arg, dim3 grid, dim3 block, size_t dynamic) {
    static std::mutex one;
    std::lock_guard<std::mutex> lock(one);
    uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 ||
        grid.x > 0x7fffffffu || threads == 0 || threads > 1024 || block.z > 64)
        return 9; // cudaErrorInvalidConfiguration
    if (dynamic > SMEM_BYTES)
        return 1; // cudaErrorInvalidValue
    if (lost)
        return seen ? 700 : 0; // cudaErrorIllegalAddress
    catch_faults();
    const char *seed = getenv("KVPOOL_EMULATE_SEED");
    launches++;
    random_state =
        (seed != nullptr ? strtoull(seed, nullptr, 0) : 1) * 0x9e3779b97f4a7c15u + launches;
    entry = start;
    entry_arg = arg;
    place.block_dim = block;
    place.grid_dim = grid;
    smem_bytes = dynamic;
    emu_smem_limit(smem, SMEM_BYTES, dynamic);
    loaded = nullptr;
    run_grid(grid, block);
    emu_smem_limit(smem, SMEM_BYTES, SMEM_BYTES);
    return 0;
}
