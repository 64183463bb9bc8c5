// SPDX-License-Identifier: Apache-2.0
// server.c: see server.h. NNG's REP protocol with one context and one aio a slot; written for NNG
// 1.5 as it is, and correct on every 1.x.
//
//              nng_ctx_recv            on_request            server_reply          sent
//   IDLE ----------------> RECEIVING ------------> HANDLING -------------> SENDING ----.
//    ^ ^      error, drain     |                                                       |
//    | `-----------------------'                      next receive, or IDLE in a drain |
//    `---------------------------------------------------------------------------------'
//
// Invariants (beside server.h's)
//  6. `state`, the peers and every counter belong to the loop thread; NNG's threads see a slot or
//     the beat only as an item to push and a pipe only as an event to push.
//  7. Pipe events and requests go through the one inbox: a pipe is known before its first request.
//  8. A reply that its peer does not take within two seconds in which NNG's threads run costs the
//     peer its connection, never the daemon a slot for longer.
//  9. Nothing of NNG is called from NNG's callbacks except reading the peer of a new pipe and
//     closing (refusing) it.
// Thread: loop thread, except the two functions marked.
#include "daemon/server.h"

#include "daemon/bounded.h"
#include "daemon/inbox.h"
#include "daemon/kept.h"
#include "daemon/leakcheck.h"
#include "daemon/peers.h"
#include "daemon/probe.h"
#include "proto/proto.h"

#include <nng/nng.h>
#include <nng/protocol/reqrep0/rep.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    SEND_TIMEOUT_MS = 1000, // invariant 8, give or take a tick,
    SLOW_BEATS = 5,         // and so many beats of NNG's threads, which have to send it
    CLOSE_TIMEOUT_S = 3,    // for NNG to end
    TICK_MS = 500,          // the longest sleep of the timer
    RELISTEN_MS = 100,      // after a listen that failed
    MAX_PEERS = 4096,       // connections at once; more are refused
    PROBE_PEERS = 8,        // of which the self-probe may have more
    MAX_EVENTS = 8192,      // pipe events waiting for the loop; further ones are lost (hints)
    REQ_HEADER = 4,         // NNG counts the request id into the message size
    SILENT_PROBES = 3,      // probes that made a pipe and got no reply,
    DEAF_PROBES = 2,        // or made none, in a row, before the listener is re-created
};

enum slot_state { SLOT_IDLE, SLOT_RECEIVING, SLOT_HANDLING, SLOT_SENDING };
enum { ITEM_SLOT, ITEM_PIPE, ITEM_BEAT };

struct slot {
    struct server_req req; // first: server_reply finds the slot by it
    struct inbox_item item;
    struct server *server;
    enum slot_state state;
    nng_ctx ctx;
    nng_aio *aio;
    nng_msg *msg;           // the request while HANDLING
    uint64_t sending_since; // uv_now
    uint64_t suspected;     // `beats` when its peer was first found slow; 0: not
};

struct pipe_event { // on its way through the inbox; that of a new pipe becomes the peer's entry
    struct peer peer;
    struct inbox_item item;
    bool gone;
};

struct server {
    uv_loop_t *loop;
    const struct config *config;
    server_request_fn on_request;
    server_pipe_fn on_pipe;
    void *arg;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    nng_socket socket;
    nng_listener listener;
    bool listening;
    bool draining;
    bool closing;
    struct slot *slots;
    uint32_t num_slots; // opened
    uint32_t count[4];  // slots in each state
    struct inbox *inbox;
    struct probe *probe;
    uv_timer_t timer;   // probes, and what did not work the first time
    uint64_t probed_at; // uv_now of the last probe's start
    uint32_t own_pipes; // made for this process since then
    uint32_t silent;    // probes in a row that made a pipe and got no reply
    uint32_t deaf;      // that made none
    nng_aio *beat;      // sleeps while a probe runs, or a peer is suspected: see probe.h
    struct inbox_item beat_item;
    bool beating;   // from its start until the loop has it
    uint64_t beats; // so far; begins with 1
    bool suspects;  // a slot has one
    uint64_t relistens;
    uint32_t kept; // descriptors of the listeners before,
    bool recount;  // which may become fewer
    struct peers peers;
    atomic_uint live;   // pipes accepted and not known to be gone
    atomic_uint events; // pipe events in the inbox
};

static void set_state(struct slot *slot, enum slot_state state) {
    slot->server->count[slot->state]--;
    slot->server->count[state]++;
    slot->state = state;
}

// --- NNG's threads ---

static void on_aio(void *arg) { // any NNG thread
    struct slot *slot = arg;
    inbox_push(slot->server->inbox, &slot->item);
}

static void on_beat(void *arg) { // any NNG thread
    struct server *s = arg;
    inbox_push(s->inbox, &s->beat_item);
}

static uint32_t peer_number(nng_pipe pipe, const char *option) {
    uint64_t value;
    return nng_pipe_get_uint64(pipe, option, &value) == 0 ? (uint32_t)value : UINT32_MAX;
}

static void on_pipe_event(nng_pipe pipe, nng_pipe_ev what, void *arg) { // any NNG thread
    struct server *s = arg;
    const bool gone = what == NNG_PIPE_EV_REM_POST;
    const uint32_t pid = gone ? 0 : peer_number(pipe, NNG_OPT_IPC_PEER_PID);
    const unsigned limit = MAX_PEERS + (pid == (uint32_t)getpid() ? PROBE_PEERS : 0);
    struct pipe_event *event;
    if (atomic_fetch_add(&s->events, 1) >= (gone ? 2u * MAX_EVENTS : 1u * MAX_EVENTS)) {
        goto refuse;
    }
    if (!gone && atomic_fetch_add(&s->live, 1) >= limit) {
        atomic_fetch_sub(&s->live, 1);
        goto refuse;
    }
    event = calloc(1, sizeof *event);
    if (event == NULL) {
        goto forget;
    }
    event->item.kind = ITEM_PIPE;
    event->gone = gone;
    event->peer.pipe = (uint32_t)nng_pipe_id(pipe);
    if (!gone) {
        event->peer.pid = pid;
        event->peer.uid = peer_number(pipe, NNG_OPT_IPC_PEER_UID);
    }
    if (inbox_push(s->inbox, &event->item)) {
        return;
    }
    free(event);

forget:
    if (!gone) {
        atomic_fetch_sub(&s->live, 1);
    }
refuse:
    atomic_fetch_sub(&s->events, 1);
    if (!gone) {
        nng_pipe_close(pipe);
    }
}

// --- slots ---

static void receive(struct slot *slot) {
    struct server *s = slot->server;
    if (s->draining || s->closing) {
        set_state(slot, SLOT_IDLE);
        return;
    }
    set_state(slot, SLOT_RECEIVING);
    nng_ctx_recv(slot->ctx, slot->aio);
}

static void on_received(struct slot *slot) {
    struct server *s = slot->server;
    const int rv = nng_aio_result(slot->aio);
    const struct peer *peer;
    nng_pipe pipe;
    if (rv != 0) {
        set_state(slot, SLOT_IDLE); // the timer tries again unless we are draining
        if (rv != NNG_ECANCELED && rv != NNG_ECLOSED) {
            log_warn("server.receive", "error=\"%s\"", nng_strerror(rv));
        }
        return;
    }
    slot->msg = nng_aio_get_msg(slot->aio);
    set_state(slot, SLOT_HANDLING);
    pipe = nng_msg_get_pipe(slot->msg);
    slot->req.pipe = (uint32_t)nng_pipe_id(pipe);
    peer = peers_find(&s->peers, slot->req.pipe);
    slot->req.pid = peer != NULL ? peer->pid : peer_number(pipe, NNG_OPT_IPC_PEER_PID);
    slot->req.uid = peer != NULL ? peer->uid : peer_number(pipe, NNG_OPT_IPC_PEER_UID);
    slot->req.bytes = nng_msg_body(slot->msg);
    slot->req.len = nng_msg_len(slot->msg);
    slot->req.received_ns = uv_hrtime();
    slot->req.user = NULL;
    s->on_request(s->arg, &slot->req);
}

// Sleeps a beat, one after another as long as somebody counts them.
static void beat(struct server *s) {
    if (!s->beating && (s->suspects || probe_running(s->probe))) {
        s->beating = true;
        nng_sleep_aio(PROBE_BEAT_MS, s->beat);
    }
}

static void close_pipe(uint32_t id) {
    const nng_pipe pipe = {.id = id};
    nng_pipe_close(pipe);
}

static void on_sent(struct slot *slot) {
    if (nng_aio_result(slot->aio) != 0) {
        nng_msg_free(nng_aio_get_msg(slot->aio));
        nng_aio_set_msg(slot->aio, NULL);
    }
    receive(slot);
}

// A reply that waits for its peer ends when the peer's pipe is closed. The time is kept here and
// not by NNG: its time-outs may hit the next operation of the aio (NNG 1.5), and cost a lock a
// message.
static void disconnect_slow_peers(struct server *s) {
    const uint64_t now = uv_now(s->loop);
    s->suspects = false;
    for (uint32_t i = 0; i < s->num_slots && s->count[SLOT_SENDING] > 0; i++) {
        struct slot *slot = &s->slots[i];
        if (slot->state != SLOT_SENDING || now - slot->sending_since < SEND_TIMEOUT_MS) {
            continue;
        }
        if (slot->suspected == 0) {
            slot->suspected = s->beats;
        }
        if (s->beats - slot->suspected < SLOW_BEATS) {
            s->suspects = true;
        } else {
            log_warn("server.slow_peer", "pid=%u pipe=%u action=disconnect", slot->req.pid,
                     slot->req.pipe);
            slot->sending_since = now;
            slot->suspected = 0;
            close_pipe(slot->req.pipe);
        }
    }
    beat(s);
}

void server_reply(struct server *s, struct server_req *req, const void *bytes, size_t len) {
    struct slot *slot = (struct slot *)req;
    nng_msg *reply = NULL;
    int rv;
    if (slot->state != SLOT_HANDLING) { // a second reply would corrupt another request
        log_error("server.reply", "error=\"reply without a request\" pipe=%u", req->pipe);
        abort();
    }
    rv = nng_msg_alloc(&reply, len);
    if (rv == 0 && len > 0) {
        memcpy(nng_msg_body(reply), bytes, len);
    }
    nng_msg_free(slot->msg); // after the copy: bytes may lie in it
    slot->msg = NULL;
    req->bytes = NULL;
    req->len = 0;
    if (rv != 0) { // the peer must not wait for ever
        log_error("server.reply", "error=\"%s\" pid=%u action=disconnect", nng_strerror(rv),
                  req->pid);
        close_pipe(req->pipe);
        receive(slot);
        return;
    }
    set_state(slot, SLOT_SENDING);
    nng_aio_set_msg(slot->aio, reply);
    slot->sending_since = uv_now(s->loop);
    slot->suspected = 0;
    nng_ctx_send(slot->ctx, slot->aio);
}

// --- pipes ---

static void forget_peer(struct server *s, struct peer *peer) {
    struct pipe_event *entry = (struct pipe_event *)peer; // peer is its first member
    if (!s->closing) {
        s->on_pipe(s->arg, peer->pipe, peer->pid, true);
    }
    atomic_fetch_sub(&s->live, 1);
    free(entry);
}

static void on_pipe_item(struct server *s, struct pipe_event *event) {
    const uint32_t pipe = event->peer.pipe, pid = event->peer.pid;
    const bool gone = event->gone;
    struct peer *old;
    atomic_fetch_sub(&s->events, 1);
    if (gone) {
        old = peers_take(&s->peers, pipe);
        free(event);
    } else {
        old = peers_add(&s->peers, &event->peer);
        s->own_pipes += pid == (uint32_t)getpid();
    }
    if (old != NULL) {
        forget_peer(s, old);
    }
    if (!gone && !s->closing) {
        s->on_pipe(s->arg, pipe, pid, false);
    }
}

static void forget_all_peers(struct server *s) {
    struct peer *peer;
    while ((peer = peers_take_any(&s->peers)) != NULL) {
        forget_peer(s, peer);
    }
}

static void on_item(void *arg, struct inbox_item *item) {
    struct server *s = arg;
    struct slot *slot;
    if (item->kind == ITEM_PIPE) {
        on_pipe_item(s, (struct pipe_event *)((char *)item - offsetof(struct pipe_event, item)));
        return;
    }
    if (s->closing) {
        return; // close frees what a slot holds
    }
    if (item->kind == ITEM_BEAT) {
        s->beating = false;
        s->beats++;
        probe_beat(s->probe);
        beat(s);
        return;
    }
    slot = (struct slot *)((char *)item - offsetof(struct slot, item));
    if (slot->state == SLOT_RECEIVING) {
        on_received(slot);
    } else {
        on_sent(slot);
    }
}

// --- listener ---

static int listen_now(struct server *s, struct err *err) {
    char url[sizeof s->path + 8];
    int rv;
    snprintf(url, sizeof url, "ipc://%s", s->path);
    rv = nng_listener_create(&s->listener, s->socket, url);
    if (rv != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot listen at %s: %s", s->path, nng_strerror(rv));
    }
    rv = nng_listener_set_int(s->listener, NNG_OPT_IPC_PERMISSIONS, (int)s->config->socket_mode);
    if (rv == 0) {
        rv = nng_listener_start(s->listener, 0);
    }
    if (rv != 0) {
        nng_listener_close(s->listener);
        return err_set(err, KVPOOL_E_SYSTEM, "cannot listen at %s: %s", s->path, nng_strerror(rv));
    }
    s->listening = true;
    return 0;
}

static void on_timer(uv_timer_t *timer);

// Closing a listener disconnects its clients; they connect again by themselves.
static void relisten(struct server *s) {
    struct err err;
    if (s->listening) {
        s->relistens++;
        leakcheck_give_up();
        log_warn("server.relisten", "path=\"%s\" count=%llu", s->path,
                 (unsigned long long)s->relistens);
        nng_listener_close(s->listener);
        s->listening = false;
        kept_mark(s->path);
        s->recount = true;
        forget_all_peers(s);
    }
    s->silent = 0;
    s->deaf = 0;
    if (listen_now(s, &err) != 0) {
        log_error("server.listen", "error=\"%s\"", err.text);
        uv_timer_start(&s->timer, on_timer, RELISTEN_MS, 0);
    }
}

static void probe(struct server *s) {
    s->own_pipes = 0;
    if (probe_start(s->probe)) {
        beat(s);
    }
}

// NNG closes what it does not keep in its own time: that is over when two counts agree.
static void count_kept(struct server *s) {
    if (s->recount) {
        const uint32_t kept = kept_count(s->path);
        s->recount = kept != s->kept;
        s->kept = kept;
    }
}

// A listener of NNG 1.5 that is lost may still accept and shake hands, but makes no pipe. One that
// made a pipe for the probe lives: with every slot busy the request just waits its turn.
static void on_probe(void *arg, enum probe_result result) {
    struct server *s = arg;
    if (s->draining || s->closing || result == PROBE_OK) {
        s->silent = 0;
        s->deaf = 0;
        count_kept(s);
        return;
    }
    if (result == PROBE_UNKNOWN) {
        log_warn("server.probe", "error=\"NNG's threads do not run, or no descriptor is left\"");
        return;
    }
    if (result != PROBE_GONE && s->own_pipes > 0) {
        s->deaf = 0;
        s->silent = s->count[SLOT_RECEIVING] > 0 ? s->silent + 1 : 0;
        if (s->silent < SILENT_PROBES) {
            return;
        }
    } else if (result != PROBE_GONE && ++s->deaf < DEAF_PROBES) {
        probe(s); // at once
        return;
    }
    relisten(s);
}

static void on_timer(uv_timer_t *timer) {
    struct server *s = timer->data;
    const uint64_t interval = s->config->probe_interval_ms;
    const uint64_t now = uv_now(s->loop);
    uint64_t wait = TICK_MS;
    uv_timer_start(&s->timer, on_timer, TICK_MS, 0);
    disconnect_slow_peers(s);
    if (s->draining) {
        return;
    }
    for (uint32_t i = 0; i < s->num_slots && s->count[SLOT_IDLE] > 0; i++) {
        if (s->slots[i].state == SLOT_IDLE) {
            receive(&s->slots[i]);
        }
    }
    if (!s->listening) {
        relisten(s); // sets the timer when it fails again
        return;
    }
    if (interval == 0) {
        return;
    }
    if (now >= s->probed_at + interval) {
        s->probed_at = now;
        if (!probe_running(s->probe)) {
            probe(s);
        }
    }
    wait = s->probed_at + interval > now ? s->probed_at + interval - now : 1;
    uv_timer_start(&s->timer, on_timer, wait < TICK_MS ? wait : TICK_MS, 0);
}

// --- open, drain, close ---

static int open_slots(struct server *s, struct err *err) {
    s->slots = calloc(s->config->slots, sizeof *s->slots);
    if (s->slots == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    s->beats = 1;
    s->beat_item.kind = ITEM_BEAT;
    if (nng_aio_alloc(&s->beat, on_beat, s) != 0) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    for (uint32_t i = 0; i < s->config->slots; i++) {
        struct slot *slot = &s->slots[i];
        int rv = nng_aio_alloc(&slot->aio, on_aio, slot);
        if (rv == 0) {
            rv = nng_ctx_open(&slot->ctx, s->socket);
            if (rv != 0) {
                nng_aio_free(slot->aio);
            }
        }
        if (rv != 0) {
            return err_set(err, KVPOOL_E_NOMEM, "cannot open slot %u: %s", i, nng_strerror(rv));
        }
        slot->server = s;
        slot->item.kind = ITEM_SLOT;
        s->num_slots++;
        s->count[SLOT_IDLE]++;
    }
    return 0;
}

static void free_slots(struct server *s) {
    for (uint32_t i = 0; i < s->num_slots; i++) {
        struct slot *slot = &s->slots[i];
        // What a finished aio still carries: a request nobody took, or a reply that did not leave.
        if ((slot->state == SLOT_RECEIVING && nng_aio_result(slot->aio) == 0) ||
            (slot->state == SLOT_SENDING && nng_aio_result(slot->aio) != 0)) {
            nng_msg_free(nng_aio_get_msg(slot->aio));
        }
        if (slot->msg != NULL) {
            nng_msg_free(slot->msg);
        }
        nng_aio_free(slot->aio);
    }
    free(s->slots);
    nng_aio_free(s->beat);
}

static int open_socket(struct server *s, struct err *err) {
    int rv = nng_rep0_open(&s->socket);
    if (rv != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot open a REP socket: %s", nng_strerror(rv));
    }
    rv = nng_socket_set_size(s->socket, NNG_OPT_RECVMAXSZ, PROTO_MAX_REQUEST + REQ_HEADER);
    if (rv == 0) {
        rv = nng_pipe_notify(s->socket, NNG_PIPE_EV_ADD_PRE, on_pipe_event, s);
    }
    if (rv == 0) {
        rv = nng_pipe_notify(s->socket, NNG_PIPE_EV_REM_POST, on_pipe_event, s);
    }
    if (rv != 0) {
        nng_close(s->socket);
        return err_set(err, KVPOOL_E_SYSTEM, "cannot set up the REP socket: %s", nng_strerror(rv));
    }
    return 0;
}

static void on_timer_closed(uv_handle_t *handle) {
    free(handle->data);
}

int server_open(uv_loop_t *loop, const struct config *config, server_request_fn on_request,
                server_pipe_fn on_pipe, void *arg, struct server **ret, struct err *err) {
    struct server *s = calloc(1, sizeof *s);
    int rc, len;
    if (s == NULL) {
        return err_set(err, KVPOOL_E_NOMEM, "out of memory");
    }
    s->loop = loop;
    s->config = config;
    s->on_request = on_request;
    s->on_pipe = on_pipe;
    s->arg = arg;
    len = snprintf(s->path, sizeof s->path, "%s/" PROTO_CONTROL_SOCKET, config->dir);
    if (len < 0 || (size_t)len >= sizeof s->path) {
        rc = err_set(err, KVPOOL_E_INVAL, "socket path %.60s.../%s is %d bytes, the limit is %zu",
                     config->dir, PROTO_CONTROL_SOCKET, len, sizeof s->path - 1);
        free(s);
        return rc;
    }
    uv_timer_init(loop, &s->timer);
    s->timer.data = s;
    rc = inbox_open(loop, on_item, s, &s->inbox, err);
    if (rc != 0) {
        goto close_timer;
    }
    rc = probe_open(loop, s->path, on_probe, s, &s->probe, err);
    if (rc != 0) {
        goto close_inbox;
    }
    rc = open_socket(s, err);
    if (rc != 0) {
        goto close_probe;
    }
    rc = open_slots(s, err);
    if (rc == 0) {
        rc = listen_now(s, err);
    }
    if (rc != 0) {
        goto close_socket;
    }
    for (uint32_t i = 0; i < s->num_slots; i++) {
        receive(&s->slots[i]);
    }
    s->probed_at = uv_now(loop);
    on_timer(&s->timer);
    *ret = s;
    return 0;

close_socket:
    nng_close(s->socket);
    free_slots(s);
close_probe:
    probe_close(s->probe);
close_inbox:
    inbox_close(s->inbox);
close_timer:
    uv_close((uv_handle_t *)&s->timer, on_timer_closed);
    return rc;
}

uint32_t server_busy(const struct server *s) {
    return s->num_slots - s->count[SLOT_RECEIVING];
}

uint64_t server_relistens(const struct server *s) {
    return s->relistens;
}

uint32_t server_kept(const struct server *s) {
    return s->kept;
}

void server_drain(struct server *s) {
    if (s->draining) {
        return;
    }
    s->draining = true;
    for (uint32_t i = 0; i < s->num_slots; i++) {
        if (s->slots[i].state == SLOT_RECEIVING) {
            nng_aio_cancel(s->slots[i].aio); // its callback brings the slot to IDLE
        }
    }
}

bool server_drained(const struct server *s) {
    return s->draining && s->count[SLOT_IDLE] == s->num_slots;
}

// NNG's end. It has a time limit because nng_close of NNG before 1.10 may hang.
static void tear_down(void *arg) { // a thread of its own
    struct server *s = arg;
    if (s->listening) {
        nng_listener_close(s->listener);
    }
    for (uint32_t i = 0; i < s->num_slots; i++) {
        nng_aio_stop(s->slots[i].aio);
    }
    nng_aio_stop(s->beat);
    nng_close(s->socket);
}

bool server_close(struct server *s) {
    s->draining = true;
    s->closing = true;
    uv_timer_stop(&s->timer);
    probe_close(s->probe);
    if (!bounded_run(tear_down, s, CLOSE_TIMEOUT_S)) {
        log_error("server.close", "error=\"NNG does not end\" waited_s=%d", CLOSE_TIMEOUT_S);
        inbox_abandon(s->inbox);
        uv_close((uv_handle_t *)&s->timer, NULL);
        return false;
    }
    inbox_drain(s->inbox); // pipe events own memory
    forget_all_peers(s);
    inbox_close(s->inbox);
    free_slots(s);
    uv_close((uv_handle_t *)&s->timer, on_timer_closed);
    return true;
}
