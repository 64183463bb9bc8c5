// SPDX-License-Identifier: Apache-2.0
// trace_line.c: see trace_line.h.
#include "client/cmd/trace_line.h"

#include "client/cmd/format.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define KEY_SIZE 32

struct reader {
    const char *at;
    char *reason;
};

__attribute__((format(printf, 2, 3))) static bool refuse(struct reader *r, const char *format,
                                                         ...) {
    va_list ap;
    va_start(ap, format);
    vsnprintf(r->reason, TRACE_REASON_SIZE, format, ap);
    va_end(ap);
    return false;
}

static char look(struct reader *r) {
    while (*r->at == ' ' || *r->at == '\t' || *r->at == '\r' || *r->at == '\n') {
        r->at++;
    }
    return *r->at;
}

static bool expect(struct reader *r, char c) {
    if (look(r) != c) {
        return refuse(r, "'%c' expected before \"%.12s\"", c, r->at);
    }
    r->at++;
    return true;
}

// A string; what is longer than the buffer is cut, escapes stay as they are written.
static bool read_string(struct reader *r, char buf[KEY_SIZE]) {
    size_t n = 0;
    if (!expect(r, '"')) {
        return false;
    }
    for (; *r->at != '"'; r->at++) {
        if ((unsigned char)*r->at < 0x20) {
            return refuse(r, "a string does not end");
        }
        if (n + 1 < KEY_SIZE) {
            buf[n++] = *r->at;
        }
        if (*r->at == '\\' && (unsigned char)*++r->at < 0x20) {
            return refuse(r, "a string does not end");
        }
    }
    buf[n] = 0;
    r->at++;
    return true;
}

static bool read_number(struct reader *r, double *ret) {
    char *end = NULL;
    char first = look(r);
    if (first != '-' && !isdigit((unsigned char)first)) {
        return refuse(r, "a number expected before \"%.12s\"", r->at);
    }
    *ret = strtod(r->at, &end);
    if (!isfinite(*ret) || (size_t)(end - r->at) != strspn(r->at, "0123456789+-.eE")) {
        return refuse(r, "\"%.12s\" is not a number", r->at);
    }
    r->at = end;
    return true;
}

// A whole number of 0..max.
static bool read_u64(struct reader *r, const char *key, uint64_t max, uint64_t *ret) {
    char *end = NULL;
    look(r);
    errno = 0;
    uint64_t value = isdigit((unsigned char)*r->at) ? strtoull(r->at, &end, 10) : 0;
    if (end == NULL || errno != 0 || value > max || *end == '.' || *end == 'e' || *end == 'E') {
        return refuse(r, "%s: \"%.20s\" is not a whole number of 0..%" PRIu64, key, r->at, max);
    }
    r->at = end;
    *ret = value;
    return true;
}

static bool read_ids(struct reader *r, struct trace_line *line) {
    size_t cap = 0;
    if (!expect(r, '[')) {
        return false;
    }
    while (look(r) != ']') {
        if (line->blocks > 0 && !expect(r, ',')) {
            return false;
        }
        if (line->blocks == cap) {
            cap = cap == 0 ? 64 : 2 * cap;
            line->ids = cmd_realloc(line->ids, cap * sizeof(line->ids[0]));
        }
        if (line->blocks == TRACE_LINE_MAX_TOKENS) {
            return refuse(r, "hash_ids: more than %u", TRACE_LINE_MAX_TOKENS);
        }
        if (!read_u64(r, "hash_ids", UINT64_MAX, &line->ids[line->blocks])) {
            return false;
        }
        line->blocks++;
    }
    r->at++;
    return true;
}

static bool skip_scalar(struct reader *r) {
    static const char *const words[] = {"true", "false", "null"};
    char text[KEY_SIZE];
    double number = 0;
    if (look(r) == '"') {
        return read_string(r, text);
    }
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        size_t len = strlen(words[i]);
        if (strncmp(r->at, words[i], len) == 0) {
            r->at += len;
            return true;
        }
    }
    return read_number(r, &number);
}

static bool skip_value(struct reader *r) {
    if (look(r) != '[') {
        return skip_scalar(r);
    }
    r->at++;
    for (bool first = true; look(r) != ']'; first = false) {
        if ((!first && !expect(r, ',')) || !skip_scalar(r)) {
            return false;
        }
    }
    r->at++;
    return true;
}

enum key { TIMESTAMP, INPUT, OUTPUT, IDS, BLOCK, OPENED, MATCHED, OP, DROPPED, KEYS };
static const char *const key_names[KEYS] = {"timestamp", "input_length", "output_length",
                                            "hash_ids",  "block_size",   "opened",
                                            "matched",   "op",           "dropped"};

static bool read_u32(struct reader *r, enum key key, uint32_t max, uint32_t *ret) {
    uint64_t value = 0;
    if (!read_u64(r, key_names[key], max, &value)) {
        return false;
    }
    *ret = (uint32_t)value;
    return true;
}

static bool read_member(struct reader *r, enum key key, struct trace_line *line) {
    switch (key) {
    case TIMESTAMP:
        return read_number(r, &line->timestamp) &&
               (line->timestamp >= 0 || refuse(r, "timestamp: negative"));
    case INPUT:
        return read_u32(r, key, TRACE_LINE_MAX_TOKENS, &line->input);
    case OUTPUT:
        return read_u32(r, key, TRACE_LINE_MAX_TOKENS, &line->output);
    case IDS:
        return read_ids(r, line);
    case BLOCK:
        return read_u32(r, key, TRACE_LINE_MAX_TOKENS, &line->block_size);
    case OPENED:
        return read_u32(r, key, TRACE_LINE_MAX_TOKENS, &line->opened);
    case MATCHED:
        return read_u32(r, key, TRACE_LINE_MAX_TOKENS, &line->matched);
    case DROPPED:
        return read_u64(r, "dropped", UINT64_MAX, &line->dropped);
    default:
        return skip_value(r);
    }
}

static bool read_members(struct reader *r, struct trace_line *line, unsigned *ret_seen) {
    if (!expect(r, '{')) {
        return false;
    }
    for (bool first = true; look(r) != '}'; first = false) {
        char name[KEY_SIZE];
        unsigned key = 0;
        if ((!first && !expect(r, ',')) || !read_string(r, name) || !expect(r, ':')) {
            return false;
        }
        while (key < KEYS && strcmp(key_names[key], name) != 0) {
            key++;
        }
        if (key < KEYS && (*ret_seen & 1u << key) != 0) {
            return refuse(r, "%s: twice", name);
        }
        *ret_seen |= 1u << key;
        if (!read_member(r, (enum key)key, line)) {
            return false;
        }
    }
    r->at++;
    if (look(r) != 0) {
        return refuse(r, "something follows the object: \"%.12s\"", r->at);
    }
    return true;
}

// What a sequence's line must have.
static bool check(struct reader *r, struct trace_line *line, unsigned seen) {
    static const enum key needed[] = {TIMESTAMP, INPUT, OUTPUT, IDS};
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        if ((seen & 1u << needed[i]) == 0) {
            return refuse(r, "%s is missing", key_names[needed[i]]);
        }
    }
    if (line->block_size == 0) {
        return refuse(r, "block_size: 0");
    }
    uint32_t blocks = (line->input + line->block_size - 1) / line->block_size;
    if (blocks != line->blocks) {
        return refuse(r, "hash_ids: %u, but %u tokens are %u blocks of %u", line->blocks,
                      line->input, blocks, line->block_size);
    }
    if ((seen & 1u << OPENED) == 0) {
        line->opened = line->input > 0 ? line->input - 1 : 0;
    }
    if (line->opened > line->input) {
        return refuse(r, "opened: %u of %u tokens", line->opened, line->input);
    }
    return true;
}

bool trace_line_parse(const char *text, uint32_t default_block_size, struct trace_line *ret,
                      char reason[TRACE_REASON_SIZE]) {
    struct reader r = {text, reason};
    struct trace_line line = {.block_size = default_block_size};
    unsigned seen = 0;
    bool ok = read_members(&r, &line, &seen);
    if (ok && (seen & 1u << OP) != 0) {
        line.kind = TRACE_REQUEST;
    } else if (ok && (seen & 1u << DROPPED) != 0) {
        line.kind = TRACE_DROPPED;
    } else if (ok) {
        ok = check(&r, &line, seen);
    }
    if (!ok) {
        free(line.ids);
        return false;
    }
    *ret = line;
    return true;
}

void trace_line_free(struct trace_line *line) {
    free(line->ids);
    *line = (struct trace_line){0};
}

void trace_line_write(const struct trace_line *line, FILE *out) {
    fprintf(out,
            "{\"timestamp\":%.0f,\"input_length\":%" PRIu32 ",\"output_length\":%" PRIu32
            ",\"hash_ids\":[",
            line->timestamp, line->input, line->output);
    for (uint32_t i = 0; i < line->blocks; i++) {
        fprintf(out, "%s%" PRIu64, i > 0 ? "," : "", line->ids[i]);
    }
    fprintf(out, "],\"block_size\":%" PRIu32 "}\n", line->block_size);
}

bool trace_file_read(const char *path, uint32_t default_block_size, uint32_t limit,
                     struct trace_file *ret) {
    struct trace_file file = {0};
    char reason[TRACE_REASON_SIZE];
    char plain[TRACE_REASON_SIZE];
    char *text = NULL;
    size_t cap = 0;
    size_t room = 0;
    uint64_t number = 0;
    bool ok = false;
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (in == NULL) {
        fprintf(stderr, "kvpool: %s: %s\n", path, strerror(errno));
        return false;
    }
    while ((limit == 0 || file.n < limit) && getline(&text, &cap, in) > 0) {
        struct trace_line line;
        number++;
        if (text[strspn(text, " \t\r\n")] == 0) {
            continue; // an empty line
        }
        if (!trace_line_parse(text, default_block_size, &line, reason)) {
            fprintf(stderr, "kvpool: %s: line %" PRIu64 ": %s\n", path, number,
                    format_plain(reason, plain, sizeof(plain)));
            goto out;
        }
        file.dropped += line.dropped;
        if (line.kind != TRACE_SEQUENCE) {
            trace_line_free(&line);
            continue;
        }
        if (file.n == room) {
            room = room == 0 ? 256 : 2 * room;
            file.lines = cmd_realloc(file.lines, room * sizeof(file.lines[0]));
        }
        file.lines[file.n++] = line;
    }
    ok = ferror(in) == 0;
    if (!ok) {
        fprintf(stderr, "kvpool: %s: %s\n", path, strerror(errno));
    }
out:
    free(text);
    if (in != stdin) {
        fclose(in);
    }
    if (ok) {
        *ret = file;
    } else {
        trace_file_free(&file);
    }
    return ok;
}

void trace_file_free(struct trace_file *file) {
    for (size_t i = 0; i < file->n; i++) {
        trace_line_free(&file->lines[i]);
    }
    free(file->lines);
    *file = (struct trace_file){0};
}
