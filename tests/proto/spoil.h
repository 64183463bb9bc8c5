// SPDX-License-Identifier: Apache-2.0
// spoil.h: samples with something changed, and what the parser must say to them. The test fails when
// it says something else.
#ifndef KVPOOL_TESTS_PROTO_SPOIL_H
#define KVPOOL_TESTS_PROTO_SPOIL_H

#include "samples.h"

#define HEADER sizeof(struct proto_header)
#define AT(s, f) (HEADER + offsetof(struct proto_##s, f)) // of a body's field in its message

void put32(struct sample *s, size_t at, uint32_t value);
void put64(struct sample *s, size_t at, uint64_t value);
void set_len(struct sample *s, size_t len); // with a header that agrees

// The message is refused with this status and a text that contains `text`.
void refused(const struct sample *s, int status, const char *text);
// So is the sample of that name with one value changed (64: with PROTO).
void refused32(const char *name, size_t at, uint32_t value, int status, const char *text);
void refused64(const char *name, size_t at, uint64_t value, const char *text);
void accepted(const struct sample *s);

#endif
