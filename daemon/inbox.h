// SPDX-License-Identifier: Apache-2.0
// inbox.h: the one queue from NNG's threads to the loop thread.
//
//   NNG threads:  inbox_push -> list (lock) -> uv_async_send when the list was empty
//   loop thread:  takes the whole list -> fn(item) for each, in the order of the pushes
//
// Invariants
//  1. Order: what was pushed first is handed out first, whichever thread pushed it.
//  2. An item is in the inbox at most once; it is the caller's, and free again when fn has it.
//  3. After inbox_shut nothing enters; pushing is still allowed.
// Threads: inbox_push any; the rest the loop thread.
#ifndef KVPOOL_DAEMON_INBOX_H
#define KVPOOL_DAEMON_INBOX_H

#include "proto/err.h"

#include <uv.h>

struct inbox;
struct inbox_item {
    struct inbox_item *next; // the inbox's
    int kind;                // the caller's
};
typedef void (*inbox_fn)(void *arg, struct inbox_item *item);

int inbox_open(uv_loop_t *loop, inbox_fn fn, void *arg, struct inbox **ret, struct err *err);

// False after inbox_shut: the item is still the caller's.
bool inbox_push(struct inbox *inbox, struct inbox_item *item);

void inbox_drain(struct inbox *inbox); // hands out what is there now
void inbox_shut(struct inbox *inbox);

// Shuts, and frees the inbox on the loop. Items still in it are forgotten.
void inbox_close(struct inbox *inbox);

// Shuts, and leaves the memory alive for pushes that may still come from threads that hang.
void inbox_abandon(struct inbox *inbox);

#endif
