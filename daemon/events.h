// SPDX-License-Identifier: Apache-2.0
// events.h: the last N changes of the cache as lines of JSON, in the shape of vLLM's KV events, so
// that a router can index this daemon as it indexes an engine.
//
//   loop thread:  core -> events_observe -> record (fixed size, no formatting) -> wakes a reader
//   readers:      events_read -> copies records out -> lines
//
//   {"seq":7,"ts":1769860800.123456,"type":"BlockStored","block_hashes":["<32 hex>"],
//    "parent_block_hash":"<32 hex>"|null,"token_ids":[1,2]|null,"block_size":16,"lora_id":null,
//    "pool":"kv","namespace":"default"}
//   {"seq":8,...,"type":"BlockRemoved","block_hashes":["<32 hex>"],"pool":"kv","namespace":...}
//   {"seq":9,...,"type":"AllBlocksCleared","pool":"kv"}
//   {"seq":1,...,"type":"Started","epoch":"0x..."}       the first of every instance
//
// Invariants
//  1. Sequence numbers begin with 1 and have no gaps; record seq is in slot seq % ring while
//     oldest <= seq <= newest.
//  2. The loop thread waits for nothing but a reader that copies at most EVENTS_BATCH records.
//  3. Token ids are kept only when the configuration asks for them.
// Threads: events_open, events_observe and events_close the loop thread; the rest any.
#ifndef KVPOOL_DAEMON_EVENTS_H
#define KVPOOL_DAEMON_EVENTS_H

#include "daemon/core/core.h"

#define EVENTS_BATCH 32        // records of one events_read
#define EVENTS_LINE_BYTES 4096 // no line is longer, its end included

struct events;

// ring: records kept, 2 at least. Errors: INVAL, NOMEM.
int events_open(uint32_t ring, bool tokens, uint64_t epoch, struct events **ret, struct err *err);
void events_close(struct events *e); // no reader is left; NULL is allowed

void events_observe(void *arg_events, const struct core_event *event); // a core_event_fn

struct events_range {
    uint64_t epoch, oldest, newest;
};
void events_range(struct events *e, struct events_range *ret);

// Writes the lines of up to `max` records from `from` on, each ended by a newline, as many as fit
// into `size` (EVENTS_LINE_BYTES at least). from older than the ring: nothing is written. Returns
// the bytes; *ret_next is the number after the last record written (`from` when there is none).
size_t events_read(struct events *e, uint64_t from, uint32_t max, char *buf, size_t size,
                   uint64_t *ret_next);

// Waits until record `seq` exists. False after events_stop.
bool events_wait(struct events *e, uint64_t seq);
void events_stop(struct events *e); // ends every events_wait, now and later

#endif
