// SPDX-License-Identifier: Apache-2.0
// backend.c: the backends of this build by name. Any thread; no state.
#include "kernels/backend.h"

#ifdef KVPOOL_HAS_CUDA
#include "kernels/cuda/driver.h"
#endif

#include <string.h>

int backend_find(const char *name, const struct backend_ops **ret, struct err *err) {
    bool any = strcmp(name, "auto") == 0;
    if (strcmp(name, "cuda") == 0) {
#ifdef KVPOOL_HAS_CUDA
        *ret = &backend_cuda;
        return 0;
#else
        return err_set(err, KVPOOL_E_BACKEND, "this build has no CUDA backend");
#endif
    }
#ifdef KVPOOL_HAS_CUDA
    if (any && cuda_device_present()) {
        *ret = &backend_cuda;
        return 0;
    }
#endif
    if (any || strcmp(name, "cpu") == 0) {
        *ret = &backend_cpu;
        return 0;
    }
    return err_set(err, KVPOOL_E_INVAL, "unknown backend \"%.32s\" (auto, cpu, cuda)", name);
}
