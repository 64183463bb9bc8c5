// SPDX-License-Identifier: Apache-2.0
// peers.c: see peers.h.
#include "daemon/peers.h"

#include <stddef.h>

// The link that points to the entry of this id, or to the end of its bucket.
static struct peer **link_of(struct peers *p, uint32_t pipe) {
    struct peer **link = &p->bucket[pipe % PEERS_BUCKETS];
    while (*link != NULL && (*link)->pipe != pipe) {
        link = &(*link)->next;
    }
    return link;
}

struct peer *peers_find(const struct peers *p, uint32_t pipe) {
    struct peer *peer = p->bucket[pipe % PEERS_BUCKETS];
    while (peer != NULL && peer->pipe != pipe) {
        peer = peer->next;
    }
    return peer;
}

struct peer *peers_take(struct peers *p, uint32_t pipe) {
    struct peer **link = link_of(p, pipe);
    struct peer *peer = *link;
    if (peer != NULL) {
        *link = peer->next;
        p->n--;
    }
    return peer;
}

struct peer *peers_add(struct peers *p, struct peer *peer) {
    struct peer *old = peers_take(p, peer->pipe);
    struct peer **head = &p->bucket[peer->pipe % PEERS_BUCKETS];
    peer->next = *head;
    *head = peer;
    p->n++;
    return old;
}

struct peer *peers_take_any(struct peers *p) {
    for (uint32_t i = 0; p->n > 0 && i < PEERS_BUCKETS; i++) {
        if (p->bucket[i] != NULL) {
            return peers_take(p, p->bucket[i]->pipe);
        }
    }
    return NULL;
}
