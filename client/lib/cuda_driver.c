// SPDX-License-Identifier: Apache-2.0
// cuda_driver.c: see cuda_driver.h. The driver's interface is stable: names carry their version, and
// the few types and numbers that are needed stand here, so that no CUDA toolkit is needed to build.
#include "client/lib/cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

typedef int cu_result;
typedef int cu_device;
typedef void *cu_context;
typedef unsigned long long cu_pointer; // CUdeviceptr
typedef unsigned long long cu_memory;  // CUmemGenericAllocationHandle
struct cu_ipc {                        // CUipcMemHandle, passed by value
    char bytes[CUDA_IPC_SIZE];
};
struct cu_access { // CUmemAccessDesc
    int location_type, location_id, flags;
};

enum { // of cuda.h
    CU_INVALID_VALUE = 1,
    CU_ALREADY_REGISTERED = 712,
    CU_ATTRIBUTE_CONTEXT = 1,
    CU_ATTRIBUTE_MEMORY_TYPE = 2,
    CU_ATTRIBUTE_IS_MANAGED = 8,
    CU_ATTRIBUTE_IPC_CAPABLE = 10,
    CU_ATTRIBUTE_MEMPOOL = 17,
    CU_TYPE_DEVICE = 2,
    CU_FD = 1,           // CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    CU_LOCATION_GPU = 1, // CU_MEM_LOCATION_TYPE_DEVICE
    CU_READ_WRITE = 3,   // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    CU_LAZY_PEER = 1,    // CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
    CU_PORTABLE_MAPPED = 1 | 2,
};

// X(symbol, field, parameters)
#define DRIVER_MAP(X)                                                                              \
    X("cuInit", init, (unsigned flags))                                                            \
    X("cuGetErrorName", error_name, (cu_result result, const char **ret))                          \
    X("cuCtxGetCurrent", context_get, (cu_context * ret))                                          \
    X("cuCtxGetDevice", context_device, (cu_device * ret))                                         \
    X("cuCtxPushCurrent_v2", context_push, (cu_context context))                                   \
    X("cuCtxPopCurrent_v2", context_pop, (cu_context * ret))                                       \
    X("cuPointerGetAttribute", attribute, (void *ret, int attribute, cu_pointer ptr))              \
    X("cuMemGetAddressRange_v2", range,                                                            \
      (cu_pointer * ret_base, size_t * ret_size, cu_pointer ptr))                                  \
    X("cuIpcGetMemHandle", ipc_get, (struct cu_ipc * ret, cu_pointer base))                        \
    X("cuIpcOpenMemHandle_v2", ipc_open, (cu_pointer * ret, struct cu_ipc handle, unsigned flags)) \
    X("cuIpcCloseMemHandle", ipc_close, (cu_pointer base))                                         \
    X("cuMemImportFromShareableHandle", import, (cu_memory * ret, void *handle, int type))         \
    X("cuMemRelease", release, (cu_memory memory))                                                 \
    X("cuMemAddressReserve", reserve,                                                              \
      (cu_pointer * ret, size_t size, size_t alignment, cu_pointer wish,                           \
       unsigned long long flags))                                                                  \
    X("cuMemAddressFree", unreserve, (cu_pointer ptr, size_t size))                                \
    X("cuMemMap", map,                                                                             \
      (cu_pointer ptr, size_t size, size_t offset, cu_memory memory, unsigned long long flags))    \
    X("cuMemUnmap", unmap, (cu_pointer ptr, size_t size))                                          \
    X("cuMemSetAccess", set_access,                                                                \
      (cu_pointer ptr, size_t size, const struct cu_access *access, size_t count))                 \
    X("cuMemHostRegister_v2", host_register, (void *host, size_t size, unsigned flags))            \
    X("cuMemHostUnregister", host_unregister, (void *host))                                        \
    X("cuMemHostGetDevicePointer_v2", host_pointer, (cu_pointer * ret, void *host, unsigned flags))

static struct {
    pthread_once_t once;
    int status; // 0, or why there is none
    char why[ERR_TEXT_MAX];
#define DRIVER_FIELD(symbol, field, parameters) cu_result(*field) parameters;
    DRIVER_MAP(DRIVER_FIELD)
#undef DRIVER_FIELD
} cu = {.once = PTHREAD_ONCE_INIT};

static const char *name_of(cu_result result) {
    const char *name = NULL;
    return cu.error_name(result, &name) == 0 && name != NULL ? name : "an unknown error";
}

static void load(void) {
    struct err err = {0};
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        cu.status = err_set(&err, KVPOOL_E_UNSUPPORTED, "no CUDA driver on this machine (%.120s)",
                            dlerror()); // NOLINT(concurrency-mt-unsafe): of this thread in glibc
        goto keep;
    }
#define DRIVER_FIND(symbol, field, parameters)                                                    \
    {                                                                                             \
        void *found = dlsym(library, symbol);                                                     \
        memcpy(&cu.field, &found, sizeof found);                                                  \
        if (found == NULL) {                                                                      \
            cu.status =                                                                           \
                err_set(&err, KVPOOL_E_UNSUPPORTED, "the CUDA driver is too old: no %s", symbol); \
            goto keep;                                                                            \
        }                                                                                         \
    }
    DRIVER_MAP(DRIVER_FIND)
#undef DRIVER_FIND
    cu_result result = cu.init(0);
    if (result != 0)
        cu.status = err_set(&err, KVPOOL_E_UNSUPPORTED, "CUDA does not start here: cuInit: %s",
                            name_of(result));
keep:
    memcpy(cu.why, err.text, sizeof cu.why);
}

static int need_driver(struct err *err) {
    pthread_once(&cu.once, load);
    return cu.status == 0 ? 0 : err_set(err, cu.status, "%s", cu.why);
}

static int failed(struct err *err, const char *call, cu_result result) {
    return err_set(err, KVPOOL_E_BACKEND, "%s: %s", call, name_of(result));
}

// --- memory that leaves this process ------------------------------------------------------------

static int cannot_share(struct err *err, const char *what, const char *advice) {
    return err_set(err, KVPOOL_E_UNSUPPORTED, "CUDA IPC cannot share %s: %s", what, advice);
}

#define OTHERWISE "or use kvpool_region_alloc()"

// Whether the memory at ptr is of the kind that has an IPC handle; *ret: its context.
static int check_kind(cu_pointer ptr, cu_context *ret, struct err *err) {
    unsigned type = 0, managed = 0, capable = 1;
    void *pool = NULL;
    cu_context context = NULL;
    cu_result result = cu.attribute(&type, CU_ATTRIBUTE_MEMORY_TYPE, ptr);
    if (result == CU_INVALID_VALUE)
        return err_set(err, KVPOOL_E_INVAL, "device_ptr 0x%llx is no memory of CUDA's", ptr);
    if (result != 0)
        return failed(err, "cuPointerGetAttribute", result);
    // What an older driver does not know of, it does not have.
    if (cu.attribute(&managed, CU_ATTRIBUTE_IS_MANAGED, ptr) == 0 && managed != 0)
        return cannot_share(err, "managed memory", "allocate it with cudaMalloc, " OTHERWISE);
    if (type != CU_TYPE_DEVICE)
        return err_set(err, KVPOOL_E_INVAL,
                       "device_ptr 0x%llx is host memory: use kvpool_region_create()", ptr);
    if (cu.attribute(&pool, CU_ATTRIBUTE_MEMPOOL, ptr) == 0 && pool != NULL)
        return cannot_share(err, "memory of a CUDA memory pool (cudaMallocAsync)",
                            "allocate it with cudaMalloc, " OTHERWISE);
    result = cu.attribute(&context, CU_ATTRIBUTE_CONTEXT, ptr);
    if (result != 0 || context == NULL ||
        (cu.attribute(&capable, CU_ATTRIBUTE_IPC_CAPABLE, ptr) == 0 && capable == 0))
        return cannot_share(err, "expandable segments or other memory of cuMemCreate",
                            "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False, " OTHERWISE);
    *ret = context;
    return 0;
}

// In the context of the memory.
static int share(cu_pointer ptr, uint64_t bytes, struct cuda_share *ret, struct err *err) {
    cu_pointer base = 0;
    size_t size = 0;
    struct cu_ipc ipc;
    cu_result result = cu.range(&base, &size, ptr);
    if (result != 0)
        return failed(err, "cuMemGetAddressRange", result);
    if (bytes > size - (ptr - base))
        return err_set(err, KVPOOL_E_INVAL,
                       "%llu bytes, but the allocation has %llu from device_ptr on",
                       (unsigned long long)bytes, (unsigned long long)(size - (ptr - base)));
    result = cu.ipc_get(&ipc, base);
    if (result != 0)
        return failed(err, "cuIpcGetMemHandle", result);
    memcpy(ret->ipc, ipc.bytes, sizeof ret->ipc);
    ret->offset = ptr - base;
    ret->bytes = size;
    return 0;
}

int cuda_share_find(const void *ptr, uint64_t bytes, struct cuda_share *ret, struct err *err) {
    cu_context context = NULL, popped;
    int rc = need_driver(err);
    if (rc == 0)
        rc = check_kind((cu_pointer)(uintptr_t)ptr, &context, err);
    if (rc != 0)
        return rc;
    cu_result result = cu.context_push(context);
    if (result != 0)
        return failed(err, "cuCtxPushCurrent", result);
    rc = share((cu_pointer)(uintptr_t)ptr, bytes, ret, err);
    cu.context_pop(&popped);
    return rc;
}

// --- memory that comes to this process ----------------------------------------------------------

static int current(cu_context *ret, struct err *err) {
    int rc = need_driver(err);
    if (rc != 0)
        return rc;
    cu_result result = cu.context_get(ret);
    if (result != 0)
        return failed(err, "cuCtxGetCurrent", result);
    if (*ret == NULL)
        return err_set(err, KVPOOL_E_STATE,
                       "no CUDA context is current in this thread: make one first");
    return 0;
}

// Maps memory at reserved addresses, for this context's device to read and write.
static int map_memory(cu_memory memory, uint64_t bytes, cu_pointer *ret, struct err *err) {
    cu_pointer at = 0;
    cu_device device = 0;
    int rc;
    cu_result result = cu.context_device(&device);
    if (result != 0)
        return failed(err, "cuCtxGetDevice", result);
    result = cu.reserve(&at, bytes, 0, 0, 0);
    if (result != 0)
        return failed(err, "cuMemAddressReserve", result);
    result = cu.map(at, bytes, 0, memory, 0);
    if (result != 0) {
        rc = failed(err, "cuMemMap", result);
        goto unreserve;
    }
    const struct cu_access access = {CU_LOCATION_GPU, device, CU_READ_WRITE};
    result = cu.set_access(at, bytes, &access, 1);
    if (result != 0) {
        rc = failed(err, "cuMemSetAccess", result);
        goto unmap;
    }
    *ret = at;
    return 0;

unmap:
    cu.unmap(at, bytes);
unreserve:
    cu.unreserve(at, bytes);
    return rc;
}

int cuda_map_fd(int fd, uint64_t bytes, struct cuda_map *ret, struct err *err) {
    struct cuda_map map = {.kind = CUDA_MAP_FD, .bytes = bytes};
    cu_memory memory = 0;
    int rc = current(&map.context, err);
    if (rc != 0)
        return rc;
    // A descriptor is handed over as if it were a pointer.
    cu_result result = cu.import(&memory, (void *)(intptr_t)fd, CU_FD);
    if (result != 0)
        return failed(err, "cuMemImportFromShareableHandle", result);
    rc = map_memory(memory, bytes, &map.address, err);
    cu.release(memory); // the mapping keeps it
    if (rc == 0)
        *ret = map;
    return rc;
}

int cuda_map_ipc(const unsigned char ipc[CUDA_IPC_SIZE], uint64_t bytes, struct cuda_map *ret,
                 struct err *err) {
    struct cuda_map map = {.kind = CUDA_MAP_IPC, .bytes = bytes};
    struct cu_ipc handle;
    int rc = current(&map.context, err);
    if (rc != 0)
        return rc;
    memcpy(handle.bytes, ipc, sizeof handle.bytes);
    cu_result result = cu.ipc_open(&map.address, handle, CU_LAZY_PEER);
    if (result != 0)
        return failed(err, "cuIpcOpenMemHandle", result);
    *ret = map;
    return 0;
}

int cuda_map_host(void *host, uint64_t bytes, struct cuda_map *ret, struct err *err) {
    struct cuda_map map = {.kind = CUDA_MAP_HOST, .host = host, .bytes = bytes};
    int rc = current(&map.context, err);
    if (rc != 0)
        return rc;
    cu_result result = cu.host_register(host, bytes, CU_PORTABLE_MAPPED);
    if (result == CU_ALREADY_REGISTERED) // by the caller, whose it stays
        map.kind = CUDA_MAP_BORROWED;
    else if (result != 0)
        return failed(err, "cuMemHostRegister", result);
    result = cu.host_pointer(&map.address, host, 0);
    if (result != 0) {
        cuda_unmap(&map);
        return failed(err, "cuMemHostGetDevicePointer", result);
    }
    *ret = map;
    return 0;
}

int cuda_map_check(const struct cuda_map *map, struct err *err) {
    cu_context context;
    int rc = current(&context, err);
    if (rc == 0 && map->context != context)
        rc = err_set(err, KVPOOL_E_STATE, "the region is mapped in another CUDA context");
    return rc;
}

void cuda_unmap(struct cuda_map *map) {
    cu_context popped;
    const enum cuda_map_kind kind = map->kind;
    map->kind = CUDA_MAP_NONE;
    if (kind == CUDA_MAP_FD) { // of no context
        cu.unmap(map->address, map->bytes);
        cu.unreserve(map->address, map->bytes);
    }
    if ((kind != CUDA_MAP_IPC && kind != CUDA_MAP_HOST) || cu.context_push(map->context) != 0)
        return;
    if (kind == CUDA_MAP_IPC)
        cu.ipc_close(map->address);
    else
        cu.host_unregister(map->host);
    cu.context_pop(&popped);
}
