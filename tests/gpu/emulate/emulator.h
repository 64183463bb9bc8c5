// SPDX-License-Identifier: Apache-2.0
// emulator.h: runs CUDA kernels on the CPU, for tests: one fibre a lane, one lane at a time.
//
// Invariants
//  1. A launch is synchronous: when it returns, every block has run to its end.
//  2. Blocks start in the order of their index, as on a GPU, a few of them interleaved by chance; warps
//     and the lanes of a warp run in a random order. Seed: KVPOOL_EMULATE_SEED (default 1) and the number
//     of the launch, so that no two launches of a process run alike and every process does.
//  3. Lanes switch only inside the functions below (collectives, barriers, atomics, fences).
//  4. A collective happens when all lanes of its mask are in it. Where that can never be (lanes of
//     one mask in different collectives, or exited) the process aborts and says which lane waits for
//     what.
//  5. Shared memory is 0xff when a block begins. cp.async poisons its destination at issue and copies
//     at the wait that completes it: as late as a GPU may.
//  6. A fault in a kernel is the device's, not the process's: cudaErrorIllegalAddress from then on.
// Threads: any one at a time (launches are serialised by a mutex).
#ifndef KVPOOL_TESTS_GPU_EMULATE_EMULATOR_H
#define KVPOOL_TESTS_GPU_EMULATE_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Where the running lane is.
struct emu_place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern const emu_place *emu_at;

// Runs entry(arg) as every thread of the grid. Returns the cudaError_t.
int emu_launch(void (*entry)(void *arg), void *arg, dim3 grid, dim3 block, size_t smem);
// A kernel has touched what is no memory: nothing is done any more.
bool emu_device_lost();
// Whether callers know: what waits for the device looks, what enqueues does not.
bool emu_device_loss_seen(bool look);

// The dynamic shared memory of the running block is at the same place for every block, as on a GPU;
// kernels name it by KVPOOL_SHARED smem[]. The offset of p in it.
uint32_t emu_smem_address(const void *p);

// --- collectives: all lanes of mask, together ---------------------------------------------------
enum emu_shuffle { EMU_SHFL, EMU_SHFL_UP, EMU_SHFL_DOWN, EMU_SHFL_XOR };
uint64_t emu_shfl(emu_shuffle how, uint32_t mask, uint64_t value, uint32_t by, uint32_t width);
enum emu_reduction { EMU_ADD, EMU_MIN, EMU_MAX, EMU_AND, EMU_OR, EMU_XOR };
uint32_t emu_reduce(emu_reduction how, bool is_signed, uint32_t mask, uint32_t value);
uint32_t emu_ballot(uint32_t mask, bool predicate);
uint32_t emu_match_any(uint32_t mask, uint64_t value);
void emu_syncwarp(uint32_t mask);
uint32_t emu_activemask();
void emu_ldmatrix_x4(uint32_t *r, uint32_t address, bool transposed);
uint32_t emu_movmatrix(uint32_t a);
void emu_mma_16816(bool is_bf16, float *d, const uint32_t *a, uint32_t b0, uint32_t b1);

// --- the block ------------------------------------------------------------------------------------
// Barrier id 0..15 of `count` threads (a multiple of 32; 0: the whole block).
void emu_barrier(uint32_t id, uint32_t count, bool wait);
// __syncthreads_count / _and / _or: of all threads of the block.
uint32_t emu_barrier_count(bool predicate);

void emu_cp_async_16(uint32_t dst, const void *src, bool valid);
void emu_cp_async_commit();
void emu_cp_async_wait(
    uint32_t newest_left); // groups that may remain; UINT32_MAX: none, uncommitted too

// Others may run now (atomics, fences).
void emu_yield();
[[noreturn]] void emu_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

// --- numbers ----------------------------------------------------------------------------------------
float emu_fp16_to_fp32(uint16_t h);
uint16_t emu_fp32_to_fp16(float x);
uint16_t emu_fp32_to_bf16(float x);
float emu_e4m3_to_fp32(uint8_t b);
uint8_t emu_fp32_to_e4m3(float x); // saturated, NaN stays

#endif
