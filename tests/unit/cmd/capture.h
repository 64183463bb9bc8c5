// SPDX-License-Identifier: Apache-2.0
// capture.h: what a function wrote to a stream, as a string.
#ifndef KVPOOL_TESTS_UNIT_CMD_CAPTURE_H
#define KVPOOL_TESTS_UNIT_CMD_CAPTURE_H

#include <stdio.h>
#include <stdlib.h>

struct capture {
    FILE *out;
    char *text; // valid after capture_end
    size_t size;
};

static inline void capture_start(struct capture *c) {
    c->text = NULL;
    c->out = open_memstream(&c->text, &c->size);
    if (c->out == NULL) {
        abort();
    }
}

static inline const char *capture_end(struct capture *c) {
    fclose(c->out);
    return c->text;
}

static inline void capture_free(struct capture *c) {
    free(c->text);
}

#endif
