// SPDX-License-Identifier: Apache-2.0
// dump.h: one message as text, for people: debug logs and failing tests.
//
// Invariants
//  1. Takes any bytes. A message that does not parse is printed as the reason, after its header
//     where that could be read.
//  2. Secrets (the session's token) are not printed; bytes of names that are not printable ASCII
//     come out as '?'.
// Threads: any; no state.
#ifndef KVPOOL_PROTO_DUMP_H
#define KVPOOL_PROTO_DUMP_H

#include "proto/proto.h"

#define PROTO_DUMP_RECORDS 16u // records printed, the rest is counted
#define PROTO_DUMP_TOKENS 16u  // token ids likewise

// Writes lines, each ended by '\n', into buf (always terminated when cap > 0; what does not fit is
// cut). `reply` says which of the two the message is. Returns the bytes written, without the
// terminator.
int proto_dump(const void *bytes, size_t len, bool reply, char *buf, size_t cap);

#endif
