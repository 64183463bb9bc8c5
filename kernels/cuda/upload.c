// SPDX-License-Identifier: Apache-2.0
// upload.c: see upload.h.
#include "kernels/cuda/upload.h"

#include "kernels/cuda/driver.h"

#include <string.h>

enum { HEADER = 3 };

static uint32_t *words_of(const struct cuda_chunk *chunk) {
    return chunk->host + CUDA_UPLOAD_SEGMENTS;
}

static int need_chunk(struct cuda_upload *u, struct err *err) {
    const uint32_t room = CUDA_CHUNK_WORDS - CUDA_UPLOAD_SEGMENTS;
    if (u->chunk != NULL && u->starts < CUDA_UPLOAD_SEGMENTS && u->words + HEADER < room)
        return 0;
    int status = cuda_upload_flush(u, NULL, err);
    if (status == 0)
        status = cuda_flight_chunk(u->flights, u->flight, &u->chunk, err);
    u->starts = u->words = u->first_start = u->first_word = 0;
    return status;
}

int cuda_upload_add(struct cuda_upload *u, uint32_t *destination, const uint32_t *words,
                    uint32_t count, struct err *err) {
    while (count > 0) {
        int status = need_chunk(u, err);
        if (status != 0)
            return status;
        uint32_t room = CUDA_CHUNK_WORDS - CUDA_UPLOAD_SEGMENTS - u->words - HEADER;
        uint32_t n = count < CUDA_UPLOAD_SEGMENT_WORDS ? count : CUDA_UPLOAD_SEGMENT_WORDS;
        n = n < room ? n : room;
        uint32_t *at = words_of(u->chunk) + u->words;
        uint64_t address = (uint64_t)(uintptr_t)destination; // cuda_upload_flush makes it an index
        at[0] = (uint32_t)address;
        at[1] = (uint32_t)(address >> 32);
        at[2] = n;
        memcpy(at + HEADER, words, n * sizeof *words);
        if (u->starts == u->first_start || destination < u->lowest)
            u->lowest = destination;
        u->chunk->host[u->starts++] = u->words - u->first_word;
        u->words += HEADER + n;
        destination += n;
        words += n;
        count -= n;
    }
    return 0;
}

int cuda_upload_flush(struct cuda_upload *u, bool *ret_launched, struct err *err) {
    uint32_t n = u->starts - u->first_start;
    if (ret_launched != NULL)
        *ret_launched = n > 0;
    if (n == 0 || u->chunk == NULL)
        return 0;
    const uint32_t *starts = u->chunk->host + u->first_start;
    uint32_t *words = words_of(u->chunk) + u->first_word;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t *at = words + starts[i];
        uint64_t index =
            (((uint64_t)at[1] << 32 | at[0]) - (uint64_t)(uintptr_t)u->lowest) / sizeof(uint32_t);
        at[0] = (uint32_t)index;
        at[1] = (uint32_t)(index >> 32);
    }
    int e = cuda_table_update(u->device, u->lowest,
                              u->chunk->device + CUDA_UPLOAD_SEGMENTS + u->first_word,
                              u->chunk->device + u->first_start, n, u->stream);
    if (e != 0)
        return cuda_error(err, KVPOOL_E_BACKEND, "launching the table update", (cudaError_t)e);
    u->first_start = u->starts;
    u->first_word = u->words;
    return 0;
}
