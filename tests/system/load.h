// SPDX-License-Identifier: Apache-2.0
// load.h: a worker whose every answer can be checked: random rounds of create, open, prefill, decode,
// fork, truncate, abort, pin and free. Sequences follow a few documents that all loads know, so that
// they find each other's pages, compute the same pages at the same time, and part ways. K, V and q of
// a token are made by a hash from the ids of all tokens up to it: a page that is wrongly shared,
// matched, evicted or written shows in an output. Every output is compared with a plain fp64
// computation over the tokens that the sequence should have.
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

// From now on rounds also pin prefixes (up to half a second, whatever becomes of the load).
void load_allow_pins(struct load *l);

uint64_t load_tokens(const struct load *l); // committed so far
uint64_t load_reused(const struct load *l); // tokens that were there when a sequence was opened
// Pages of a pool that sequences and pins refer to.
uint32_t load_active(kvpool_client *client, kvpool_pool pool);
kvpool_pool load_pool(const struct load *l);

#endif
