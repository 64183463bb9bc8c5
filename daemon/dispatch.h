// SPDX-License-Identifier: Apache-2.0
// dispatch.h: what a request means: proto's checked view -> core -> engine -> reply. It owns core,
// the engine, the sessions, the regions and the fd socket; the server (NNG) and main stand above
// it.
//
// Invariants
//  1. Every server_req handed in is answered exactly once, by a result or a typed error.
//  2. Requests of one pipe with seq != 0 start in the order of seq; one that waits for an earlier
//  seq
//     longer than a second is answered KVPOOL_E_PROTO.
//  3. A tensor reaches the backend only after its extent, alignment and overlap were checked
//  against
//     the session's own region, which is held until the job is done.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_DISPATCH_H
#define KVPOOL_DAEMON_DISPATCH_H

#include "daemon/config.h"
#include "daemon/server.h"
#include "daemon/text.h"
#include "kernels/backend.h"

struct dispatch;

// Opens core, backend, engine, the pools of the configuration and the fd socket <dir>/fd.sock.
int dispatch_open(uv_loop_t *loop, const struct config *config, struct dispatch **ret,
                  struct err *err);
void dispatch_server(struct dispatch *d, struct server *s); // where replies go; before any request
void dispatch_request(void *arg_dispatch, struct server_req *req); // a server_request_fn
void dispatch_pipe(void *arg_dispatch, uint32_t pipe, uint32_t pid, bool gone); // a server_pipe_fn
const char *dispatch_backend(const struct dispatch *d);   // one line for the start-up log
uint64_t dispatch_leaked_pipes(const struct dispatch *d); // that are over and NNG keeps
uint64_t dispatch_epoch(const struct dispatch *d);
// False when the device thread has work and has not advanced for 30 s: main then stops feeding
// systemd's watchdog, and the service is restarted.
bool dispatch_healthy(const struct dispatch *d);
// The device is lost to this process: main ends it, to be restarted.
bool dispatch_lost(const struct dispatch *d);

// Writes all figures as Prometheus text; `events`: recorded so far.
void dispatch_metrics(struct dispatch *d, uint64_t events, struct text *text);
void dispatch_observe(struct dispatch *d, core_event_fn fn,
                      void *arg);                          // core_observe; NULL: nobody
uint64_t dispatch_stalled_since(const void *arg_dispatch); // a health_device_fn: any thread

// The configuration has changed: reads the credentials again (what is wrong with them goes to the
// log, and the old ones stay).
void dispatch_reload(struct dispatch *d);

// From now on new sessions and new steps are refused (KVPOOL_E_SHUTDOWN); work in flight finishes.
void dispatch_drain(struct dispatch *d);
bool dispatch_idle(const struct dispatch *d); // nothing in flight, nothing parked
void dispatch_close(struct dispatch *d);      // closes every session; handles close on the loop

#endif
