// SPDX-License-Identifier: Apache-2.0
// sp_client.h: a SUB or REQ socket of the Scalability Protocols over a Unix stream socket, which is
// what NNG's ipc transport speaks. One peer, no thread, no NNG: every wait is a poll() with a
// deadline, and closing is close().
//
//   once, both ways   00 'S' 'P' 00 | protocol (u16 BE) | 00 00     PUB 0x20, SUB 0x21, REQ 0x30, REP 0x31
//   each message      01 | length (u64 BE) | body                   of REQ and REP: id (u32 BE), payload
//
// Invariants
//  1. No call returns later than its deadline (CLOCK_MONOTONIC), but for what one read holds.
//  2. A connection that is refused, or ends, is made again by the next call that has time left; an
//     unanswered request is sent again over it. What a publisher sent meanwhile is missed.
//  3. Bytes that are no message, or one above SP_CLIENT_MAX, end the connection and are an error.
// Thread: one at a time.
#ifndef KVPOOL_CMD_SP_CLIENT_H
#define KVPOOL_CMD_SP_CLIENT_H

#include "proto/err.h"

#include <stdbool.h>

#define SP_CLIENT_MAX (4u << 20) // bytes of a message

enum sp_client_role { SP_CLIENT_SUB, SP_CLIENT_REQ };

struct sp_client;

// Connects with the first call below. A SUB gets everything. Errors: INVAL (path too long), NOMEM.
int sp_client_open(const char *path, enum sp_client_role role, struct sp_client **ret,
                   struct err *err);

// SUB: the next message, valid until the next call. 1; 0: none until the deadline.
// Errors: PROTO, NOMEM.
int sp_client_receive(struct sp_client *c, uint64_t deadline_ns, const char **ret, size_t *ret_len,
                      struct err *err);

// REQ: a request of at most 64 bytes, and its reply, valid until the next call.
// Errors: TIMEOUT, PROTO, NOMEM.
int sp_client_ask(struct sp_client *c, const void *request, size_t len, uint64_t deadline_ns,
                  const char **ret, size_t *ret_len, struct err *err);

uint32_t sp_client_connections(const struct sp_client *c); // made so far
uint64_t sp_client_now_ns(void);
void sp_client_close(struct sp_client *c); // NULL is allowed

#endif
