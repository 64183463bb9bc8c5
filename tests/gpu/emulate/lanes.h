// SPDX-License-Identifier: Apache-2.0
// lanes.h: the emulator's own structures: blocks, warps, lanes.
#ifndef KVPOOL_TESTS_GPU_EMULATE_LANES_H
#define KVPOOL_TESTS_GPU_EMULATE_LANES_H

#include "tests/gpu/emulate/emulator.h"
#include "tests/gpu/emulate/fibre.h"

#include <deque>
#include <vector>

// What the lanes of a mask do together: args[i] is lane i's, NULL outside the mask.
struct emu_op {
    const char *name;
    void (*perform)(void *const *args, uint32_t mask);
};
void emu_collective(const emu_op *op, uint32_t mask, void *arg);

struct emu_copy { // a cp.async under way
    unsigned char *dst;
    const void *src; // NULL: zeros
    uint64_t group;
};

enum emu_lane_state { EMU_RUNS, EMU_WAITS_WARP, EMU_WAITS_BLOCK, EMU_EXITED };

struct emu_warp;
struct emu_lane {
    emu_fibre fibre;
    uint3 thread;
    emu_warp *warp;
    uint32_t index; // in the warp
    emu_lane_state state;
    const emu_op *op; // EMU_WAITS_WARP
    uint32_t mask;
    void *arg;
    uint32_t barrier, count; // EMU_WAITS_BLOCK
    uint32_t predicates;     // of the barrier just passed
    std::deque<emu_copy> copies;
    uint64_t groups; // committed so far
};
struct emu_block;
struct emu_warp {
    emu_block *block;
    uint32_t index, count; // count: lanes that exist
    emu_lane lanes[32];
};
struct emu_barrier_state {
    uint32_t count = 0, arrived = 0, predicates = 0;
    std::vector<emu_lane *> waiting;
};
struct emu_block {
    bool live = false;
    uint3 index;
    size_t threads;
    std::deque<emu_warp> warps; // addresses stay
    emu_barrier_state barriers[16];
    std::vector<unsigned char> smem, statics;
};

emu_lane *emu_lane_now(); // dies outside a kernel
// The address of shared bytes [address, address + bytes), aligned to bytes; dies outside the block's.
unsigned char *emu_smem_at(uint32_t address, size_t bytes, const char *what);

#endif
