// SPDX-License-Identifier: Apache-2.0
// inbox.c: see inbox.h. The wake-up is sent with the lock held, so that inbox_shut knows that no
// thread is between its push and its wake-up when the handle is closed.
#include "daemon/inbox.h"

#include <pthread.h>
#include <stdlib.h>

struct inbox {
    uv_async_t async;
    inbox_fn fn;
    void *arg;
    pthread_mutex_t lock;    // of all below
    struct inbox_item *head; // oldest
    struct inbox_item **tail;
    bool shut;
};

static void on_async(uv_async_t *async) {
    inbox_drain(async->data);
}

int inbox_open(uv_loop_t *loop, inbox_fn fn, void *arg, struct inbox **ret, struct err *err) {
    struct inbox *inbox = calloc(1, sizeof *inbox);
    int rc;
    if (inbox == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    inbox->fn = fn;
    inbox->arg = arg;
    inbox->tail = &inbox->head;
    rc = uv_async_init(loop, &inbox->async, on_async);
    if (rc != 0) {
        free(inbox);
        return err_set(err, KVPOOL_E_SYSTEM, "cannot make a wake-up: %s", uv_strerror(rc));
    }
    inbox->async.data = inbox;
    pthread_mutex_init(&inbox->lock, NULL);
    *ret = inbox;
    return 0;
}

bool inbox_push(struct inbox *inbox, struct inbox_item *item) {
    bool entered = false;
    item->next = NULL;
    pthread_mutex_lock(&inbox->lock);
    if (!inbox->shut) {
        if (inbox->head == NULL) {
            uv_async_send(&inbox->async);
        }
        *inbox->tail = item;
        inbox->tail = &item->next;
        entered = true;
    }
    pthread_mutex_unlock(&inbox->lock);
    return entered;
}

void inbox_drain(struct inbox *inbox) {
    struct inbox_item *item;
    pthread_mutex_lock(&inbox->lock);
    item = inbox->head;
    inbox->head = NULL;
    inbox->tail = &inbox->head;
    pthread_mutex_unlock(&inbox->lock);
    while (item != NULL) {
        struct inbox_item *next = item->next; // fn may push the item again
        inbox->fn(inbox->arg, item);
        item = next;
    }
}

void inbox_shut(struct inbox *inbox) {
    pthread_mutex_lock(&inbox->lock);
    inbox->shut = true;
    pthread_mutex_unlock(&inbox->lock);
}

static void on_closed(uv_handle_t *handle) {
    struct inbox *inbox = handle->data;
    pthread_mutex_destroy(&inbox->lock);
    free(inbox);
}

void inbox_close(struct inbox *inbox) {
    inbox_shut(inbox);
    uv_close((uv_handle_t *)&inbox->async, on_closed);
}

void inbox_abandon(struct inbox *inbox) {
    inbox_shut(inbox);
    uv_close((uv_handle_t *)&inbox->async, NULL);
}
