// SPDX-License-Identifier: Apache-2.0
// fibre.cpp: see fibre.h.
#include "tests/gpu/emulate/fibre.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 512 * 1024 };
#else
enum { STACK_BYTES = 128 * 1024 };
#endif

#if !defined(__x86_64__)
#error "the emulator switches stacks on x86-64 only"
#endif

// Saves what a call must keep, changes stacks and returns on the other one.
extern "C" void emu_fibre_jump(void **save_sp, void *sp);
asm(".text\n"
    ".globl emu_fibre_jump\n"
    ".hidden emu_fibre_jump\n"
    ".type emu_fibre_jump, @function\n"
    "emu_fibre_jump:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n"
    "  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
    "  ret\n"
    ".size emu_fibre_jump, .-emu_fibre_jump\n");

static emu_fibre *coming; // the one that is switched to
static emu_fibre *left;   // the one that was switched from

static void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(coming->fake, &bottom, &bytes);
    if (left->stack == nullptr) { // the thread's own stack: learnt here
        left->bottom = bottom;
        left->bytes = bytes;
    }
#endif
}

static void (*first)();
static void trampoline() {
    arrived();
    first();
    abort();
}

void emu_fibre_start(emu_fibre *f, void (*entry)()) {
    if (f->stack == nullptr) {
        void *map = mmap(nullptr, STACK_BYTES + 4096, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (map == MAP_FAILED || mprotect(map, 4096, PROT_NONE) != 0) {
            perror("emulator: stack of a lane");
            abort();
        }
        f->stack = static_cast<unsigned char *>(map) + 4096;
        f->bottom = f->stack;
        f->bytes = STACK_BYTES;
    }
    first = entry;
    f->fake = nullptr;
    // As emu_fibre_jump leaves it: six registers, the address to return to, and 8 bytes so that the
    // stack is aligned as after a call.
    void **top = reinterpret_cast<void **>(f->stack + STACK_BYTES);
    *--top = nullptr;
    *--top = reinterpret_cast<void *>(&trampoline);
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    f->sp = top;
}

static void jump(emu_fibre *from, emu_fibre *to, bool ends) {
    left = from;
    coming = to;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(ends ? nullptr : &from->fake, to->bottom, to->bytes);
#else
    (void)ends;
#endif
    emu_fibre_jump(&from->sp, to->sp);
    arrived();
}
void emu_fibre_switch(emu_fibre *from, emu_fibre *to) { jump(from, to, false); }
void emu_fibre_exit(emu_fibre *from, emu_fibre *to) {
    jump(from, to, true);
    abort();
}

void emu_smem_limit(unsigned char *base, size_t bytes, size_t used) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(base, used);
    __asan_poison_memory_region(base + used, bytes - used);
#else
    (void)base, (void)bytes, (void)used;
#endif
}
