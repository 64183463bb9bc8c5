// SPDX-License-Identifier: Apache-2.0
// trace_pipe.h: the writing end of a pipe that takes whole lines or none, and never waits.
//
//   trace_pipe_line --fits--> written
//                   --fits in part--> the rest is kept, and goes out as room comes
//                   --no room, or a rest is waiting--> counted; {"dropped":n} goes before the next
//
// Invariants
//  1. What the reader gets is whole lines, in the order given.
//  2. `gone` is called once, when the reader has closed its end (perhaps from within
//     trace_pipe_line), and the pipe is closed then; not after trace_pipe_close.
// Thread: the loop thread. SIGPIPE is ignored.
#ifndef KVPOOL_DAEMON_TRACE_PIPE_H
#define KVPOOL_DAEMON_TRACE_PIPE_H

#include "proto/err.h"

#include <uv.h>

#define TRACE_PIPE_BYTES (1 << 20) // asked for; the kernel may grant less

struct trace_pipe;

// *ret_fd: the end to read from, close-on-exec, the caller's. Errors: NOMEM, SYSTEM.
int trace_pipe_open(uv_loop_t *loop, void (*gone)(void *arg, struct trace_pipe *p), void *arg,
                    struct trace_pipe **ret, int *ret_fd, struct err *err);

void trace_pipe_line(struct trace_pipe *p, const char *bytes, size_t len); // ends with a newline
void trace_pipe_drop(struct trace_pipe *p); // a line that could not be made: counted
void trace_pipe_close(struct trace_pipe *p);

#endif
