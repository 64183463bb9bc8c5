// SPDX-License-Identifier: Apache-2.0
// last_error.c: see last_error.h.
#include "client/lib/last_error.h"

#include <stdio.h>
#include <string.h>

#define CLIENTS 4u // remembered per thread, besides connecting

struct message {
    uint64_t client_id; // 0 in slot 0: connecting; 0 elsewhere: unused
    uint64_t retry_ns;
    char text[ERR_TEXT_MAX];
};

static _Thread_local struct message messages[1 + CLIENTS];
static _Thread_local unsigned next_slot;

static struct message *find(uint64_t client_id) {
    if (client_id == LAST_ERROR_CONNECT)
        return &messages[0];
    for (unsigned i = 1; i <= CLIENTS; i++)
        if (messages[i].client_id == client_id)
            return &messages[i];
    return NULL;
}

static uint64_t retry_hint(int status, const struct err *err) {
    if (status != KVPOOL_E_AGAIN)
        return 0;
    if (err->detail == 0)
        return LAST_ERROR_RETRY_NS;
    if (err->detail < LAST_ERROR_RETRY_MIN_NS)
        return LAST_ERROR_RETRY_MIN_NS;
    return err->detail < LAST_ERROR_RETRY_MAX_NS ? err->detail : LAST_ERROR_RETRY_MAX_NS;
}

void last_error_keep(uint64_t client_id, int status, const struct err *err) {
    struct message *m = find(client_id);
    if (m == NULL) {
        m = &messages[1 + next_slot];
        next_slot = (next_slot + 1) % CLIENTS;
        m->client_id = client_id;
    }
    const char *text = err->text[0] != '\0' ? err->text : kvpool_strerror((kvpool_status)status);
    snprintf(m->text, sizeof m->text, "%s", text);
    m->retry_ns = retry_hint(status, err);
}

const char *last_error_text(uint64_t client_id) {
    const struct message *m = find(client_id);
    return m != NULL ? m->text : "";
}

uint64_t last_error_retry_ns(uint64_t client_id) {
    const struct message *m = find(client_id);
    return m != NULL ? m->retry_ns : 0;
}
