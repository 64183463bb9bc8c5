// SPDX-License-Identifier: Apache-2.0
// events_reader.h: reads the daemon's event stream without a gap, as far as the daemon still has
// what was missed.
//
//   SUB  events.sock   live lines: seq == next -> sink; seq < next -> had it; seq > next -> gap
//   REQ  replay.sock   fills gaps, and what was published last and lost; tells the epoch, which is
//                      asked for before the first line of each new connection to events.sock
//
// Invariants
//  1. The sink gets lines with rising sequence numbers of one epoch; a number that is skipped, and a
//     new epoch (numbers begin with 1 again), is said first.
//  2. No call waits longer than the time-out.
// Thread: main.
#ifndef KVPOOL_CMD_EVENTS_READER_H
#define KVPOOL_CMD_EVENTS_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct events_sink {
    int (*line)(void *arg, const char *line, size_t len); // not 0: stop
    void (*say)(void *arg, const char *text);             // gaps, restarts
    void *arg;
};

struct events_reader;

// from 0: the oldest there is, or with `follow` the next one. timeout_ms 0: 10 s. Returns 0, or -1
// with the reason in `why`.
int events_reader_open(const char *dir, uint64_t from, bool follow, uint32_t timeout_ms,
                       const struct events_sink *sink, struct events_reader **ret, char *why,
                       size_t why_size);

// Hands over what there is, or a part of it; with `follow` waits up to a second for more. -1: `why`.
int events_reader_run(struct events_reader *r, char *why, size_t why_size);

uint64_t events_reader_next(const struct events_reader *r); // the number that comes next
void events_reader_close(struct events_reader *r);

#endif
