// SPDX-License-Identifier: Apache-2.0
// fake_cuda.c: see fake_cuda.h.
#include "tests/unit/client/fake_cuda.h"

#include <stdbool.h>
#include <string.h>

struct fake_cuda fake_cuda;

struct ipc {
    char bytes[64];
};
struct access {
    int type, id, flags;
};
typedef unsigned long long pointer;

#define API(...)                   \
    FAKE_CUDA_API int __VA_ARGS__; \
    int __VA_ARGS__
#define CALL(name)                                                     \
    if (fake_cuda.fails != NULL && strcmp(fake_cuda.fails, name) == 0) \
    return fake_cuda.error

void fake_cuda_reset(void) {
    static int context;
    fake_cuda = (struct fake_cuda){
        .error = 999, .current = &context, .owner = &context, .memory_type = 2, .imported_fd = -1};
}

API(cuInit(unsigned flags)) {
    CALL("cuInit");
    return flags == 0 ? 0 : 1;
}

API(cuGetErrorName(int error, const char **ret)) {
    *ret = error == 999 ? "CUDA_ERROR_UNKNOWN" : "CUDA_ERROR_OTHER";
    return 0;
}

API(cuCtxGetCurrent(void **ret)) {
    *ret = fake_cuda.current;
    return 0;
}

API(cuCtxGetDevice(int *ret)) {
    CALL("cuCtxGetDevice");
    *ret = 3;
    return 0;
}

API(cuCtxPushCurrent_v2(void *context)) {
    CALL("cuCtxPushCurrent");
    fake_cuda.pushed++;
    return context != NULL ? 0 : 201;
}

API(cuCtxPopCurrent_v2(void **ret)) {
    fake_cuda.pushed--;
    *ret = NULL;
    return 0;
}

API(cuPointerGetAttribute(void *ret, int attribute, pointer ptr)) {
    if (ptr < FAKE_BASE || ptr >= FAKE_BASE + FAKE_BYTES)
        return 1;
    const unsigned capable = !fake_cuda.incapable;
    switch (attribute) {
    case 1:
        memcpy(ret, &fake_cuda.owner, sizeof fake_cuda.owner);
        return 0;
    case 2:
        memcpy(ret, &fake_cuda.memory_type, sizeof(unsigned));
        return 0;
    case 8:
        memcpy(ret, &fake_cuda.managed, sizeof(unsigned));
        return 0;
    case 10:
        memcpy(ret, &capable, sizeof capable);
        return 0;
    case 17:
        memcpy(ret, &fake_cuda.mempool, sizeof fake_cuda.mempool);
        return 0;
    default:
        return 1;
    }
}

API(cuMemGetAddressRange_v2(pointer *ret_base, size_t *ret_size, pointer ptr)) {
    CALL("cuMemGetAddressRange");
    (void)ptr;
    *ret_base = FAKE_BASE;
    *ret_size = FAKE_BYTES;
    return fake_cuda.pushed == 1 ? 0 : 201;
}

API(cuIpcGetMemHandle(struct ipc *ret, pointer base)) {
    CALL("cuIpcGetMemHandle");
    memset(ret, 0x77, sizeof *ret);
    return base == FAKE_BASE && fake_cuda.pushed == 1 ? 0 : 1;
}

API(cuIpcOpenMemHandle_v2(pointer *ret, struct ipc handle, unsigned flags)) {
    CALL("cuIpcOpenMemHandle");
    memcpy(fake_cuda.opened, handle.bytes, sizeof fake_cuda.opened);
    fake_cuda.mappings++;
    *ret = FAKE_OPENED;
    return flags == 1 ? 0 : 1;
}

API(cuIpcCloseMemHandle(pointer base)) {
    fake_cuda.mappings -= base == FAKE_OPENED && fake_cuda.pushed == 1;
    return 0;
}

API(cuMemImportFromShareableHandle(pointer *ret, void *handle, int type)) {
    CALL("cuMemImportFromShareableHandle");
    fake_cuda.imported_fd = (int)(intptr_t)handle;
    fake_cuda.mappings++;
    *ret = 5;
    return type == 1 ? 0 : 1;
}

API(cuMemRelease(pointer memory)) {
    fake_cuda.mappings -= memory == 5;
    return 0;
}

API(cuMemAddressReserve(pointer *ret, size_t size, size_t alignment, pointer wish,
                        unsigned long long flags)) {
    CALL("cuMemAddressReserve");
    (void)alignment, (void)wish, (void)flags;
    fake_cuda.mapped_bytes = size;
    fake_cuda.mappings++;
    *ret = FAKE_MAPPED;
    return 0;
}

API(cuMemAddressFree(pointer ptr, size_t size)) {
    fake_cuda.mappings -= ptr == FAKE_MAPPED && size == fake_cuda.mapped_bytes;
    return 0;
}

API(cuMemMap(pointer ptr, size_t size, size_t offset, pointer memory, unsigned long long flags)) {
    CALL("cuMemMap");
    (void)flags;
    fake_cuda.mappings++;
    return ptr == FAKE_MAPPED && size == fake_cuda.mapped_bytes && offset == 0 && memory == 5 ? 0
                                                                                              : 1;
}

API(cuMemUnmap(pointer ptr, size_t size)) {
    fake_cuda.mappings -= ptr == FAKE_MAPPED && size == fake_cuda.mapped_bytes;
    return 0;
}

API(cuMemSetAccess(pointer ptr, size_t size, const struct access *access, size_t count)) {
    CALL("cuMemSetAccess");
    bool good = ptr == FAKE_MAPPED && size == fake_cuda.mapped_bytes && count == 1;
    return good && access->type == 1 && access->id == 3 && access->flags == 3 ? 0 : 1;
}

API(cuMemHostRegister_v2(void *host, size_t size, unsigned flags)) {
    CALL("cuMemHostRegister");
    fake_cuda.registered = host;
    fake_cuda.mapped_bytes = size;
    fake_cuda.mappings++;
    return flags == 3 ? 0 : 1;
}

API(cuMemHostUnregister(void *host)) {
    fake_cuda.mappings -= host == fake_cuda.registered && fake_cuda.pushed == 1;
    return 0;
}

API(cuMemHostGetDevicePointer_v2(pointer *ret, void *host, unsigned flags)) {
    CALL("cuMemHostGetDevicePointer");
    *ret = (pointer)(uintptr_t)host + FAKE_MAPPED;
    return flags == 0 ? 0 : 1;
}
