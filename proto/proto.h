// SPDX-License-Identifier: Apache-2.0
// proto.h: the wire protocol between libkvpool and kvpoold. PROTOCOL.md draws every message.
//
// Two Unix sockets in one directory:
//   kvpool.sock   NNG REQ/REP (ipc transport): one message a request, one a reply
//   fd.sock       SOCK_SEQPACKET: opens the session and carries file descriptors (SCM_RIGHTS)
// Both carry the same framing: a 32-byte header, a fixed body struct of the op, then `count`
// records, then `num_tokens` token ids (u32) where the op has any.
//
// Invariants
//  1. Little-endian, naturally aligned structs without implicit padding; sizes asserted below.
//  2. header.len is exactly the number of bytes after the header.
//  3. Unknown flags and non-zero reserved fields are refused (KVPOOL_E_PROTO), so that they can be
//     given a meaning later. Ops and fields are never reordered or renumbered.
//  4. proto_parse_request/reply are the only code that reads untrusted bytes; what they return is
//     checked for form (sizes, counts, flags, strings terminated), not for meaning.
//  5. A count is checked against its limit before it is multiplied.
//  6. Nothing here allocates, logs, or does I/O. Any thread; no state.
#ifndef KVPOOL_PROTO_PROTO_H
#define KVPOOL_PROTO_PROTO_H

#include "proto/err.h"

#include <string.h>

#define PROTO_MAGIC 0x3150564Bu // bytes "KVP1"
#define PROTO_VERSION_MIN 1u
#define PROTO_VERSION_MAX 1u
// Optional abilities; the session has the AND of both sides.
#define PROTO_FEATURE_PREFIX 1ull // ops 22 to 29: prefix sharing
#define PROTO_FEATURE_RESUME 2ull // FD_OPEN: credentials, and sessions that outlive a connection
#define PROTO_FEATURE_TRACE 4ull  // TRACE
#define PROTO_FEATURE_DEVICE 8ull // ops 30, 31, 38, 39; pool_info: kv_dtype and export
#define PROTO_FEATURES \
    (PROTO_FEATURE_PREFIX | PROTO_FEATURE_RESUME | PROTO_FEATURE_TRACE | PROTO_FEATURE_DEVICE)
#define PROTO_CONTROL_SOCKET "kvpool.sock"
#define PROTO_FD_SOCKET "fd.sock"
#define PROTO_TOKEN_SIZE 16
#define PROTO_NAME_SIZE 32       // names on the wire, terminated and zero-padded
#define PROTO_MAX_BATCH 1024u    // records in one request
#define PROTO_MAX_MESSAGE 65536u // bytes with header, both directions, both sockets, without tokens
#define PROTO_MAX_TOKENS 262144u // token ids in one request
// Bytes with header of a request with tokens: what the control socket takes at most. The daemon keeps
// one message a slot and one on its way in for each connection: (slots + connections) x this.
#define PROTO_MAX_REQUEST (PROTO_MAX_MESSAGE + 4u * PROTO_MAX_TOKENS)
#define PROTO_IPC_SIZE 64        // bytes of a CUDA IPC handle
#define PROTO_REGION_ALIGN 4     // of a client's own memory, bytes: as the widest element
#define PROTO_EXTRA_MAX 64u      // bytes of key material of a sequence
#define PROTO_CREDENTIAL_SIZE 96 // on the wire, terminated and zero-padded
#define PROTO_MAX_LIST 256u      // records in one list reply
#define PROTO_DECODE_MAX_Q 8u

// X(NAME, number, body struct, reply struct, socket): every op. Bodies with records: see each
// struct.
enum proto_op {
    PROTO_HELLO = 1, // proto_hello -> proto_hello_reply            (control)
    PROTO_PING = 2,  // proto_ping -> proto_ping                    (control, session optional)
    PROTO_STATS = 3, // no body -> proto_stats                      (control)
    PROTO_POOL_CREATE = 4,   // proto_pool_create -> proto_handle
    PROTO_POOL_OPEN = 5,     // proto_name -> proto_handle
    PROTO_POOL_DESTROY = 6,  // proto_handle -> no body
    PROTO_POOL_STAT = 7,     // proto_handle -> proto_pool_info
    PROTO_POOL_LIST = 8,     // proto_list -> proto_list_reply + n x proto_pool_info
    PROTO_SEQ_CREATE = 9,    // proto_seq_create -> proto_count + n x u64
    PROTO_SEQ_FORK = 10,     // proto_seq_fork -> proto_count + n x u64
    PROTO_SEQ_TRUNCATE = 11, // proto_seq_truncate -> no body
    PROTO_SEQ_FREE = 12,     // proto_count + n x u64 -> no body
    PROTO_SEQ_STAT = 13,     // proto_handle -> proto_seq_info
    PROTO_SEQ_LIST = 14,     // proto_list -> proto_list_reply + n x proto_seq_info
    PROTO_STEP_BEGIN = 15,   // proto_step_begin + n x proto_batch_item -> proto_step_reply
    PROTO_STEP_COMMIT = 16,  // proto_handle (step id) -> proto_step_reply
    PROTO_STEP_ABORT = 17,   // proto_handle (step id) -> no body
    PROTO_APPEND = 18,       // proto_attn -> no body
    PROTO_PREFILL = 19,      // proto_attn + n x proto_batch_item -> no body
    PROTO_DECODE = 20,       // proto_attn + n x proto_batch_item -> no body
    PROTO_CLIENT_LIST = 21,  // proto_list -> proto_list_reply + n x proto_client_info
    PROTO_SEQ_OPEN = 22,     // proto_seq_open + num_tokens x u32 -> proto_seq_open_reply
    PROTO_STEP_BEGIN_TOKENS =
        23,                    // proto_step_begin_tokens + n x proto_batch_item + num_tokens x u32
                               // -> proto_step_reply
    PROTO_SEQ_RELEASE = 24,    // proto_seq_release + n x u64 -> no body     (SEQ_FREE with a hint)
    PROTO_SEQ_PRIORITY = 25,   // proto_seq_priority -> no body
    PROTO_PREFIX_PIN = 26,     // proto_prefix_pin -> proto_prefix_pin_reply
    PROTO_PREFIX_UNPIN = 27,   // proto_prefix_unpin -> no body
    PROTO_POOL_USAGE = 28,     // proto_pool_usage -> proto_list_reply + n x proto_ns_info
    PROTO_CACHE_CLEAR = 29,    // proto_handle (pool) -> proto_cleared      (one's own namespace)
    PROTO_POOL_CREATE_AS = 30, // proto_pool_create_as -> proto_handle
    PROTO_ATTEND = 31,   // proto_attend + n x proto_batch_item -> no body  (18 to 20 with options)
    PROTO_FD_HELLO = 32, // proto_fd_hello -> proto_fd_hello_reply      (fd socket)
    PROTO_REGION_CREATE = 33, // proto_region_create -> proto_region_reply + 1 fd (fd socket)
    PROTO_REGION_FREE = 34,   // proto_handle -> no body                    (fd socket)
    PROTO_BYE = 35,           // no body -> no body, then the daemon closes  (fd socket)
    PROTO_FD_OPEN = 36,       // proto_fd_open -> proto_fd_hello_reply       (fd socket)
    PROTO_TRACE = 37,         // proto_trace -> proto_trace_reply + 1 fd     (fd socket)
    PROTO_REGION_ALLOC = 38, // proto_region_alloc -> proto_region_handle + at most 1 fd (fd socket)
    PROTO_REGION_REGISTER = 39, // proto_region_register -> proto_region_reply (fd socket)
};

// 32 bytes before every body. In a request `status` is 0; in a reply it is the request's status,
// `op` and `seq` are the request's, and a status other than 0 makes the body a proto_error.
struct proto_header {
    uint32_t magic;  // PROTO_MAGIC
    uint8_t version; // agreed by HELLO; HELLO itself: 1
    uint8_t flags;   // 0
    uint16_t op;     // enum proto_op
    uint32_t len;    // bytes after the header
    int32_t status;  // kvpool_status
    uint64_t seq;    // requests of one connection: 1, 2, 3 ..., started in that order; 0: unordered
    uint64_t epoch;  // request: the epoch the client believes in, 0 = none yet; reply: the daemon's
};

struct proto_error { // body of every reply with status != 0
    uint64_t detail; // E_NOSPACE: pages missing. E_AGAIN: nanoseconds after which to try again
    char text[ERR_TEXT_MAX];
};

struct proto_fd_hello {
    uint32_t version_min, version_max;
    uint64_t features;
    char name[PROTO_NAME_SIZE]; // of the client, for people
};
struct proto_fd_hello_reply {
    uint32_t version; // agreed
    uint32_t pid;     // of the daemon
    uint64_t features;
    uint64_t session;                // handle
    uint8_t token[PROTO_TOKEN_SIZE]; // secret: binds the control connection to the session
    uint64_t epoch;
};

// FD_HELLO for a session that was begun on another connection (session and token of its reply), or
// with a credential, or both.
struct proto_fd_open {
    uint32_t version_min, version_max;
    uint64_t features;
    char name[PROTO_NAME_SIZE];
    uint64_t session;                       // 0: a new one, then token is 0
    uint8_t token[PROTO_TOKEN_SIZE];        // of that session
    char credential[PROTO_CREDENTIAL_SIZE]; // "": none. With a session: ignored
};
// The daemon writes a trace of its requests (docs/operations.md) into the pipe whose read end comes
// with the reply, until that is closed. For root and the daemon's own user.
struct proto_trace {
    uint32_t flags; // PROTO_TRACE_*
    uint32_t reserved;
};
#define PROTO_TRACE_TOKENS 1u // with token ids
#define PROTO_TRACE_KNOWN PROTO_TRACE_TOKENS
struct proto_trace_reply {
    uint64_t started_ns; // CLOCK_REALTIME
};

struct proto_hello {
    uint32_t version_min, version_max;
    uint64_t features;
    uint64_t session; // from FD_HELLO
    uint8_t token[PROTO_TOKEN_SIZE];
};
struct proto_hello_reply {
    uint32_t version;
    uint32_t pid;
    uint64_t features;
    uint64_t max_message;
    uint32_t max_batch;
    uint32_t max_inflight;
    char daemon_version[PROTO_NAME_SIZE];
    char backend[16];
};

struct proto_ping {
    uint64_t payload;
};
struct proto_handle {
    uint64_t handle;
};
struct proto_name {
    char name[PROTO_NAME_SIZE];
};
struct proto_count {
    uint32_t count; // records that follow, each a u64 handle
    uint32_t reserved;
};
struct proto_list {
    uint32_t cursor; // 0 first; then what the last reply said
    uint32_t max;    // records wanted, 1..PROTO_MAX_LIST
};
struct proto_list_reply {
    uint32_t count;
    uint32_t cursor;
};

struct proto_pool_create {
    char name[PROTO_NAME_SIZE];
    uint32_t layers, kv_heads, head_dim, page_size, dtype, num_pages, max_seqs, max_seq_len;
};
struct proto_pool_create_as { // the properties that POOL_CREATE has no field for
    struct proto_pool_create create;
    uint32_t kv_dtype; // kvpool_dtype of the pages; 0: as dtype
    uint32_t export;   // kvpool_export; 0: the daemon's default, or what an existing pool has
};
struct proto_pool_info {
    uint64_t pool;
    char name[PROTO_NAME_SIZE];
    uint32_t layers, kv_heads, head_dim, page_size, dtype, num_pages, max_seqs, max_seq_len;
    uint32_t free_pages, shared_pages, seqs;
    uint16_t kv_dtype, export; // of the feature DEVICE; without it 0
    uint64_t bytes;
};

struct proto_seq_create {
    uint64_t pool;
    uint32_t n, reserved;
};
struct proto_seq_fork {
    uint64_t seq;
    uint32_t n, reserved;
};
struct proto_seq_truncate {
    uint64_t seq;
    uint32_t length, reserved;
};
struct proto_seq_info {
    uint64_t seq, pool;
    uint32_t length, pages, shared_pages, in_step, owner_pid, reserved;
};

struct proto_batch_item {
    uint64_t seq;
    uint32_t tokens; // new tokens (begin) or query tokens (attention)
    uint32_t reserved;
};
struct proto_step_begin {
    uint64_t pool;
    uint64_t step;  // id chosen by the client, not 0
    uint32_t count; // records: proto_batch_item
    uint32_t flags; // 0
};
struct proto_step_reply {
    uint64_t step;
    uint32_t tokens; // of the whole step
    uint32_t pages;  // begin: reserved; commit: added
};

struct proto_seq_open {
    uint64_t pool;
    uint32_t num_tokens;            // that follow: 0..PROTO_MAX_TOKENS
    uint32_t flags;                 // PROTO_OPEN_*
    uint32_t priority;              // kvpool_priority
    uint32_t extra_size;            // 0..PROTO_EXTRA_MAX
    uint8_t extra[PROTO_EXTRA_MAX]; // zero-padded
};
#define PROTO_OPEN_PROBE 1u   // only say how many tokens match; no sequence
#define PROTO_OPEN_MATCHED 2u // no sequence when nothing matches
#define PROTO_OPEN_KNOWN (PROTO_OPEN_PROBE | PROTO_OPEN_MATCHED)
struct proto_seq_open_reply {
    uint64_t seq;     // 0: none was made
    uint32_t matched; // tokens: its length
    uint32_t reserved;
};
struct proto_step_begin_tokens {
    uint64_t pool;
    uint64_t step;       // not 0
    uint32_t count;      // records: proto_batch_item
    uint32_t num_tokens; // the sum of their tokens, 0..PROTO_MAX_TOKENS
};
struct proto_seq_release {
    uint32_t count; // records: u64 handles
    uint32_t hint;  // kvpool_free_hint
};
struct proto_seq_priority {
    uint64_t seq;
    uint32_t priority, reserved;
};
struct proto_prefix_pin {
    uint64_t seq;
    uint32_t tokens; // 0: all that is sealed
    uint32_t ttl_ms; // 1..
};
struct proto_prefix_pin_reply {
    uint64_t pin;
    uint32_t tokens; // that are pinned
    uint32_t reserved;
};
struct proto_prefix_unpin {
    uint64_t pool, pin;
};
struct proto_pool_usage {
    uint64_t pool;
    uint32_t cursor, max; // as in proto_list
};
struct proto_ns_info { // of one's own namespace; of all, for root and the daemon's own user
    char name[PROTO_NAME_SIZE];
    char group[PROTO_NAME_SIZE];
    uint32_t num_pages, free_pages; // of the pool
    uint32_t reserve, limit, weight;
    uint32_t active, cached, seqs; // pages, pages, sequences
    uint64_t hit_tokens, miss_tokens, sealed, deduplicated, evicted, dropped, refused;
};
struct proto_cleared {
    uint32_t pages, reserved;
};

struct proto_tensor {
    uint64_t region;                    // handle, 0: no tensor (then all fields are 0)
    uint64_t offset;                    // bytes
    uint64_t token_stride, head_stride; // elements, not 0 (the library fills in dense ones)
};
struct proto_attn {
    uint64_t step;  // id, or 0: attention alone over the records
    uint64_t pool;  // with step 0; else 0
    uint32_t count; // records: proto_batch_item; 0 with a step
    uint32_t layer;
    uint32_t qo_heads;   // 0 for APPEND
    uint32_t flags;      // KVPOOL_ATTN_*
    float sm_scale;      // as given: meaning is checked by the daemon; 0 for APPEND
    float soft_cap;      // 0 for APPEND
    int32_t window_left; // 0 for APPEND
    uint32_t reserved;
    struct proto_tensor q, k, v, out, lse; // q, out and lse: none for APPEND
};

// Dense numbers (fp32) in a region.
struct proto_array {
    uint64_t region; // handle, 0: none (then offset is 0)
    uint64_t offset; // bytes
};
// An APPEND, PREFILL or DECODE with more options.
struct proto_attend {
    struct proto_attn attn; // its flags: also KVPOOL_ATTN_BATCH_INVARIANT
    uint32_t op;            // PROTO_APPEND, PROTO_PREFILL, PROTO_DECODE
    uint32_t reserved;
    float k_scale, v_scale;       // of an fp8 pool; 0: 1
    struct proto_array kv_scales; // of an fp8 pool: [2][kv_heads], instead of the two above
    struct proto_array sinks;     // [qo_heads]; none for APPEND
};

struct proto_region_create {
    uint64_t bytes;
};
struct proto_region_reply {
    uint64_t region; // handle
    uint64_t bytes;  // rounded up
};
struct proto_region_alloc {
    uint64_t bytes;
    uint32_t place;  // kvpool_place
    uint32_t export; // kvpool_export
};
struct proto_region_handle {
    uint64_t region;             // handle
    uint64_t bytes;              // rounded up
    uint32_t place;              // where it came to be: KVPOOL_PLACE_HOST when a CPU can map it
    uint32_t export;             // KVPOOL_EXPORT_FD: a descriptor comes with the reply
    uint64_t offset;             // of the region in what descriptor or handle open
    uint64_t handle_bytes;       // of what they open
    uint8_t ipc[PROTO_IPC_SIZE]; // KVPOOL_EXPORT_IPC: the handle; else 0
};
struct proto_region_register { // the client's own device memory
    uint64_t bytes;
    uint64_t offset;       // of the region in what the handle opens; PROTO_REGION_ALIGN
    uint64_t handle_bytes; // of what the handle opens
    uint8_t ipc[PROTO_IPC_SIZE];
};

struct proto_stats {
    uint64_t uptime_ns;
    uint32_t pid, pools, seqs, steps, clients, regions, queue_depth, reserved;
    uint64_t requests, errors, appends, prefills, decodes, commits, aborts, tokens;
    uint64_t sessions_died, relistens, leaked_pipes;
    double requests_per_s;
    uint64_t reclaim_last_ns, reclaim_max_ns;
};
struct proto_client_info {
    uint32_t pid, uid, seqs, steps, regions, inflight;
    uint64_t region_bytes, requests;
    char name[PROTO_NAME_SIZE];
};

#define PROTO_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)
PROTO_SIZE(proto_header, 32);
PROTO_SIZE(proto_error, 208);
PROTO_SIZE(proto_fd_hello, 48);
PROTO_SIZE(proto_fd_hello_reply, 48);
PROTO_SIZE(proto_hello, 40);
PROTO_SIZE(proto_hello_reply, 80);
PROTO_SIZE(proto_ping, 8);
PROTO_SIZE(proto_handle, 8);
PROTO_SIZE(proto_name, 32);
PROTO_SIZE(proto_count, 8);
PROTO_SIZE(proto_list, 8);
PROTO_SIZE(proto_list_reply, 8);
PROTO_SIZE(proto_pool_create, 64);
PROTO_SIZE(proto_pool_create_as, 72);
PROTO_SIZE(proto_pool_info, 96);
PROTO_SIZE(proto_seq_create, 16);
PROTO_SIZE(proto_seq_fork, 16);
PROTO_SIZE(proto_seq_truncate, 16);
PROTO_SIZE(proto_seq_info, 40);
PROTO_SIZE(proto_batch_item, 16);
PROTO_SIZE(proto_step_begin, 24);
PROTO_SIZE(proto_step_reply, 16);
PROTO_SIZE(proto_fd_open, 168);
PROTO_SIZE(proto_trace, 8);
PROTO_SIZE(proto_trace_reply, 8);
PROTO_SIZE(proto_seq_open, 88);
PROTO_SIZE(proto_seq_open_reply, 16);
PROTO_SIZE(proto_step_begin_tokens, 24);
PROTO_SIZE(proto_seq_release, 8);
PROTO_SIZE(proto_seq_priority, 16);
PROTO_SIZE(proto_prefix_pin, 16);
PROTO_SIZE(proto_prefix_pin_reply, 16);
PROTO_SIZE(proto_prefix_unpin, 16);
PROTO_SIZE(proto_pool_usage, 16);
PROTO_SIZE(proto_ns_info, 152);
PROTO_SIZE(proto_cleared, 8);
PROTO_SIZE(proto_tensor, 32);
PROTO_SIZE(proto_attn, 208);
PROTO_SIZE(proto_array, 16);
PROTO_SIZE(proto_attend, 256);
PROTO_SIZE(proto_region_create, 8);
PROTO_SIZE(proto_region_reply, 16);
PROTO_SIZE(proto_region_alloc, 16);
PROTO_SIZE(proto_region_handle, 104);
PROTO_SIZE(proto_region_register, 88);
PROTO_SIZE(proto_stats, 152);
PROTO_SIZE(proto_client_info, 72);
#undef PROTO_SIZE

// A checked request or reply: header and body are copies, records stay where the message is (and
// are not aligned: read them with proto_record()).
struct proto_msg {
    struct proto_header header;
    union {
        struct proto_error error; // replies with status != 0
        struct proto_fd_hello fd_hello;
        struct proto_fd_hello_reply fd_hello_reply;
        struct proto_hello hello;
        struct proto_hello_reply hello_reply;
        struct proto_ping ping;
        struct proto_handle handle;
        struct proto_name name;
        struct proto_count count;
        struct proto_list list;
        struct proto_list_reply list_reply;
        struct proto_pool_create pool_create;
        struct proto_pool_create_as pool_create_as;
        struct proto_pool_info pool_info;
        struct proto_seq_create seq_create;
        struct proto_seq_fork seq_fork;
        struct proto_seq_truncate seq_truncate;
        struct proto_seq_info seq_info;
        struct proto_step_begin step_begin;
        struct proto_step_reply step_reply;
        struct proto_attn attn;
        struct proto_attend attend;
        struct proto_region_create region_create;
        struct proto_region_reply region_reply;
        struct proto_region_alloc region_alloc;
        struct proto_region_handle region_handle;
        struct proto_region_register region_register;
        struct proto_stats stats;
        struct proto_client_info client_info;
        struct proto_fd_open fd_open;
        struct proto_trace trace;
        struct proto_trace_reply trace_reply;
        struct proto_seq_open seq_open;
        struct proto_seq_open_reply seq_open_reply;
        struct proto_step_begin_tokens step_begin_tokens;
        struct proto_seq_release seq_release;
        struct proto_seq_priority seq_priority;
        struct proto_prefix_pin prefix_pin;
        struct proto_prefix_pin_reply prefix_pin_reply;
        struct proto_prefix_unpin prefix_unpin;
        struct proto_pool_usage pool_usage;
        struct proto_cleared cleared;
    } body;
    const uint8_t *records; // count * record_size bytes inside the message
    uint32_t count;
    uint32_t record_size;
    const uint8_t *tokens; // 4 * num_tokens bytes behind the records, not aligned
    uint32_t num_tokens;
};

// Copies the message's token ids into ret[msg->num_tokens].
static inline void proto_tokens(const struct proto_msg *msg, uint32_t *ret) {
    if (msg->num_tokens > 0) {
        memcpy(ret, msg->tokens, (size_t)msg->num_tokens * sizeof *ret);
    }
}

// Copies record i (< msg->count) into *ret, which has msg->record_size bytes.
static inline void proto_record(const struct proto_msg *msg, uint32_t i, void *ret) {
    memcpy(ret, msg->records + (size_t)i * msg->record_size, msg->record_size);
}

enum proto_socket { PROTO_ON_CONTROL, PROTO_ON_FD };

// Checks a whole request as received on one of the sockets. On an error *ret_header_ok says whether
// ret->header was readable (so that the reply can carry op and seq); the rest of *ret is undefined.
// Errors: PROTO (short, bad magic, op not of this socket, length that does not match, flags,
// reserved, unterminated name, fields that contradict each other), VERSION (a version that this
// build does not speak), TOOBIG (message or count over its limit), UNSUPPORTED (unknown op).
int proto_parse_request(enum proto_socket socket, const void *bytes, size_t len,
                        struct proto_msg *ret, bool *ret_header_ok, struct err *err);

// Checks a whole reply to a request of `op`. A reply with status != 0 parses to body.error; its
// header's op may be 0: the daemon could not read the request.
// Errors: PROTO, VERSION.
int proto_parse_reply(uint16_t op, const void *bytes, size_t len, struct proto_msg *ret,
                      struct err *err);

// Bytes of a request's / successful reply's fixed body and of one record of it (0: none).
// Returns false for an unknown op.
bool proto_request_shape(uint16_t op, size_t *ret_body, size_t *ret_record);
bool proto_reply_shape(uint16_t op, size_t *ret_body, size_t *ret_record);

// Static name of an op, "?" when unknown. For logs and traces.
const char *proto_op_name(uint16_t op);

// Writes header + body (body_len bytes, may be 0) + records (records_len bytes) into buf and
// returns the total, or 0 when it does not fit into cap or PROTO_MAX_MESSAGE. header->magic, len
// are filled in.
size_t proto_write(void *buf, size_t cap, const struct proto_header *header, const void *body,
                   size_t body_len, const void *records, size_t records_len);
// The same, with token ids behind the records; at most PROTO_MAX_REQUEST bytes.
size_t proto_write_tokens(void *buf, size_t cap, const struct proto_header *header,
                          const void *body, size_t body_len, const void *records,
                          size_t records_len, const uint32_t *tokens, uint32_t num_tokens);

// The header of a reply to `request` (which may be NULL: unreadable request) with `status`.
struct proto_header proto_reply_header(const struct proto_header *request, int status,
                                       uint64_t epoch);

// Writes an error reply (header + proto_error made of err). Returns the total, 0 if it does not
// fit.
size_t proto_write_error(void *buf, size_t cap, const struct proto_header *request, uint64_t epoch,
                         const struct err *err);

#endif
