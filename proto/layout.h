// SPDX-License-Identifier: Apache-2.0
// layout.h: the wire structs of proto.h and the ops described as data. The parser checks by it, the
// decoder prints by it, and a test holds PROTOCOL.md's drawings against it.
//
// Invariants
//  1. A layout's fields stand in wire order and cover its struct without a gap.
//  2. What a field may hold is said here once: the rules of one struct are the same wherever it is
//     used. Rules that concern several fields are the op's `check`.
// Threads: constant tables, any thread. Internal to proto/ and its tests.
#ifndef KVPOOL_PROTO_LAYOUT_H
#define KVPOOL_PROTO_LAYOUT_H

#include "proto/proto.h"

enum field_kind {
    FIELD_UINT,        // unsigned, 1, 2, 4 or 8 bytes
    FIELD_INT,         // signed, 4 bytes
    FIELD_FLOAT,       // 4 or 8 bytes, any value
    FIELD_HANDLE,      // u64, or a set of bits: shown in hex
    FIELD_TEXT,        // bytes, terminated; every byte after the terminator is 0
    FIELD_SECRET,      // bytes never shown
    FIELD_SECRET_TEXT, // as FIELD_TEXT, never shown
    FIELD_BYTES,       // any bytes, shown in hex
    FIELD_ZERO,        // reserved, or flags of which none is defined: all bytes 0
    FIELD_COUNT,       // u32 in min..max: below is PROTO, above is TOOBIG
    FIELD_TOKENS,      // as FIELD_COUNT: how many token ids (u32) stand behind the records
    FIELD_FLAGS,       // u32, no bit outside max
};

struct proto_field {
    const char *name;
    uint16_t offset, size;
    enum field_kind kind;
    uint32_t min, max; // FIELD_COUNT, FIELD_TOKENS, FIELD_FLAGS
};

struct proto_layout {
    const char *name; // of the struct, without proto_
    uint32_t size, num_fields;
    const struct proto_field *fields;
};

// One direction of an op. With records, the body's first FIELD_COUNT says how many follow.
struct proto_shape {
    const struct proto_layout *body, *record; // NULL: none
};

struct proto_op_info {
    const char *name; // NULL: no such op
    enum proto_socket socket;
    struct proto_shape request, reply;
    int (*check)(const struct proto_msg *request, struct err *err); // NULL: nothing more to check
};

// NULL for an unknown op.
const struct proto_op_info *proto_op(uint16_t op);

extern const struct proto_layout proto_layout_header;
extern const struct proto_layout proto_layout_error;

#define PROTO_NUM_OPS 40u // highest number + 1

#endif
