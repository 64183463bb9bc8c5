// SPDX-License-Identifier: Apache-2.0
// backend.c: the backends of this build by name. Any thread; no state.
#include "kernels/backend.h"

#include <string.h>

int backend_find(const char *name, const struct backend_ops **ret, struct err *err) {
    if (strcmp(name, "cpu") == 0 || strcmp(name, "auto") == 0) {
        *ret = &backend_cpu;
        return 0;
    }
    if (strcmp(name, "cuda") == 0)
        return err_set(err, KVPOOL_E_BACKEND, "this build has no CUDA backend");
    return err_set(err, KVPOOL_E_INVAL, "unknown backend \"%.32s\" (auto, cpu, cuda)", name);
}
