// SPDX-License-Identifier: Apache-2.0
// order.c: see order.h.
#include "daemon/order.h"

#include <stddef.h>

void order_init(struct order *o, uint64_t next) {
    o->next = next;
    o->parked = NULL;
}

static void advance_past(struct order *o, uint64_t seq) {
    o->next = seq == UINT64_MAX ? seq : seq + 1;
}

enum order_verdict order_arrive(struct order *o, struct order_item *item, uint64_t seq,
                                uint64_t now_ns) {
    if (seq < o->next)
        return ORDER_PASSED;
    item->seq = seq;
    item->since_ns = now_ns;
    item->next = NULL;
    if (seq == o->next) {
        advance_past(o, seq);
        return ORDER_START;
    }
    struct order_item **at = &o->parked;
    while (*at != NULL && (*at)->seq < seq)
        at = &(*at)->next;
    if (*at != NULL && (*at)->seq == seq)
        return ORDER_PASSED;
    item->next = *at;
    *at = item;
    return ORDER_PARKED;
}

struct order_item *order_drop(struct order *o) {
    struct order_item *item = o->parked;
    if (item != NULL) {
        o->parked = item->next;
        item->next = NULL;
    }
    return item;
}

struct order_item *order_pop(struct order *o) {
    if (o->parked == NULL || o->parked->seq != o->next)
        return NULL;
    advance_past(o, o->next);
    return order_drop(o);
}

struct order_item *order_expire(struct order *o, uint64_t now_ns, uint64_t limit_ns) {
    if (o->parked == NULL || now_ns < o->parked->since_ns ||
        now_ns - o->parked->since_ns < limit_ns)
        return NULL;
    advance_past(o, o->parked->seq);
    return order_drop(o);
}

void order_remove(struct order *o, struct order_item *item) {
    struct order_item **at = &o->parked;
    while (*at != NULL && *at != item)
        at = &(*at)->next;
    if (*at != NULL)
        *at = item->next;
    item->next = NULL;
}
