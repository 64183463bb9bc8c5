// SPDX-License-Identifier: Apache-2.0
// kvpool.h: the whole C API of libkvpool, the client library of kvpoold.
//
// kvpoold owns a paged KV cache. A worker process connects, opens a pool (the pages of one KV
// geometry), creates sequences in it, and for each forward pass of its model runs one *step*:
//
//     kvpool_step_begin      reserve pages for the new tokens of a batch of sequences
//     kvpool_prefill/decode  once per layer: append K and V of the new tokens, then attend
//     kvpool_step_commit     the new tokens are now part of the sequences
//     (kvpool_step_abort     ... or nothing happened)
//
// Tensors (q, k, v, out, lse) never travel in messages: they live in *regions*, memory shared by
// the worker and the daemon, and a request names {region, offset, strides}.
//
// Conventions, true of every function here unless it says otherwise
//   Result    `kvpool_status`: KVPOOL_OK (0) or a negative KVPOOL_E_*. Outputs (`ret_*`) are
//             written only on KVPOOL_OK. A request that fails has changed nothing.
//   Message   `kvpool_last_error()` has one line of text for the calling thread's last failure.
//   Threads   Every function may be called from any thread at any time, except that an object must
//             not be used after, or while, it is being freed. Calls on one client from several
//             threads run at the same time. A call blocks until its reply or the time-out.
//   Order     Requests of one client are *started* by the daemon in the order in which the library
//             accepted them (kvpool_submit included); requests of one step also run in that order.
//   Time      A call that gets no reply within `timeout_ms` returns KVPOOL_E_TIMEOUT; the daemon
//             may still carry it out. begin and commit may be repeated safely (see there).
//   Fork      After fork() the child must not use the parent's objects: every call answers
//             KVPOOL_E_FORKED and changes nothing (kvpool_region_data() is NULL, kvpool_close() and
//             kvpool_region_free() do nothing). The child may kvpool_connect() anew; the memory of
//             what it inherited goes with the process.
//   Restart   When the daemon went away, calls fail with KVPOOL_E_CONN; one that was in flight
//             may or may not have been carried out. Every further call tries to reconnect by
//             itself. If only the connection was lost, nothing else changed: handles stay valid,
//             steps open, for as long as the daemon's `session_grace` (30 s). If the session ended
//             (the daemon is a new instance, or gave the client up), sequences, steps and regions
//             are gone, and pool handles too if it is a new instance: the next call that takes a
//             handle answers KVPOOL_E_LOST, once, and later uses of an old one KVPOOL_E_STALE (a
//             step: KVPOOL_E_NOTFOUND). So on KVPOOL_E_LOST: open the pools, make regions and
//             sequences again.
//   Growth    Every public struct begins with `size`; set it to sizeof the struct (the *_INIT
//             macros do) so that older programs work with newer libraries. Zero means "default"
//             in every field unless it says otherwise.
//   Handles   kvpool_pool, kvpool_seq are values: index and generation. 0 is never valid. A stale
//             one is an error (KVPOOL_E_STALE), never another object; one of another client is
//             KVPOOL_E_PERM.
//
// Units: lengths and strides count *elements* or *tokens* as said; offsets and sizes count bytes.
#ifndef KVPOOL_KVPOOL_H
#define KVPOOL_KVPOOL_H

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

// ---------------------------------------------------------------------------------------------
// Pools

typedef enum kvpool_dtype {
    KVPOOL_FP16 = 1,
    KVPOOL_BF16 = 2,
    KVPOOL_FP32 = 3,
    KVPOOL_FP8_E4M3 = 4, // of a pool's pages only: see kv_dtype
} kvpool_dtype;

// How another process gets the daemon's memory.
typedef enum kvpool_export {
    KVPOOL_EXPORT_FD = 1,  // a file descriptor; the memory outlives the daemon while one is open
    KVPOOL_EXPORT_IPC = 2, // a CUDA IPC handle; the memory goes with the daemon
} kvpool_export;

#define KVPOOL_MAX_LAYERS 512
#define KVPOOL_MAX_KV_HEADS 256
#define KVPOOL_MAX_HEAD_DIM 576
#define KVPOOL_MIN_PAGE_SIZE 8
#define KVPOOL_MAX_PAGE_SIZE 256
#define KVPOOL_MAX_QO_HEADS 4096
#define KVPOOL_NAME_MAX 31

typedef struct kvpool_pool_config {
    size_t size;
    const char *name;     // 1..31 bytes of [A-Za-z0-9_.-]; unique in the daemon
    uint32_t layers;      // 1..512
    uint32_t kv_heads;    // 1..256
    uint32_t head_dim;    // a multiple of 8 up to 576
    uint32_t page_size;   // tokens a page: a power of two, 8..256
    uint32_t dtype;       // kvpool_dtype, of K, V, q and out
    uint32_t num_pages;   // one page holds page_size tokens of K and V in every layer
    uint32_t max_seqs;    // 0: the daemon's default
    uint32_t max_seq_len; // tokens; 0: num_pages * page_size
    uint32_t kv_dtype;    // kvpool_dtype that the pages hold K and V in: 0 (as dtype), or
                          // KVPOOL_FP8_E4M3: see "Attention"
    uint32_t export_as;   // kvpool_export of the pages; 0: the daemon's default (fd), and that of
                          // the pool if it exists
} kvpool_pool_config;
#define KVPOOL_POOL_CONFIG_INIT \
    { sizeof(kvpool_pool_config), NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

// Creates a pool, or opens it if one of that name and the same geometry, pages and limits exists
// (so that several workers can all "create"). A pool outlives its creator's connection.
// Errors: INVAL (the message names the field and the limit), EXISTS (same name, other properties),
// NOMEM (larger than the memory available; says how many bytes), AGAIN (as kvpool_region_create(): memory
// that was freed did not come back before the client's time-out), LIMIT, UNSUPPORTED (a kv_dtype,
// export or geometry that the daemon's backend has not, or a daemon that knows neither of the two).
KVPOOL_API kvpool_status kvpool_pool_create(kvpool_client *client, const kvpool_pool_config *config,
                                            kvpool_pool *ret_pool);

// Opens an existing pool by name. Errors: NOTFOUND, INVAL.
KVPOOL_API kvpool_status kvpool_pool_open(kvpool_client *client, const char *name,
                                          kvpool_pool *ret_pool);

// Removes a pool and gives its memory back. Errors: BUSY (sequences of any client exist), STALE.
KVPOOL_API kvpool_status kvpool_pool_destroy(kvpool_client *client, kvpool_pool pool);

typedef struct kvpool_pool_info {
    size_t size;
    kvpool_pool pool;
    char name[KVPOOL_NAME_MAX + 1];
    uint32_t layers, kv_heads, head_dim, page_size, dtype;
    uint32_t num_pages;
    uint32_t max_seqs;
    uint32_t max_seq_len;  // tokens
    uint32_t free_pages;   // neither used by a sequence nor cached
    uint32_t shared_pages; // pages that more than one sequence refers to
    uint32_t seqs;         // live sequences
    uint64_t bytes;        // of K and V memory, all layers
    uint32_t kv_dtype;     // kvpool_dtype of the pages; 0: as dtype
    uint32_t export_as;    // kvpool_export of the pages; 0: the daemon does not say
} kvpool_pool_info;

// Properties and occupancy of a pool. ret->size must be set. Errors: STALE, INVAL.
KVPOOL_API kvpool_status kvpool_pool_stat(kvpool_client *client, kvpool_pool pool,
                                          kvpool_pool_info *ret);

// ---------------------------------------------------------------------------------------------
// Regions and tensors

// Allocates `bytes` (rounded up to the system's page size) of memory shared with the daemon,
// zeroed, which CPU and the daemon's device both reach. Owned by the caller: kvpool_region_free().
// Where memory that was freed, by anybody, would do, and a busy device has not taken it back yet, it waits
// for that; for memory of the device also while the device is just taking some back.
// Errors: INVAL (0), NOMEM (nor would that do), LIMIT (per-client limits), AGAIN (it was not over before the
// client's time-out: nothing was made, and a later call may do).
KVPOOL_API kvpool_status kvpool_region_create(kvpool_client *client, uint64_t bytes,
                                              kvpool_region **ret_region);

typedef enum kvpool_place {
    KVPOOL_PLACE_HOST = 1,   // the CPU and the device reach it
    KVPOOL_PLACE_DEVICE = 2, // memory of the daemon's device; of the backend "cpu": as HOST
} kvpool_place;

typedef struct kvpool_region_args {
    size_t size;
    uint64_t bytes;     // 1 or more; rounded up to what the device allocates
    uint32_t place;     // kvpool_place; 0: DEVICE
    uint32_t export_as; // kvpool_export, how it comes to this process; 0: FD
} kvpool_region_args;
#define KVPOOL_REGION_ARGS_INIT \
    { sizeof(kvpool_region_args), 0, 0, 0 }

// The same with a choice of place and export, and with a handle: kvpool_region_export(). The memory
// is zeroed. A region that is exported by IPC shares whole blocks of 2 MiB: its bytes are rounded up
// to them.
// Errors: INVAL, NOMEM, LIMIT, AGAIN (as kvpool_region_create()), UNSUPPORTED (what the daemon's backend
// has not: IPC of host memory, or of "cpu"; a daemon without regions of device memory).
KVPOOL_API kvpool_status kvpool_region_alloc(kvpool_client *client, const kvpool_region_args *args,
                                             kvpool_region **ret_region);

// Makes a region of this process's own device memory, where it is (a tensor of PyTorch, say), so
// that nothing is copied. `device_ptr` need not be the start of its allocation: the library finds
// that, and sends the allocation's CUDA IPC handle and the offset.
//
// CUDA shares whole blocks of 2 MiB by IPC: small allocations that happen to lie in the same block
// become readable and writable for the daemon too. Allocate in multiples of 2 MiB to avoid it.
// The memory must stay allocated until kvpool_region_free() has returned KVPOOL_OK: then the daemon has
// closed its handle. After TIMEOUT or CONN the daemon may have it open as after kvpool_region_free() that
// returned one of these. What the process's own streams write into it must be complete (synchronized)
// before a request that reads it is sent.
//
// The process needs a CUDA driver and `device_ptr` must be of the daemon's device and a multiple of 4
// (of 16 for full speed): of a tensor that begins elsewhere register from before it, and give the rest
// as kvpool_tensor.offset. Errors: INVAL (no device memory, no multiple of 4, 0 bytes, more bytes than
// the allocation has from there; of another device),
// LIMIT, NOMEM, AGAIN (as kvpool_region_create(); or the daemon was still closing this memory when the
// time-out came), UNSUPPORTED (no CUDA driver; the daemon's backend is not cuda; memory that CUDA IPC
// cannot share: managed, of a memory pool (cudaMallocAsync), or of cuMemCreate, which is what
// PyTorch's "expandable segments" are: set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False, or
// use kvpool_region_alloc() and kvpool_region_device_ptr()).
KVPOOL_API kvpool_status kvpool_region_register(kvpool_client *client, const void *device_ptr,
                                                uint64_t bytes, kvpool_region **ret_region);

// What any other user of the memory opens it with.
typedef struct kvpool_region_handle {
    size_t size;
    uint32_t place;        // kvpool_place where it came to be: HOST when the CPU can map it
    uint32_t export_as;    // kvpool_export
    int32_t fd;            // FD: borrowed, valid until kvpool_region_free(): dup() it to keep or to
                           // send it. HOST: to be mmap()ed, DEVICE: for
                           // cuMemImportFromShareableHandle(). IPC: -1
    uint32_t reserved;     // 0
    unsigned char ipc[64]; // IPC: for cudaIpcOpenMemHandle(); else 0
    uint64_t offset;       // of the region in what the handle opens, bytes
    uint64_t bytes;        // of what the handle opens
} kvpool_region_handle;

// The handle of a region made by kvpool_region_alloc() or kvpool_region_register(). ret->size must
// be set. Errors: INVAL, STATE (of kvpool_region_create(), which keeps no descriptor), FORKED.
KVPOOL_API kvpool_status kvpool_region_export(kvpool_region *region, kvpool_region_handle *ret);

// Address of the region for kernels of this process, in the CUDA context that is current in the
// calling thread (with the CUDA runtime: call cudaFree(0) or any other call first). Mapped at the
// first call, valid until kvpool_region_free(). Host memory is registered with CUDA; memory of
// kvpool_region_register() is where it was.
// Errors: INVAL, FORKED, UNSUPPORTED (no CUDA driver), STATE (no current context; or mapped already
// in another one), BACKEND (CUDA cannot map it there: the message says which call failed and how).
KVPOOL_API kvpool_status kvpool_region_device_ptr(kvpool_region *region, void **ret_ptr);

// Address in this process (page aligned; NULL: memory that the CPU does not reach), and size in
// bytes (after rounding). Valid until kvpool_region_free(), also when the daemon has gone. NULL and
// 0 in a forked child.
KVPOOL_API void *kvpool_region_data(const kvpool_region *region);
KVPOOL_API uint64_t kvpool_region_size(const kvpool_region *region);

// Unmaps and frees, whatever it returns: `region` is gone. Requests in flight that name it finish first in
// the daemon. NULL is ignored. kvpool_close() frees the regions that are left: not to be called after it.
// No kernel of this process may still use its device address, whose context must still exist.
//
// Memory of kvpool_region_register() is the caller's to free when this has returned KVPOOL_OK: the daemon
// has closed its handle, or keeps it for another region of the same allocation only. That waits for requests
// in flight that name it, and may wait for everybody's work on the device; other calls of this client that
// make or free regions wait with it. After an error the daemon may still have the memory open, and what
// freeing it then does CUDA leaves undefined.
// Errors (for registered memory; for other memory KVPOOL_OK): TIMEOUT, CONN, NOMEM (of the daemon): it closes
// the memory later, at the latest after the session's end. To know when, register the memory once more, with
// no request in flight that names the old region, and free the new one: KVPOOL_OK then holds for both.
// STALE: the region is of an earlier session; the daemon has closed it, or does so soon. FORKED, for any.
KVPOOL_API kvpool_status kvpool_region_free(kvpool_region *region);

// A tensor [tokens][heads][head_dim] inside a region. Element (t, h, d) is at
//     offset + ((t * token_stride) + (h * head_stride) + d) * element size
// Both strides count elements. 0 means dense: head_stride = head_dim, token_stride = heads *
// head_stride. For `lse`, an fp32 tensor [tokens][qo_heads], dense is head_stride = 1, token_stride
// = qo_heads. `offset` must be a multiple of the element size.
typedef struct kvpool_tensor {
    kvpool_region *region; // NULL: no tensor
    uint64_t offset;       // bytes
    uint64_t token_stride; // elements
    uint64_t head_stride;  // elements
} kvpool_tensor;

// ---------------------------------------------------------------------------------------------
// Sequences

// Creates n empty sequences in a pool, owned by this client: all or none. n in 1..max_batch.
// Errors: STALE, LIMIT (max_seqs), INVAL.
KVPOOL_API kvpool_status kvpool_seq_create(kvpool_client *client, kvpool_pool pool, uint32_t n,
                                           kvpool_seq *ret_seqs);

// Makes n copies of a sequence's committed tokens: all or none. No data is copied: all pages are
// shared by reference count, and a partial last page is copied when either side first appends.
// Errors: STALE, PERM, BUSY (in an open step), LIMIT, INVAL.
KVPOOL_API kvpool_status kvpool_seq_fork(kvpool_client *client, kvpool_seq seq, uint32_t n,
                                         kvpool_seq *ret_seqs);

// Takes tokens back: the sequence then has `length` tokens (0..its length). Pages that no other
// sequence shares are free at once.
// Errors: INVAL (longer than the sequence), STALE, PERM, BUSY (in an open step, or a batch in
// flight).
KVPOOL_API kvpool_status kvpool_seq_truncate(kvpool_client *client, kvpool_seq seq,
                                             uint32_t length);

// Frees n sequences: all or none. Errors: STALE, PERM, BUSY, INVAL (a duplicate in the list).
KVPOOL_API kvpool_status kvpool_seq_free(kvpool_client *client, uint32_t n, const kvpool_seq *seqs);

// How much a sequence's pages are worth keeping once nobody uses them: pages of a lower class are
// evicted before all pages of a higher one. A page has the highest class of the sequences that let go
// of it.
typedef enum kvpool_priority {
    KVPOOL_PRIORITY_LOW = 0,
    KVPOOL_PRIORITY_NORMAL = 1,
    KVPOOL_PRIORITY_HIGH = 2,
} kvpool_priority;

typedef enum kvpool_free_hint {
    KVPOOL_FREE_KEEP = 0, // sealed pages stay cached until the space is needed (as kvpool_seq_free)
    KVPOOL_FREE_DROP = 1, // sealed pages that nobody else uses or continues are free at once
} kvpool_free_hint;

// kvpool_seq_free with a hint. Errors: as there; INVAL (hint), UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_seq_release(kvpool_client *client, uint32_t n,
                                            const kvpool_seq *seqs, kvpool_free_hint hint);

// Errors: STALE, PERM, INVAL, UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_seq_set_priority(kvpool_client *client, kvpool_seq seq,
                                                 kvpool_priority priority);

// ---------------------------------------------------------------------------------------------
// Prefix sharing
//
// When a sequence's tokens are known by id (kvpool_step_args.tokens) every page that becomes full is
// *sealed* at commit: immutable, and found by the tokens up to its end. Any client of the pool (and
// of the same namespace: the daemon's operator says who that is) that opens a sequence on the same
// tokens gets those pages, once in memory, whoever computed them. Sealed pages stay cached after
// their sequences, until the space is needed.
//
// The K and V of a token must depend on nothing but the tokens up to it (and `extra`): what computes
// them otherwise (another LoRA, an image behind a placeholder token) gives its id or hash as `extra`,
// or uses token ids made from it.

#define KVPOOL_EXTRA_MAX 64
#define KVPOOL_MAX_TOKENS 262144 // of one call; of a longer prompt the first ones are looked up

typedef struct kvpool_open_args {
    size_t size;
    kvpool_pool pool;
    const uint32_t *tokens; // [n], the prompt
    uint32_t n;
    uint32_t priority;   // kvpool_priority; KVPOOL_OPEN_ARGS_INIT: normal
    const void *extra;   // key material of the whole sequence, extra_size bytes; NULL: none
    uint32_t extra_size; // at most KVPOOL_EXTRA_MAX
    uint32_t flags;      // 0
} kvpool_open_args;
#define KVPOOL_OPEN_ARGS_INIT \
    { sizeof(kvpool_open_args), 0, NULL, 0, KVPOOL_PRIORITY_NORMAL, NULL, 0, 0 }

// Makes a sequence that begins with as much of `tokens` as is cached, in whole pages: *ret_matched
// tokens (0 or more; at most n). The rest is the caller's to compute: steps append it. To have at
// least one token to compute (its output is the next token's), give all but the last.
// Errors: STALE, LIMIT (max_seqs), INVAL (more tokens than the pool's max_seq_len, key material too
// long, priority), PERM (the pool's access list), UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_seq_open_with(kvpool_client *client, const kvpool_open_args *args,
                                              kvpool_seq *ret_seq, uint32_t *ret_matched);

// The same, but makes no sequence (*ret_seq is 0) when nothing matches. With ret_seq NULL it only
// looks: nothing is held, so a later call may find less.
KVPOOL_API kvpool_status kvpool_seq_match(kvpool_client *client, const kvpool_open_args *args,
                                          kvpool_seq *ret_seq, uint32_t *ret_matched);

// Keeps the sealed pages of the sequence's first `tokens` tokens (0: all of them) in the cache for
// ttl_ms (1 or more), whatever becomes of the sequence and of this client: for a system prompt. They
// count as in use. *ret_tokens (may be NULL): how many tokens that are. *ret_pin (may be NULL) ends
// it earlier; any client of the namespace may do that.
// Errors: STALE, PERM, STATE (no sealed page), LIMIT (the namespace's share of max_pins), INVAL, UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_prefix_pin(kvpool_client *client, kvpool_seq seq, uint32_t tokens,
                                           uint32_t ttl_ms, uint64_t *ret_pin,
                                           uint32_t *ret_tokens);
KVPOOL_API kvpool_status kvpool_prefix_unpin(kvpool_client *client, kvpool_pool pool, uint64_t pin);

// Drops every cached page of this client's namespace that nothing uses (when a model's weights
// change). ret_pages (may be NULL): how many. Errors: STALE, PERM, UNSUPPORTED.
KVPOOL_API kvpool_status kvpool_cache_clear(kvpool_client *client, kvpool_pool pool,
                                            uint32_t *ret_pages);

typedef struct kvpool_seq_info {
    size_t size;
    kvpool_seq seq;
    kvpool_pool pool;
    uint32_t length;       // committed tokens
    uint32_t pages;        // of the committed tokens
    uint32_t shared_pages; // of those, shared with other sequences
    uint32_t in_step;      // 1 while an open step has it
    uint32_t owner_pid;
    uint32_t reserved;
} kvpool_seq_info;

// Properties of one's own sequence. ret->size must be set. Errors: STALE, PERM.
KVPOOL_API kvpool_status kvpool_seq_stat(kvpool_client *client, kvpool_seq seq,
                                         kvpool_seq_info *ret);

// ---------------------------------------------------------------------------------------------
// Steps

typedef struct kvpool_step_args {
    size_t size;
    kvpool_pool pool;
    uint32_t n;                 // sequences, 1..max_batch
    uint32_t flags;             // 0
    const kvpool_seq *seqs;     // [n], each once
    const uint32_t *new_tokens; // [n], 0 or more each; their prefix sums are the step's qo_indptr
    kvpool_step step; // 0: the library chooses; else repeats a begin by its id (idempotent)
    const uint32_t
        *tokens; // ids of all new tokens, sequence after sequence; NULL: not known. At most
                 // KVPOOL_MAX_TOKENS. See "Prefix sharing"
} kvpool_step_args;
#define KVPOOL_STEP_ARGS_INIT \
    { sizeof(kvpool_step_args), 0, 0, 0, NULL, NULL, 0, NULL }

// Opens a step: reserves every page that the new tokens need, or none. A sequence is in at most one
// open step. ret_missing_pages (may be NULL) is written on KVPOOL_E_NOSPACE only: how many more
// free pages the step needs. Errors: NOSPACE, STALE, PERM, BUSY (a sequence is in another step),
// INVAL (empty batch, duplicate sequence, sequence of another pool, longer than max_seq_len, too many
// tokens with ids), LIMIT (open steps), TOOBIG, EXISTS (the id is open with another batch), STATE (the
// id is already finished), UNSUPPORTED (ids for a daemon without prefix sharing).
KVPOOL_API kvpool_status kvpool_step_begin(kvpool_client *client, const kvpool_step_args *args,
                                           kvpool_step *ret_step, uint64_t *ret_missing_pages);

// Makes the step's tokens part of its sequences. Waits in the daemon for the step's own requests in
// flight. Every layer must have been appended to. Committing a committed step again is KVPOOL_OK.
// Errors: STATE (a layer was not appended, or one of its appends failed: the step stays open),
// ABORTED, NOTFOUND.
KVPOOL_API kvpool_status kvpool_step_commit(kvpool_client *client, kvpool_step step);

// Gives the reserved pages back; the sequences are as before begin. Aborting an aborted step again
// is KVPOOL_OK. Errors: STATE (already committed), NOTFOUND.
KVPOOL_API kvpool_status kvpool_step_abort(kvpool_client *client, kvpool_step step);

// ---------------------------------------------------------------------------------------------
// Attention
//
// One layer of one batch. Of sequence i, let q_len be its number of query tokens and kv_len its
// length including the new tokens of an open step. Query j (0..q_len-1) stands at position
// p = kv_len - q_len + j; it sees key position s when
//     s < kv_len,  s <= p if causal,  s >= p - window_left if window_left >= 0
// and, for query head h with key head h / (qo_heads / kv_heads),
//     logit = sm_scale * (q . k);  if soft_cap > 0: logit = soft_cap * tanh(logit / soft_cap)
//     out = sum(softmax(logit) * v);  lse = ln(sum(exp(logit)))
// A query that sees nothing (kv_len 0, or p < 0 when causal) gives out = 0 and lse = -infinity.
//
// Sinks ("attention sinks"): with `sinks` the softmax of every row of query head h has one logit
// more, sinks[h], used as it is (neither scaled nor capped), that has no value:
//     out = sum(exp(logit) * v) / (exp(sinks[h]) + sum(exp(logit)))
//     lse = ln(exp(sinks[h]) + sum(exp(logit)))
// A query that sees nothing then gives out = 0 and lse = sinks[h].
//
// A pool with kv_dtype KVPOOL_FP8_E4M3 stores x as the e4m3 number nearest to x / scale (ties to
// even), at most +-448 (an infinity too); a NaN stays one. What is read back is that number times
// the scale. The scales of K and V are k_scale and v_scale, or one for each K/V head in kv_scales;
// they must be the same in every request on the same tokens, which the daemon does not check.
//
// The same inputs give the same bits. With KVPOOL_ATTN_BATCH_INVARIANT a sequence's bits also do not
// depend on which other sequences are in the batch; that may cost speed, and memory of the device:
// where there is none left for it the request fails with NOMEM.
//
// Softmax is computed online (Milakov & Gimelshein, "Online normalizer calculation for softmax",
// 2018), accumulated in fp32; the KV pages are read in place ("paged attention", Kwon et al.,
// 2023).

#define KVPOOL_ATTN_CAUSAL 1u          // flag: causal mask
#define KVPOOL_ATTN_BATCH_INVARIANT 2u // flag: bits do not depend on the rest of the batch

typedef struct kvpool_attn_args {
    size_t size;
    kvpool_step step;       // an open step: its batch, its new tokens as queries; or 0:
    kvpool_pool pool;       //   attention alone over a batch of committed sequences of this pool,
    uint32_t n;             //   n of them (1..max_batch),
    uint32_t layer;         // (0..layers-1)
    const kvpool_seq *seqs; //   [n], each once,
    const uint32_t *q_len;  //   [n] query tokens each; their prefix sums are qo_indptr
    uint32_t qo_heads;      // query heads, a multiple of kv_heads, at most 4096
    uint32_t flags;         // KVPOOL_ATTN_*
    float sm_scale;         // > 0 and finite; 0: 1/sqrt(head_dim)
    float soft_cap;         // 0: none; else > 0 and finite
    int32_t window_left;    // tokens to the left that are seen besides the own; -1: all
    uint32_t reserved;      // 0
    kvpool_tensor q;        // in, [tokens][qo_heads][head_dim]
    kvpool_tensor k;        // in, [tokens][kv_heads][head_dim]; region NULL: no append
    kvpool_tensor v;        // in, as k; given or not given together with it
    kvpool_tensor out;      // out, as q; must overlap none of the others
    kvpool_tensor lse;      // out, fp32 [tokens][qo_heads]; region NULL: not wanted
    float k_scale, v_scale; // of an fp8 pool, > 0 and finite; 0: 1
    kvpool_tensor
        kv_scales;       // of an fp8 pool, in, fp32 [2][kv_heads]: of K, then of V, each > 0 and
                         // finite, instead of the two above; region NULL: none
    kvpool_tensor sinks; // in, fp32 [qo_heads]; region NULL: none. The strides of this and of
                         // kv_scales are 0: they are dense
} kvpool_attn_args;
#define KVPOOL_ATTN_ARGS_INIT \
    { .size = sizeof(kvpool_attn_args), .flags = KVPOOL_ATTN_CAUSAL, .window_left = -1 }

// Appends K and V of one layer's new tokens of an open step, without attention. Uses step, layer,
// k and v, and the scales of an fp8 pool; q, out, lse and sinks must be absent. Repeating a layer
// overwrites it.
// Errors: as kvpool_prefill.
KVPOOL_API kvpool_status kvpool_append(kvpool_client *client, const kvpool_attn_args *args);

// Append (when k and v are given, which needs a step) and attention of one layer; any q_len.
// kvpool_decode is the same for at most 8 query tokens per sequence (its kernels are made for it).
// Errors, all decided before any work: INVAL (sm_scale NaN or negative, head counts that do not
// divide, a layer out of range, a tensor that leaves its region, is misaligned or overlaps an
// output, unknown flags, empty batch, duplicate sequence; a scale NaN or negative, scales for a pool
// that is not fp8), STALE, PERM (another client's sequence,
// region), NOTFOUND (no such step), BUSY (a sequence without this step while in one), AGAIN,
// TOOBIG, BACKEND, UNSUPPORTED (scales, sinks or BATCH_INVARIANT for a daemon that knows none).
// Not before: NOMEM (BATCH_INVARIANT, and the device has no memory for it: out and lse hold nothing
// certain, and the rest is done: k and v are appended, the step can be committed. The call may be
// repeated, or made without the flag).
KVPOOL_API kvpool_status kvpool_prefill(kvpool_client *client, const kvpool_attn_args *args);
KVPOOL_API kvpool_status kvpool_decode(kvpool_client *client, const kvpool_attn_args *args);

// ---------------------------------------------------------------------------------------------
// Many requests in flight

typedef enum kvpool_op_kind {
    KVPOOL_OP_APPEND = 1,  // attn
    KVPOOL_OP_PREFILL = 2, // attn
    KVPOOL_OP_DECODE = 3,  // attn
    KVPOOL_OP_BEGIN = 4,   // begin, whose `step` must not be 0: use kvpool_step_id()
    KVPOOL_OP_COMMIT = 5,  // step
    KVPOOL_OP_ABORT = 6,   // step
} kvpool_op_kind;

typedef struct kvpool_request {
    size_t size;
    uint32_t kind;  // kvpool_op_kind
    uint32_t flags; // 0
    const kvpool_attn_args *attn;
    const kvpool_step_args *begin;
    kvpool_step step;
} kvpool_request;

// A step id never used before by this client, so that a whole step can be submitted without
// waiting. 0 on an error (client NULL, or of the parent process).
KVPOOL_API kvpool_step kvpool_step_id(kvpool_client *client);

// Sends a request and returns at once; its arguments may be reused, its tensors must stay until it
// is done. A whole step (begin, every layer, commit) may be in flight; what follows a failed begin
// fails with NOTFOUND. The op is owned by the caller until kvpool_wait() returns something other
// than KVPOOL_E_TIMEOUT for it. Errors: those that can be decided here (INVAL, TOOBIG), AGAIN
// (max_inflight reached: wait for an op first), CONN, LOST, TIMEOUT (the daemon reads nothing).
KVPOOL_API kvpool_status kvpool_submit(kvpool_client *client, const kvpool_request *request,
                                       kvpool_op **ret_op);

// Waits for one op at most timeout_ms (0: just look; UINT32_MAX: the client's time-out), and
// returns the request's own status, after which the op is gone. KVPOOL_E_TIMEOUT: not done yet, the
// op is still the caller's. One thread at a time may wait for one op.
KVPOOL_API kvpool_status kvpool_wait(kvpool_client *client, kvpool_op *op, uint32_t timeout_ms);

// ---------------------------------------------------------------------------------------------
// Observation (what `kvpool status` shows). None of it can fail a step or block other clients.

typedef struct kvpool_stats {
    size_t size;
    uint64_t uptime_ns;
    uint64_t epoch;
    uint32_t pid;
    uint32_t pools, seqs, steps, clients, regions; // live objects
    uint32_t queue_depth;                          // requests accepted and not yet answered
    uint64_t requests;                             // answered since the start
    uint64_t errors;                               // of those, answered with an error
    uint64_t appends, prefills, decodes, commits, aborts;
    uint64_t tokens;          // committed since the start
    uint64_t sessions_died;   // clients that ended without saying so
    uint64_t relistens;       // listener re-created by the self-probe
    uint64_t leaked_pipes;    // connections that are over and NNG keeps
    double requests_per_s;    // over the last second
    uint64_t reclaim_last_ns; // death of the last died client to its pages being free
    uint64_t reclaim_max_ns;
} kvpool_stats;

typedef struct kvpool_client_info {
    size_t size;
    uint32_t pid, uid;
    uint32_t seqs, steps, regions, inflight;
    uint64_t region_bytes;
    uint64_t requests;
    char name[KVPOOL_NAME_MAX + 1];
} kvpool_client_info;

// What one namespace of a pool has and did. Hits and misses count tokens of kvpool_seq_open_with and
// kvpool_seq_match that were found, and not found.
typedef struct kvpool_usage {
    size_t size;
    char name[KVPOOL_NAME_MAX + 1];
    char group[KVPOOL_NAME_MAX + 1]; // namespaces of one group share; "": this one with nobody
    uint32_t num_pages, free_pages;  // of the whole pool
    uint32_t reserve, limit, weight; // pages, pages (0: no limit), share of what is borrowed
    uint32_t active, cached;         // pages in use, and kept until the space is needed
    uint32_t seqs;
    uint64_t hit_tokens, miss_tokens;
    uint64_t sealed, deduplicated, evicted, dropped; // pages
    uint64_t refused;                                // requests that got KVPOOL_E_NOSPACE
} kvpool_usage;

// Counters of the daemon. ret->size must be set.
KVPOOL_API kvpool_status kvpool_get_stats(kvpool_client *client, kvpool_stats *ret);

// Lists. The caller gives an array of `cap` (1 or more) structs, each with `size` set; ret_n is how
// many were written. `cursor` starts as 0 and is advanced; the list is complete when *ret_n < cap.
// Objects made or freed between calls may be missed or shown; no object is shown twice. After an
// error the array's contents are unspecified.
KVPOOL_API kvpool_status kvpool_list_pools(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                           kvpool_pool_info *ret, uint32_t *ret_n);
KVPOOL_API kvpool_status kvpool_list_seqs(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                          kvpool_seq_info *ret, uint32_t *ret_n);
// One's own namespace; root and the daemon's user see all.
KVPOOL_API kvpool_status kvpool_list_usage(kvpool_client *client, kvpool_pool pool,
                                           uint32_t *cursor, uint32_t cap, kvpool_usage *ret,
                                           uint32_t *ret_n);
KVPOOL_API kvpool_status kvpool_list_clients(kvpool_client *client, uint32_t *cursor, uint32_t cap,
                                             kvpool_client_info *ret, uint32_t *ret_n);

#ifdef __cplusplus
}
#endif
#endif // KVPOOL_KVPOOL_H
