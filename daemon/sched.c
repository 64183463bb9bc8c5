// SPDX-License-Identifier: Apache-2.0
// sched.c: see sched.h.
#include "daemon/sched.h"

#include <stddef.h>

void sched_init(struct sched *s, uint64_t quantum_ns) {
    *s = (struct sched){.quantum_ns = quantum_ns};
}

void sched_client_init(struct sched_client *c, uint32_t weight) {
    *c = (struct sched_client){.weight = weight};
}

void sched_set_weight(struct sched *s, struct sched_client *c, uint32_t weight) {
    if (c->waiting)
        s->weights[c->class] += (uint64_t)weight - c->weight;
    c->weight = weight;
}

static void unlink_client(struct sched *s, struct sched_client *c) {
    struct sched_client **turn = &s->turn[c->class];
    s->weights[c->class] -= c->weight;
    c->waiting = false;
    if (c->next == c) {
        *turn = NULL;
        return;
    }
    c->next->prev = c->prev;
    c->prev->next = c->next;
    if (*turn == c) // whose turn comes next gets its quantum in sched_pick
        *turn = c->prev;
}

void sched_leave(struct sched *s, struct sched_client *c, uint64_t now_ns) {
    if (!c->waiting)
        return;
    unlink_client(s, c);
    if (c->credit_ns > 0)
        c->credit_ns = 0;
    c->idle_since_ns = now_ns;
}

void sched_wait(struct sched *s, struct sched_client *c, enum sched_class class, uint64_t now_ns) {
    if (c->waiting && c->class == class)
        return;
    if (c->waiting) {
        unlink_client(s, c);
    } else { // its debt has faded, and corrections since it left give no credit
        uint64_t idle = now_ns > c->idle_since_ns ? now_ns - c->idle_since_ns : 0;
        if (c->credit_ns >= 0 || idle >= (uint64_t)-c->credit_ns)
            c->credit_ns = 0;
        else
            c->credit_ns += (int64_t)idle;
    }
    c->class = class;
    c->waiting = true;
    s->weights[class] += c->weight;
    struct sched_client *turn = s->turn[class];
    if (turn == NULL) {
        c->next = c->prev = c;
        s->turn[class] = c;
        return;
    }
    c->next = turn; // the last of the round
    c->prev = turn->prev;
    c->prev->next = c;
    turn->prev = c;
}

// Gives everybody the rounds that pass until somebody is out of debt.
static void skip_rounds(struct sched *s, struct sched_client *first) {
    int64_t least = INT64_MAX;
    struct sched_client *c = first;
    do {
        int64_t rounds = -c->credit_ns / (int64_t)(s->quantum_ns * c->weight);
        least = rounds < least ? rounds : least;
        c = c->next;
    } while (c != first);
    do {
        c->credit_ns += least * (int64_t)(s->quantum_ns * c->weight);
        c = c->next;
    } while (c != first);
}

static struct sched_client *pick(struct sched *s, enum sched_class class) {
    struct sched_client *c = s->turn[class];
    if (c == NULL || c->credit_ns > 0)
        return c;
    for (struct sched_client *last = c;;) {
        c = c->next;
        c->credit_ns += (int64_t)(s->quantum_ns * c->weight);
        if (c->credit_ns > 0)
            break;
        if (c == last)
            skip_rounds(s, c);
    }
    s->turn[class] = c;
    return c;
}

struct sched_client *sched_pick(struct sched *s, bool *ret_contended) {
    *ret_contended = (s->turn[SCHED_LATENCY] != NULL || s->owing) && s->turn[SCHED_BULK] != NULL;
    s->owing = false;
    enum sched_class class = s->turn[SCHED_LATENCY] != NULL ? SCHED_LATENCY : SCHED_BULK;
    if (!*ret_contended)
        s->owed_ns = 0;
    else if (s->owed_ns >= (int64_t)s->quantum_ns)
        class = SCHED_BULK;
    return pick(s, class);
}

struct sched_client *sched_pick_latency(struct sched *s, bool *ret_contended) {
    *ret_contended = s->turn[SCHED_LATENCY] != NULL && s->turn[SCHED_BULK] != NULL;
    return pick(s, SCHED_LATENCY);
}

void sched_hold(struct sched *s, uint64_t now_ns) {
    s->hold_since_ns = now_ns;
}

uint64_t sched_held(struct sched *s, uint64_t now_ns) {
    if (s->hold_since_ns == 0 || s->turn[SCHED_BULK] == NULL)
        return 0;
    uint64_t held = now_ns - s->hold_since_ns;
    held = held < SCHED_HOLD_NS ? held : SCHED_HOLD_NS;
    int64_t owed = s->owed_ns + (int64_t)held / (SCHED_BULK_SHARE - 1);
    s->owing = s->turn[SCHED_LATENCY] == NULL && owed >= (int64_t)s->quantum_ns;
    if (held < SCHED_HOLD_NS && s->turn[SCHED_LATENCY] == NULL && !s->owing)
        return SCHED_HOLD_NS - held;
    s->owed_ns = owed;
    s->hold_since_ns = 0;
    return 0;
}

void sched_charge(struct sched *s, struct sched_client *c, enum sched_class class, bool contended,
                  int64_t ns) {
    c->credit_ns -= ns;
    if (!contended)
        return;
    if (class == SCHED_LATENCY)
        s->owed_ns += ns / (SCHED_BULK_SHARE - 1);
    else
        s->owed_ns -= ns;
}

double sched_slowdown(const struct sched *s, const struct sched_client *c) {
    uint64_t others = s->weights[c->class] - (c->waiting ? c->weight : 0);
    double slowdown = (double)(others + c->weight) / (double)c->weight;
    if (c->class == SCHED_BULK && s->turn[SCHED_LATENCY] != NULL)
        slowdown *= SCHED_BULK_SHARE;
    return slowdown;
}
