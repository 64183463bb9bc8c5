// SPDX-License-Identifier: Apache-2.0
// sp.h: the wire format of a REQ socket of the Scalability Protocols over a Unix stream socket,
// which is what NNG's ipc transport speaks. The daemon's end is an NNG REP socket.
//
//   once, both ways     00 'S' 'P' 00 | protocol (u16 BE) | 00 00        REQ 0x30, REP 0x31
//   each message        01 | length (u64 BE) | request id (u32 BE) | payload
//                            counts id and payload
//
// Invariants
//  1. A request id has its highest bit set; a reply carries the id of its request.
//  2. The greeting is sent at once after connecting: a listener never waits for it.
// Threads: any, no state.
#ifndef KVPOOL_CLIENT_LIB_SP_H
#define KVPOOL_CLIENT_LIB_SP_H

#include "proto/err.h"

#define SP_HEADER 13u             // bytes before a payload
#define SP_REQUEST_ID 0x80000000u // the bit of every id

// Exchanges greetings on a connected socket. Errors: CONN (closed, or the peer is no REP socket),
// TIMEOUT.
int sp_greet(int fd, int64_t deadline_ns, struct err *err);

// Writes what goes before a payload of `len` bytes.
void sp_put_header(uint8_t out[SP_HEADER], uint32_t id, size_t len);

struct sp_frame {
    uint32_t id;
    const uint8_t *payload; // inside the buffer
    size_t len;
    size_t total; // bytes of the buffer that it takes
};

// Looks for a whole message at the beginning of a buffer: 1 found, 0 more bytes are needed.
// Errors: PROTO (not a message, or longer than max_len bytes of payload).
int sp_take(const uint8_t *buf, size_t len, size_t max_len, struct sp_frame *ret, struct err *err);

// Sends one request (sp header and payload, `len` bytes in all) and reads its reply into buf, for
// the time before a connection has other requests in flight. Errors: CONN, TIMEOUT, PROTO.
int sp_exchange(int fd, int64_t deadline_ns, const uint8_t *request, size_t len, uint8_t *buf,
                size_t cap, struct sp_frame *ret, struct err *err);

#endif
