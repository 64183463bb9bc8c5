// SPDX-License-Identifier: Apache-2.0
// load.h: a worker whose every answer can be checked: random rounds of create, prefill, decode,
// fork, truncate, abort and free, with K, V and q made from token values by a hash, and every
// attention output compared with a plain fp64 computation over the tokens that the sequence should
// have.
//
// Thread: one per load; a client may carry several loads.
#ifndef KVPOOL_TESTS_SYSTEM_LOAD_H
#define KVPOOL_TESTS_SYSTEM_LOAD_H

#include <kvpool/kvpool.h>

enum {
    LOAD_LAYERS = 2,
    LOAD_KV_HEADS = 2,
    LOAD_QO_HEADS = 4,
    LOAD_HEAD_DIM = 16,
    LOAD_PAGE_SIZE = 8,
    LOAD_SEQS = 6,     // of one load at most
    LOAD_MAX_LEN = 96, // tokens of one sequence
};

struct load;

// Opens (or creates) the pool `name` with num_pages pages. NULL: see the client's last error.
struct load *load_open(kvpool_client *client, const char *name, uint32_t num_pages, unsigned seed);
void load_close(struct load *l); // frees its sequences and region

// One random operation. KVPOOL_OK; a status that the daemon gave (NOSPACE is expected under
// pressure and counts as OK); or 1 when an output was wrong, after saying on stderr which.
int load_round(struct load *l);

uint64_t load_tokens(const struct load *l); // committed so far
kvpool_pool load_pool(const struct load *l);

#endif
