// SPDX-License-Identifier: Apache-2.0
// model.h: what fuzz_ops.c believes about core: every sequence as a plain list of token numbers,
// and a backend that has only what it was told (table entries and page copies of core_effects, the
// rows of batches). Reading each sequence back through that backend must give its list again.
//
//     begin ok     tokens get numbers; effects change the backend's tables and pages
//     layer done   the numbers are written into the pages of that layer
//     commit ok    the numbers are appended to the sequences' lists; effects redirect duplicates
//     open ok      what matched has the numbers of its tokens, whoever wrote them
//     any time     list[i] == page[table[row][i / page_size]][i % page_size] in every layer;
//                  a sequence's own known tokens are found again
//
// The number of a token that is known by id is made from all ids up to it, the namespace and the
// extra key material; of another it is one that was never used. So what is shared by mistake reads
// wrong.
//
// Every function aborts the process when core and the model disagree. One model, static.
#ifndef KVPOOL_TESTS_FUZZ_MODEL_H
#define KVPOOL_TESTS_FUZZ_MODEL_H

#include "daemon/core/core.h"

#include <stdio.h>
#include <stdlib.h>

#define ENSURE(condition)                                                   \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                        \
        }                                                                   \
    } while (0)

#define MODEL_POOLS 2
#define MODEL_SESSIONS 3
#define MODEL_SEQS 12
#define MODEL_STEPS 4
#define MODEL_BATCH 4
#define MODEL_ENTRIES 256 // table entries of one pool
#define MODEL_TOKENS 256  // num_pages * page_size, at most
#define MODEL_LAYERS 2    // layers whose contents are followed
#define MODEL_PINS 3

struct model_step {
    bool live;
    uint64_t session, id;
    uint32_t n, total;
    uint64_t seqs[MODEL_BATCH];
    uint32_t tokens[MODEL_BATCH];
    bool known;
    uint32_t ids[MODEL_TOKENS]; // of all new tokens, if known
    uint32_t numbers[MODEL_TOKENS];
};

void model_reset(void);

// After every operation: core_check, core's derived tables against rebuilt ones, and every sequence
// and pool against the model.
void model_verify(struct core *c);

// True when this much fits the model: larger pools are not created.
bool model_pool_fits(const struct core_pool_config *config);

// What succeeded.
void model_pool_created(struct core *c, uint64_t pool);
void model_pool_destroyed(uint64_t pool);
void model_session_closed(uint64_t session);
void model_seqs_created(struct core *c, uint64_t session, uint32_t n, const uint64_t *seqs);
void model_seqs_forked(struct core *c, uint64_t session, uint64_t parent, uint32_t n,
                       const uint64_t *seqs, const struct core_effects *effects);
void model_seq_truncated(uint64_t seq, uint32_t length);
void model_seqs_freed(uint32_t n, const uint64_t *seqs);
void model_seq_opened(struct core *c, uint64_t session, uint64_t seq, const struct core_open *open,
                      uint32_t matched, const struct core_effects *effects);
void model_pinned(uint64_t seq, uint64_t pin, uint64_t until, uint32_t tokens);
void model_unpinned(uint64_t pool, uint64_t pin);
void model_expired(uint64_t now, uint32_t n); // n pins ended
void model_step_begun(struct core *c, uint64_t session, uint32_t n, const struct core_item *items,
                      const uint32_t *ids, const struct core_step_info *info,
                      const struct core_effects *effects); // ids NULL: not known
void model_step_committed(struct core *c, uint64_t session, const struct core_step_info *info,
                          const struct core_effects *effects);
void model_step_aborted(struct core *c, uint64_t session, uint64_t step,
                        const struct core_effects *effects);

// Observes core: counts the pages that are stored.
void model_event(void *arg, const struct core_event *event);

// A layer of a step is executed on a batch as it was when the work was submitted. On failure
// (`ok` false) the pages hold anything afterwards.
void model_layer_done(uint64_t session, uint64_t step, uint32_t layer, bool ok,
                      const struct core_batch *batch);

// The live step, or NULL.
const struct model_step *model_step_find(uint64_t session, uint64_t id);

#endif
