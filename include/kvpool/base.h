// SPDX-License-Identifier: Apache-2.0
// base.h: what every part of libkvpool's API needs: status, connection, the types of handles. A program
// includes kvpool.h, which has the conventions and includes all parts.
#ifndef KVPOOL_BASE_H
#define KVPOOL_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVPOOL_VERSION_MAJOR 0
#define KVPOOL_VERSION_MINOR 1
#define KVPOOL_VERSION_PATCH 0

#if defined(__GNUC__)
#define KVPOOL_API __attribute__((visibility("default")))
#else
#define KVPOOL_API
#endif

// ---------------------------------------------------------------------------------------------
// Status

// X(name, value, text): the one list of errors. Values are part of the wire protocol: never
// renumbered, only added to.
#define KVPOOL_STATUS_MAP(X)                                         \
    X(OK, 0, "success")                                              \
    X(E_INVAL, -1, "invalid argument")                               \
    X(E_PROTO, -2, "malformed message")                              \
    X(E_VERSION, -3, "no common protocol version")                   \
    X(E_NOSPACE, -4, "out of pages")                                 \
    X(E_NOMEM, -5, "out of memory")                                  \
    X(E_LIMIT, -6, "a configured limit is reached")                  \
    X(E_STALE, -7, "stale handle")                                   \
    X(E_PERM, -8, "belongs to another client, or not permitted")     \
    X(E_NOTFOUND, -9, "no such object")                              \
    X(E_EXISTS, -10, "already exists with other properties")         \
    X(E_BUSY, -11, "in use by a step or by work in flight")          \
    X(E_STATE, -12, "not possible in this state")                    \
    X(E_ABORTED, -13, "the step was aborted")                        \
    X(E_LOST, -14, "the daemon restarted, earlier handles are gone") \
    X(E_CONN, -15, "cannot reach the daemon")                        \
    X(E_TIMEOUT, -16, "no reply in time")                            \
    X(E_AGAIN, -17, "not possible now, try again")                   \
    X(E_TOOBIG, -18, "message or batch over the size limit")         \
    X(E_BACKEND, -19, "the compute backend is missing or failed")    \
    X(E_FORKED, -20, "object belongs to the parent process")         \
    X(E_SHUTDOWN, -21, "the daemon is shutting down")                \
    X(E_UNSUPPORTED, -22, "not supported by this build or daemon")   \
    X(E_SYSTEM, -23, "a system call failed")                         \
    X(E_INTERNAL, -24, "internal error")

typedef enum kvpool_status {
#define KVPOOL_STATUS_ENUM(name, value, text) KVPOOL_##name = value,
    KVPOOL_STATUS_MAP(KVPOOL_STATUS_ENUM)
#undef KVPOOL_STATUS_ENUM
} kvpool_status;

// Static English text of a status, "unknown status" for a value not in the list. Never NULL.
KVPOOL_API const char *kvpool_strerror(kvpool_status status);

// Static name, e.g. "KVPOOL_E_NOSPACE"; "KVPOOL_E_?" for a value not in the list. Never NULL.
KVPOOL_API const char *kvpool_status_name(kvpool_status status);

// Version of the library in use, "major.minor.patch". Static.
KVPOOL_API const char *kvpool_version(void);

// ---------------------------------------------------------------------------------------------
// Connection

typedef struct kvpool_client kvpool_client; // a connection; thread-safe
typedef struct kvpool_region kvpool_region; // shared memory of one client
typedef struct kvpool_op kvpool_op;         // one submitted request
typedef uint64_t kvpool_pool;               // handle, 0 never valid
typedef uint64_t kvpool_seq;                // handle, 0 never valid
typedef uint64_t kvpool_step;               // step id, unique within the client, 0 never valid

// How another process gets the daemon's memory.
typedef enum kvpool_export {
    KVPOOL_EXPORT_FD = 1,  // a file descriptor; the memory outlives the daemon while one is open
    KVPOOL_EXPORT_IPC = 2, // a CUDA IPC handle; the memory goes with the daemon
} kvpool_export;

// Socket directory used when neither `dir` nor the environment variable KVPOOL_DIR names one.
#define KVPOOL_DEFAULT_DIR "/run/kvpool/0"

typedef struct kvpool_connect_args {
    size_t size;
    const char *dir;     // directory of the daemon's sockets; NULL: $KVPOOL_DIR, else the default
    const char *name;    // shown by `kvpool status`, at most 31 bytes; NULL: the program's name
    uint32_t timeout_ms; // limit of every call; 0: 10,000
    uint32_t flags;      // 0
    const char *credential; // secret that the daemon knows its tenants by, at most 95 bytes; NULL:
                            // the process's user and groups say who it is
} kvpool_connect_args;
#define KVPOOL_CONNECT_ARGS_INIT \
    { sizeof(kvpool_connect_args), NULL, NULL, 0, 0, NULL }

// Connects to a daemon. `args` may be NULL (all defaults). The client is owned by the caller:
// kvpool_close().
// Errors: CONN (no daemon there, or no permission: the message says which), VERSION, LIMIT (too
// many clients), INVAL (a path too long for a socket, a name or credential empty or too long, unknown
// flags), TIMEOUT, SHUTDOWN, PERM (the credential is not known), UNSUPPORTED (a credential for a
// daemon that takes none).
KVPOOL_API kvpool_status kvpool_connect(const kvpool_connect_args *args,
                                        kvpool_client **ret_client);

// Ends the session and frees the client: open steps abort, sequences are freed, regions unmapped.
// Ops not yet waited for are freed with it, their results lost. Waits a moment for the daemon, so
// that the pages are free again when it returns; device memory that is still registered may be open in the
// daemon if that moment (2 s, or timeout_ms) was too short: kvpool_region_free() tells. NULL is ignored. No
// other call on the client may be running, and nothing that belongs to it may be used afterwards.
KVPOOL_API void kvpool_close(kvpool_client *client);

// Copies the message of the calling thread's last failed call on `client` into buf (always
// terminated; "" when none failed). With client NULL: that of the thread's last failed
// kvpool_connect(). A message is at most 200 bytes long. Returns buf.
KVPOOL_API const char *kvpool_last_error(const kvpool_client *client, char *buf, size_t buf_size);

// After KVPOOL_E_AGAIN on `client` in this thread: nanoseconds after which the daemon thinks it worth
// trying again (1 us to 1 s). 0 when the thread's last failure was another one.
KVPOOL_API uint64_t kvpool_retry_after_ns(const kvpool_client *client);

// One round trip. ret_ns (may be NULL): its duration in nanoseconds.
KVPOOL_API kvpool_status kvpool_ping(kvpool_client *client, uint64_t *ret_ns);

typedef struct kvpool_daemon_info {
    size_t size;
    char version[32];      // of the daemon
    char backend[16];      // "cpu", "cuda"
    uint64_t epoch;        // changes with every instance of the daemon
    uint32_t protocol;     // version in use on this connection
    uint32_t pid;          // of the daemon
    uint32_t max_batch;    // sequences in one step or batch
    uint32_t max_inflight; // requests of one client in flight
    uint64_t max_message;  // bytes
} kvpool_daemon_info;

// What the connection learned from the daemon. ret->size must be set by the caller.
KVPOOL_API kvpool_status kvpool_daemon(kvpool_client *client, kvpool_daemon_info *ret);

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_BASE_H
