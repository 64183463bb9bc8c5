// SPDX-License-Identifier: Apache-2.0
// text.c: see text.h.
#include "daemon/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { FIRST_BYTES = 16384 };

void text_add(struct text *t, const char *fmt, ...) {
    for (int attempt = 0; attempt < 2 && !t->failed; attempt++) {
        const size_t room = t->size - t->len;
        size_t size;
        char *data;
        va_list args;
        int n;
        va_start(args, fmt);
        n = vsnprintf(t->data != NULL ? t->data + t->len : NULL, room, fmt, args);
        va_end(args);
        if (n >= 0 && (size_t)n < room) {
            t->len += (size_t)n;
            return;
        }
        if (t->data != NULL) {
            t->data[t->len] = '\0'; // what was cut off
        }
        size = t->size == 0 ? FIRST_BYTES : t->size * 2;
        size = n >= 0 && size < t->len + (size_t)n + 1 ? t->len + (size_t)n + 1 : size;
        data = n >= 0 ? realloc(t->data, size) : NULL;
        if (data == NULL) {
            t->failed = true;
            return;
        }
        t->data = data;
        t->size = size;
    }
}

void text_free(struct text *t) {
    free(t->data);
    *t = (struct text){0};
}
