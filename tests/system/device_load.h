// SPDX-License-Identifier: Apache-2.0
// device_load.h: steps of a worker whose tensors lie in device memory: it writes K, V and q there through
// its own address of the memory, the daemon computes, and it reads out and lse back through its own
// address and compares them with the fp64 reference over all tokens so far.
//
// Invariants
//  1. Values are made from the load's seed: another worker's memory, sequence or pool shows.
//  2. out and lse are NaN before each request, and so is what lies around them, after it too.
// Thread: a worker's that called gpu_start().
#ifndef KVPOOL_TESTS_SYSTEM_DEVICE_LOAD_H
#define KVPOOL_TESTS_SYSTEM_DEVICE_LOAD_H

#include "tests/system/gpu.h"

#include <kvpool/kvpool.h>

enum {
    DEVICE_LAYERS = 2,
    DEVICE_KV_HEADS = 2,
    DEVICE_QO_HEADS = 8,
    DEVICE_HEAD_DIM = 64,
    DEVICE_SEQS = 2,
    DEVICE_MAX_NEW = 48,      // tokens of a step, of both sequences
    DEVICE_MAX_LEN = 128,     // of a sequence
    DEVICE_BYTES = 128 << 10, // of the tensors of a load
};

// Memory of at least DEVICE_BYTES as the daemon and as this process know it.
struct device_place {
    kvpool_region *region;
    gpu_ptr at;      // of the region's first byte
    uint64_t offset; // in the region, a multiple of 4, where the tensors begin
};

enum device_kind { BY_FD, BY_IPC, IN_HOST, OWN };
extern const char *const device_kind_names[];
// A region of the daemon's, of DEVICE_BYTES and some: by a descriptor, by an IPC handle, of the host's.
struct device_place device_place_alloc(kvpool_client *client, enum device_kind kind);
// This process's own memory as a region.
struct device_place device_place_own(kvpool_client *client, gpu_ptr at, uint64_t bytes);

struct device_load;

// The pool `name` for loads, made if it is not there. export_as: kvpool_export.
kvpool_pool device_pool(kvpool_client *client, const char *name, uint32_t export_as);
// K, V and q come from `in`, out and lse go to `out`; one place may be both. Two empty sequences.
struct device_load *device_load_open(kvpool_client *client, kvpool_pool pool,
                                     const struct device_place *in, const struct device_place *out,
                                     unsigned seed);
// A step with `first` and `second` new tokens of the two sequences, and its commit; every row of every
// layer is checked. A wrong one ends the test.
void device_load_step(struct device_load *l, uint32_t first, uint32_t second);
// A prefill on an empty prefix and on a cached one, decodes of one token and of several.
void device_load_turns(struct device_load *l);
void device_load_reset(struct device_load *l); // empties the sequences
// A step that is sent whole and aborted, and not looked at: for a process that ends in the middle.
void device_load_send(struct device_load *l);
void device_load_close(struct device_load *l); // frees the sequences

#endif
