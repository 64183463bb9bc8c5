// SPDX-License-Identifier: Apache-2.0
// fibre.h: stacks to run on, and the switch between them.
//
// Invariants: a fibre is switched to by one thread at a time; its stack has an unmapped page below it
// and is kept for the next start.
#ifndef KVPOOL_TESTS_GPU_EMULATE_FIBRE_H
#define KVPOOL_TESTS_GPU_EMULATE_FIBRE_H

#include <stddef.h>

struct emu_fibre {
    void *sp = nullptr;              // while it does not run
    unsigned char *stack = nullptr;  // lowest address; NULL: the thread's own
    void *fake = nullptr;            // AddressSanitizer's
    const void *bottom = nullptr;    // of the stack, for AddressSanitizer
    size_t bytes = 0;
};

void emu_fibre_start(emu_fibre *f, void (*entry)()); // entry runs at the first switch to f
void emu_fibre_switch(emu_fibre *from, emu_fibre *to);
void emu_fibre_exit(emu_fibre *from, emu_fibre *to); // from never runs on

// Accesses to base[used..bytes) are errors, where AddressSanitizer is there to see them.
void emu_smem_limit(unsigned char *base, size_t bytes, size_t used);

#endif
