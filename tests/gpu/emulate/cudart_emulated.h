// SPDX-License-Identifier: Apache-2.0
// cudart_emulated.h: what the files of the emulated runtime share.
#ifndef KVPOOL_TESTS_GPU_EMULATE_CUDART_EMULATED_H
#define KVPOOL_TESTS_GPU_EMULATE_CUDART_EMULATED_H

#include "cuda_runtime_api.h"

cudaError_t emu_result(cudaError_t e); // e; an error becomes the thread's last one

#endif
