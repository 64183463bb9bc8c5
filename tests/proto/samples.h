// SPDX-License-Identifier: Apache-2.0
// samples.h: one well-formed message per op and direction (and the variants that differ in form),
// with a distinct value in every field. The protocol tests start from these; `make_corpus` writes
// them out as seeds for the fuzz targets.
#ifndef KVPOOL_TESTS_PROTO_SAMPLES_H
#define KVPOOL_TESTS_PROTO_SAMPLES_H

#include "proto/layout.h"

#define SAMPLES_MAX 96
#define SAMPLE_BYTES 512

struct sample {
    char name[32]; // "step_begin.request"
    uint16_t op;
    bool reply;
    size_t len;
    uint8_t bytes[SAMPLE_BYTES];
};

// Fills ret[SAMPLES_MAX] and returns how many there are.
size_t samples_make(struct sample *ret);

// The sample of this name; the test fails when there is none.
struct sample sample_get(const char *name);

// Parses a sample's bytes (which may be changed) as what it is.
int sample_parse(const struct sample *s, struct proto_msg *ret, struct err *err);

#endif
