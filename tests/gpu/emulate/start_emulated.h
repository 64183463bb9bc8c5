// SPDX-License-Identifier: Apache-2.0
// start_emulated.h: start_kernel of kernels/cuda/start.cuh on the emulator: the kernel has run when it
// returns. Included by start.cuh alone.
#ifndef KVPOOL_TESTS_GPU_EMULATE_START_EMULATED_H
#define KVPOOL_TESTS_GPU_EMULATE_START_EMULATED_H

#include "tests/gpu/emulate/vocabulary.h"

template <class... P> struct emu_call {
    void (*kernel)(P...);
    std::tuple<P...> args;
    static void entry(void *arg) {
        const emu_call *c = static_cast<const emu_call *>(arg);
        std::apply(c->kernel, c->args);
    }
};

template <class... P, class... A>
static int start_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, void *,
                        bool, A &&...args) {
    emu_call<P...> call{kernel, std::tuple<P...>(static_cast<P>(args)...)};
    return emu_launch(&emu_call<P...>::entry, &call, grid, block, smem_bytes);
}

#endif
