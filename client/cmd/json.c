// SPDX-License-Identifier: Apache-2.0
// json.c: see json.h.
#include "client/cmd/json.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

// Length of the well-formed UTF-8 sequence at s (Unicode 15, table 3-7), 0 when it is none.
static size_t utf8_len(const unsigned char *s) {
    unsigned char low = 0x80;
    unsigned char high = 0xBF;
    size_t len = 0;
    if (s[0] < 0x80) {
        return 1;
    }
    if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        len = 2;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        len = 3;
        low = s[0] == 0xE0 ? 0xA0 : 0x80;  // no overlong form
        high = s[0] == 0xED ? 0x9F : 0xBF; // no surrogate
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        len = 4;
        low = s[0] == 0xF0 ? 0x90 : 0x80;
        high = s[0] == 0xF4 ? 0x8F : 0xBF; // nothing above U+10FFFF
    } else {
        return 0;
    }
    if (s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return len;
}

static void write_string(FILE *out, const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    putc('"', out);
    while (*s != 0) {
        size_t len = utf8_len(s);
        if (*s == '"' || *s == '\\') {
            fprintf(out, "\\%c", *s);
        } else if (*s == '\n') {
            fputs("\\n", out);
        } else if (*s == '\t') {
            fputs("\\t", out);
        } else if (*s < 0x20 || *s == 0x7F) {
            fprintf(out, "\\u%04x", *s);
        } else if (len == 0) {
            fputs("\\ufffd", out);
        } else {
            fwrite(s, 1, len, out);
        }
        s += len == 0 ? 1 : len;
    }
    putc('"', out);
}

// Comma and key before a value.
static void lead(struct json *j, const char *key) {
    if (j->depth == 0) {
        assert(key == NULL);
        return;
    }
    assert((key != NULL) == (j->close[j->depth - 1] == '}'));
    if (j->some[j->depth - 1]) {
        putc(',', j->out);
    }
    j->some[j->depth - 1] = true;
    if (key != NULL) {
        write_string(j->out, key);
        putc(':', j->out);
    }
}

static void open_level(struct json *j, const char *key, char first, char last) {
    lead(j, key);
    assert(j->depth < JSON_MAX_DEPTH);
    putc(first, j->out);
    j->close[j->depth] = last;
    j->some[j->depth] = false;
    j->depth++;
}

struct json json_start(FILE *out) {
    return (struct json){.out = out};
}

void json_finish(struct json *j) {
    assert(j->depth == 0);
    putc('\n', j->out);
}

void json_object(struct json *j, const char *key) {
    open_level(j, key, '{', '}');
}

void json_array(struct json *j, const char *key) {
    open_level(j, key, '[', ']');
}

void json_end(struct json *j) {
    assert(j->depth > 0);
    j->depth--;
    putc(j->close[j->depth], j->out);
}

void json_str(struct json *j, const char *key, const char *value) {
    lead(j, key);
    if (value == NULL) {
        fputs("null", j->out);
    } else {
        write_string(j->out, value);
    }
}

void json_u64(struct json *j, const char *key, uint64_t value) {
    lead(j, key);
    fprintf(j->out, "%" PRIu64, value);
}

void json_i64(struct json *j, const char *key, int64_t value) {
    lead(j, key);
    fprintf(j->out, "%" PRId64, value);
}

void json_num(struct json *j, const char *key, double value) {
    lead(j, key);
    if (isfinite(value)) {
        fprintf(j->out, "%.6g", value);
    } else {
        fputs("null", j->out);
    }
}

void json_bool(struct json *j, const char *key, bool value) {
    lead(j, key);
    fputs(value ? "true" : "false", j->out);
}

void json_hex(struct json *j, const char *key, uint64_t value) {
    lead(j, key);
    fprintf(j->out, "\"0x%" PRIx64 "\"", value);
}
