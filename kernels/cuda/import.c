// SPDX-License-Identifier: Apache-2.0
// import.c: see import.h.
#include "kernels/cuda/import.h"

#include <stdlib.h>
#include <string.h>

static void release_import(void *arg, struct cuda_garbage *garbage) {
    struct cuda_memory *m = arg;
    struct cuda_import *import = (struct cuda_import *)garbage;
    pthread_mutex_lock(&m->lock);
    import->given = false;
    import->closing = import->users == 0;
    const bool again = !import->closing; // it was imported once more
    pthread_mutex_unlock(&m->lock);
    if (again)
        return;
    cudaIpcCloseMemHandle(import->base);
    pthread_mutex_lock(&m->lock);
    struct cuda_import **at = &m->imports;
    while (*at != NULL && *at != import)
        at = &(*at)->next;
    if (*at != NULL)
        *at = import->next;
    pthread_mutex_unlock(&m->lock);
    cuda_close_end(m, import->closes);
    free(import);
}

static void give_import(struct cuda_memory *m, struct cuda_import *import) {
    // Its bytes are another process's, which may have freed them, or ended, and left them to us.
    import->garbage = (struct cuda_garbage){
        .release = release_import, .place = BACKEND_DEVICE, .bytes = import->bytes};
    cuda_reaper_give(m->reaper, &import->garbage);
}

void cuda_import_put(struct cuda_memory *m, struct cuda_import *import,
                     struct backend_close *close) {
    cuda_close_begin(m, close);
    if (close != NULL)
        close->next = NULL;
    pthread_mutex_lock(&m->lock);
    const bool last = --import->users == 0, give = last && !import->given;
    import->given = import->given || give;
    if (last && close != NULL) {
        close->next = import->closes;
        import->closes = close;
    }
    pthread_mutex_unlock(&m->lock);
    if (give)
        give_import(m, import);
    if (!last)
        cuda_close_end(m, close);
}

// The import of the handle that is open already, with a user more. *ret_closing: it is being closed.
static struct cuda_import *find_import(struct cuda_memory *m, const unsigned char *handle,
                                       bool *ret_closing) {
    struct backend_close *kept = NULL;
    pthread_mutex_lock(&m->lock);
    struct cuda_import *i = m->imports;
    while (i != NULL && memcmp(&i->handle, handle, sizeof i->handle) != 0)
        i = i->next;
    *ret_closing = i != NULL && i->closing;
    if (i != NULL && !i->closing) {
        i->users++;
        kept = i->closes;
        i->closes = NULL;
    }
    pthread_mutex_unlock(&m->lock);
    cuda_close_end(m, kept);
    return i;
}

static int open_import(struct cuda_memory *m, struct cuda_import *import, struct err *err) {
    void *address = NULL;
    char *block = NULL;
    struct cudaPointerAttributes attributes = {0};
    const uint64_t pending = cuda_reaper_bytes(m->reaper, BACKEND_DEVICE);
    cudaError_t e = cudaIpcOpenMemHandle(&address, import->handle, cudaIpcMemLazyEnablePeerAccess);
    if (e == cudaErrorMemoryAllocation && pending > 0) {
        cudaGetLastError();
        return cuda_memory_pending(m, "imported memory", err);
    }
    if (e != cudaSuccess)
        return cuda_error(err, e == cudaErrorMemoryAllocation ? KVPOOL_E_NOMEM : KVPOOL_E_INVAL,
                          "the IPC handle opens no memory of another process on this GPU", e);
    import->base = address;
    e = cudaPointerGetAttributes(&attributes, address);
    if (e != cudaSuccess)
        return cuda_error(err, KVPOOL_E_INVAL, "imported memory", e);
    if (attributes.device != m->device)
        return err_set(err, KVPOOL_E_INVAL, "the memory is on GPU %d, this daemon serves GPU %d",
                       attributes.device, m->device);
    CUresult found = cuda_memory_range(m, address, &block, &import->bytes);
    if (found != CUDA_SUCCESS)
        return cuda_driver_error(&m->driver, err, KVPOOL_E_INVAL, "range of imported memory",
                                 found);
    // What was opened is the whole block around a small allocation, which begins somewhere in it.
    import->bytes -= (uint64_t)(import->base - block);
    return 0;
}

struct cuda_import *cuda_import_get(struct cuda_memory *m, const unsigned char *handle,
                                    int *ret_status, struct err *err) {
    bool closing;
    struct cuda_import *import = find_import(m, handle, &closing);
    if (closing) {
        *ret_status = cuda_memory_pending(m, "imported memory", err);
        return NULL;
    }
    if (import != NULL)
        return import;
    import = calloc(1, sizeof *import);
    if (import == NULL) {
        *ret_status = err_set(err, KVPOOL_E_NOMEM, "no memory for an import");
        return NULL;
    }
    memcpy(&import->handle, handle, sizeof import->handle);
    *ret_status = open_import(m, import, err);
    if (*ret_status != 0) {
        if (import->base != NULL)
            give_import(m, import);
        else
            free(import);
        return NULL;
    }
    import->users = 1;
    pthread_mutex_lock(&m->lock);
    import->next = m->imports;
    m->imports = import;
    pthread_mutex_unlock(&m->lock);
    return import;
}
