// SPDX-License-Identifier: Apache-2.0
// events.c: see events.h.
#include "daemon/events.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum kind { STORED = CORE_STORED, REMOVED = CORE_REMOVED, CLEARED = CORE_CLEARED, STARTED };

struct record {
    uint64_t ts_us; // since 1970
    uint32_t kind;
    uint32_t page_size;
    char pool[CORE_NAME_SIZE], ns[CORE_NAME_SIZE]; // ns "": none
    uint8_t key[CORE_KEY_SIZE], parent[CORE_KEY_SIZE];
    uint32_t tokens[]; // [page_size], in rings with tokens
};

struct events {
    uint64_t epoch;
    bool tokens;
    size_t stride, bytes; // of a slot; of all slots
    uint64_t slots;
    uint8_t *ring;
    pthread_mutex_t lock; // of all below, and of the slots
    pthread_cond_t more;
    uint64_t newest; // 0: none
    uint32_t waiting;
    bool stopped;
};

static struct record *slot_of(const struct events *e, uint64_t seq) {
    return (struct record *)(void *)(e->ring + seq % e->slots * e->stride);
}

static uint64_t oldest_of(const struct events *e) {
    return e->newest >= e->slots ? e->newest - e->slots + 1 : 1;
}

static void copy_name(char ret[CORE_NAME_SIZE], const char *name) {
    const size_t len = name != NULL ? strnlen(name, CORE_NAME_SIZE - 1) : 0;
    memcpy(ret, name != NULL ? name : "", len);
    ret[len] = '\0';
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

// --- the loop thread ---

int events_open(uint32_t ring, bool tokens, uint64_t epoch, struct events **ret, struct err *err) {
    struct events *e;
    struct record *first;
    if (ring < 2) {
        return err_set(err, KVPOOL_E_INVAL, "an event ring of %" PRIu32 " records", ring);
    }
    e = calloc(1, sizeof *e);
    if (e == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    e->epoch = epoch;
    e->tokens = tokens;
    e->slots = ring;
    e->stride = sizeof(struct record) + (tokens ? KVPOOL_MAX_PAGE_SIZE * sizeof(uint32_t) : 0);
    e->bytes = e->stride * ring;
    e->ring = mmap(NULL, e->bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); // taken as it fills
    if (e->ring == MAP_FAILED) {
        const int rc =
            err_set(err, KVPOOL_E_NOMEM, "cannot map %zu bytes for the event ring", e->bytes);
        free(e);
        return rc;
    }
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->more, NULL);
    first = slot_of(e, 1);
    first->kind = STARTED;
    first->ts_us = now_us();
    e->newest = 1;
    *ret = e;
    return 0;
}

void events_close(struct events *e) {
    if (e == NULL) {
        return;
    }
    pthread_cond_destroy(&e->more);
    pthread_mutex_destroy(&e->lock);
    munmap(e->ring, e->bytes);
    free(e);
}

void events_observe(void *arg_events, const struct core_event *event) {
    struct events *e = arg_events;
    const uint64_t ts_us = now_us();
    struct record *r;
    pthread_mutex_lock(&e->lock);
    r = slot_of(e, e->newest + 1);
    r->ts_us = ts_us;
    r->kind = (uint32_t)event->kind;
    r->page_size = event->page_size;
    copy_name(r->pool, event->pool_name);
    copy_name(r->ns, event->ns_name);
    memcpy(r->key, event->key, sizeof r->key);
    memcpy(r->parent, event->parent, sizeof r->parent);
    if (e->tokens && event->kind == CORE_STORED && event->page_size <= KVPOOL_MAX_PAGE_SIZE) {
        memcpy(r->tokens, event->tokens, event->page_size * sizeof *r->tokens);
    }
    e->newest++;
    if (e->waiting > 0) {
        pthread_cond_broadcast(&e->more);
    }
    pthread_mutex_unlock(&e->lock);
}

// --- lines ---

static char *put_text(char *at, const char *text) {
    const size_t len = strlen(text);
    memcpy(at, text, len);
    return at + len;
}

static char *put_number(char *at, uint64_t value) {
    char digits[20];
    size_t n = sizeof digits;
    do {
        digits[--n] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    memcpy(at, digits + n, sizeof digits - n);
    return at + (sizeof digits - n);
}

static char *put_hex(char *at, const uint8_t *bytes, size_t n) {
    static const char hex[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        *at++ = hex[bytes[i] >> 4];
        *at++ = hex[bytes[i] & 15];
    }
    return at;
}

// What core's names may not have is escaped all the same: a line is always one line of JSON.
static char *put_name(char *at, const char *name) {
    *at++ = '"';
    for (; *name != '\0'; name++) {
        const uint8_t byte = (uint8_t)*name;
        if (byte < 0x20 || byte >= 0x7f || byte == '"' || byte == '\\') {
            at = put_text(at, "\\u00");
            at = put_hex(at, &byte, 1);
        } else {
            *at++ = (char)byte;
        }
    }
    *at++ = '"';
    return at;
}

static char *put_time(char *at, uint64_t us) {
    uint32_t fraction = (uint32_t)(us % 1000000);
    at = put_number(at, us / 1000000);
    *at++ = '.';
    for (int i = 5; i >= 0; i--, fraction /= 10) {
        at[i] = (char)('0' + fraction % 10);
    }
    return at + 6;
}

static char *put_hash(char *at, const uint8_t key[CORE_KEY_SIZE]) {
    *at++ = '"';
    at = put_hex(at, key, CORE_KEY_SIZE);
    *at++ = '"';
    return at;
}

static char *put_stored(char *at, const struct record *r, bool tokens) {
    static const uint8_t none[CORE_KEY_SIZE];
    at = put_text(at, "\"BlockStored\",\"block_hashes\":[");
    at = put_hash(at, r->key);
    at = put_text(at, "],\"parent_block_hash\":");
    if (memcmp(r->parent, none, sizeof none) == 0) {
        at = put_text(at, "null");
    } else {
        at = put_hash(at, r->parent);
    }
    at = put_text(at, ",\"token_ids\":");
    if (tokens) {
        for (uint32_t i = 0; i < r->page_size; i++) {
            *at++ = i == 0 ? '[' : ',';
            at = put_number(at, r->tokens[i]);
        }
        *at++ = ']';
    } else {
        at = put_text(at, "null");
    }
    at = put_text(at, ",\"block_size\":");
    at = put_number(at, r->page_size);
    return put_text(at, ",\"lora_id\":null");
}

// 176: all that is in every line beside names, tokens, hashes and numbers.
_Static_assert(176 + 2 * (2 * CORE_KEY_SIZE) + 2 * (6 * CORE_NAME_SIZE) + 4 * 20 +
                       11 * KVPOOL_MAX_PAGE_SIZE <=
                   EVENTS_LINE_BYTES,
               "every line fits");

static char *put_line(char *at, const struct events *e, uint64_t seq, const struct record *r) {
    at = put_text(at, "{\"seq\":");
    at = put_number(at, seq);
    at = put_text(at, ",\"ts\":");
    at = put_time(at, r->ts_us);
    at = put_text(at, ",\"type\":");
    switch ((enum kind)r->kind) {
    case STARTED:
        at = put_text(at, "\"Started\",\"epoch\":\"0x");
        for (int shift = 56; shift >= 0; shift -= 8) {
            const uint8_t byte = (uint8_t)(e->epoch >> shift);
            at = put_hex(at, &byte, 1);
        }
        return put_text(at, "\"}\n");
    case STORED:
        at = put_stored(at, r, e->tokens);
        break;
    case REMOVED:
        at = put_text(at, "\"BlockRemoved\",\"block_hashes\":[");
        at = put_hash(at, r->key);
        *at++ = ']';
        break;
    case CLEARED:
        at = put_text(at, "\"AllBlocksCleared\"");
        break;
    }
    at = put_text(at, ",\"pool\":");
    at = put_name(at, r->pool);
    if (r->ns[0] != '\0') {
        at = put_text(at, ",\"namespace\":");
        at = put_name(at, r->ns);
    }
    return put_text(at, "}\n");
}

// --- readers ---

void events_range(struct events *e, struct events_range *ret) {
    pthread_mutex_lock(&e->lock);
    *ret = (struct events_range){e->epoch, oldest_of(e), e->newest};
    pthread_mutex_unlock(&e->lock);
}

// Copies records [from, from + max) as far as they exist, and returns how many.
static uint32_t copy_out(struct events *e, uint64_t from, uint32_t max, uint8_t *ret) {
    uint32_t n = 0;
    pthread_mutex_lock(&e->lock);
    if (from >= oldest_of(e)) {
        while (n < max && from + n <= e->newest) {
            memcpy(ret + n * e->stride, slot_of(e, from + n), e->stride);
            n++;
        }
    }
    pthread_mutex_unlock(&e->lock);
    return n;
}

size_t events_read(struct events *e, uint64_t from, uint32_t max, char *buf, size_t size,
                   uint64_t *ret_next) {
    _Alignas(struct record) uint8_t
        copies[EVENTS_BATCH * (sizeof(struct record) + KVPOOL_MAX_PAGE_SIZE * sizeof(uint32_t))];
    const uint64_t until = max > UINT64_MAX - from ? UINT64_MAX : from + max;
    char *at = buf;
    uint64_t seq = from;
    while (seq < until && size - (size_t)(at - buf) >= EVENTS_LINE_BYTES) {
        const size_t room = (size - (size_t)(at - buf)) / EVENTS_LINE_BYTES;
        uint64_t want = until - seq < EVENTS_BATCH ? until - seq : EVENTS_BATCH;
        uint32_t n;
        want = want < room ? want : room;
        n = copy_out(e, seq, (uint32_t)want, copies);
        for (uint32_t i = 0; i < n; i++, seq++) {
            at = put_line(at, e, seq, (struct record *)(void *)(copies + i * e->stride));
        }
        if (n < want) {
            break;
        }
    }
    *ret_next = seq;
    return (size_t)(at - buf);
}

bool events_wait(struct events *e, uint64_t seq) {
    bool there;
    pthread_mutex_lock(&e->lock);
    e->waiting++;
    while (!e->stopped && e->newest < seq) {
        pthread_cond_wait(&e->more, &e->lock);
    }
    e->waiting--;
    there = !e->stopped;
    pthread_mutex_unlock(&e->lock);
    return there;
}

void events_stop(struct events *e) {
    pthread_mutex_lock(&e->lock);
    e->stopped = true;
    pthread_cond_broadcast(&e->more);
    pthread_mutex_unlock(&e->lock);
}
