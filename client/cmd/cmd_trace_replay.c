// SPDX-License-Identifier: Apache-2.0
// cmd_trace_replay.c: `kvpool trace replay FILE`: drives the daemon with a trace, reports hit rate and
// latency.
// Thread: main, and those of replay.c.
#include "client/cmd/format.h"
#include "client/cmd/json.h"
#include "client/cmd/replay.h"
#include "client/cmd/trace_cmd.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define MOONCAKE_BLOCK 512u
#define MAX_WORKERS 256u

enum {
    KEY_LAYERS = 0x300,
    KEY_KV_HEADS,
    KEY_HEAD_DIM,
    KEY_DTYPE,
    KEY_PAGES,
    KEY_PAGE_SIZE,
    KEY_BLOCK_SIZE,
    KEY_CHUNK,
    KEY_SPEED,
    KEY_LIMIT,
    KEY_CHECK
};

struct replay_line {
    struct cmd_globals *globals;
    const char *path, *pool;
    kvpool_pool_config config; // of a private pool
    char own_name[KVPOOL_NAME_MAX + 1];
    bool geometry; // an option of it was given
    uint32_t workers, chunk, limit, block_size;
    double speed;
    bool check;
};

static const struct argp_option options[] = {
    {"pool", 'p', "NAME", 0, "An existing pool (default: one of its own, removed afterwards)", 0},
    {"pages", KEY_PAGES, "N", 0, "Own pool: number of pages (default 4096)", 0},
    {"page-size", KEY_PAGE_SIZE, "N", 0, "Own pool: tokens of a page (default 16)", 0},
    {"layers", KEY_LAYERS, "N", 0, "Own pool: layers (default 1)", 0},
    {"kv-heads", KEY_KV_HEADS, "N", 0, "Own pool: key/value heads (default 1)", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "Own pool: elements of a head (default 8)", 0},
    {"dtype", KEY_DTYPE, "TYPE", 0, "Own pool: fp16 (default), bf16 or fp32", 0},
    {"workers", 'w', "W", 0, "Clients at once, 1..256 (default 1)", 0},
    {"speed", KEY_SPEED, "X", 0, "Times the trace's own speed (default 0: as fast as possible)", 0},
    {"limit", KEY_LIMIT, "N", 0, "Only the first N requests", 0},
    {"chunk", KEY_CHUNK, "N", 0, "Tokens of one step at most (default 512)", 0},
    {"check", KEY_CHECK, NULL, 0,
     "Compute attention over each whole sequence, and compare it with what it must be", 0},
    {"block-size", KEY_BLOCK_SIZE, "B", 0,
     "Tokens for each hash id, where a line does not say it (default 512, Mooncake's)", 0},
    {0}};

static uint32_t *number_of(struct replay_line *line, int key, uint32_t *ret_max) {
    *ret_max = UINT32_MAX;
    switch (key) {
    case KEY_LAYERS:
        return &line->config.layers;
    case KEY_KV_HEADS:
        return &line->config.kv_heads;
    case KEY_HEAD_DIM:
        return &line->config.head_dim;
    case KEY_PAGES:
        return &line->config.num_pages;
    case KEY_PAGE_SIZE:
        return &line->config.page_size;
    case 'w':
        *ret_max = MAX_WORKERS;
        return &line->workers;
    case KEY_CHUNK:
        *ret_max = 65536;
        return &line->chunk;
    case KEY_LIMIT:
        return &line->limit;
    case KEY_BLOCK_SIZE:
        *ret_max = TRACE_LINE_MAX_TOKENS;
        return &line->block_size;
    default:
        return NULL;
    }
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct replay_line *line = state->input;
    uint32_t max = 0;
    uint32_t *number = number_of(line, key, &max);
    line->geometry |= key >= KEY_LAYERS && key <= KEY_PAGE_SIZE;
    if (number != NULL) {
        if (!parse_u32(arg, 1, max, number)) {
            argp_error(state, "'%s' is not a number in 1..%" PRIu32, arg, max);
        }
        return 0;
    }
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 'p':
        line->pool = arg;
        return 0;
    case KEY_DTYPE:
        if (!dtype_parse(arg, &line->config.dtype) || line->config.dtype == KVPOOL_FP8_E4M3) {
            argp_error(state, "--dtype: '%s' is none of fp16, bf16, fp32", arg);
        }
        return 0;
    case KEY_CHECK:
        line->check = true;
        return 0;
    case KEY_SPEED:
        if (!parse_double(arg, 0, 1e9, &line->speed)) {
            argp_error(state, "--speed: '%s' is not a number of 0 or more", arg);
        }
        return 0;
    case ARGP_KEY_END:
        if (line->pool != NULL && line->geometry) {
            argp_error(state, "--pool has its own geometry");
        }
        return trace_file_argument(key, arg, state, &line->path);
    default:
        return trace_file_argument(key, arg, state, &line->path);
    }
}

static double hit_rate(const struct replay_result *r) {
    return r->input > 0 ? (double)r->hit / (double)r->input : 0;
}

static void print_json(const struct replay_line *line, const struct trace_file *file,
                       const struct replay_result *r) {
    struct json j = json_start(stdout);
    json_object(&j, NULL);
    json_str(&j, "file", line->path);
    json_u64(&j, "lines", file->n);
    json_u64(&j, "requests", r->requests);
    json_u64(&j, "errors", r->errors);
    json_u64(&j, "input_tokens", r->input);
    json_u64(&j, "looked_up_tokens", r->looked_up);
    json_u64(&j, "hit_tokens", r->hit);
    json_num(&j, "hit_rate", hit_rate(r));
    json_u64(&j, "output_tokens", r->output);
    json_u64(&j, "mismatches", r->wrong);
    json_u64(&j, "again", r->again);
    json_u64(&j, "nospace", r->nospace);
    json_num(&j, "seconds", r->seconds);
    json_num(&j, "open_p50_us", r->open_p50_us);
    json_num(&j, "open_p99_us", r->open_p99_us);
    json_num(&j, "request_p50_us", r->request_p50_us);
    json_num(&j, "request_p99_us", r->request_p99_us);
    json_str(&j, "first_error", r->first_error[0] != 0 ? r->first_error : NULL);
    json_end(&j);
    json_finish(&j);
}

static void print(const struct trace_file *file, const struct replay_result *r) {
    char text[4][FORMAT_SIZE];
    if (file->dropped > 0) {
        printf("trace      %s lines were dropped when it was recorded\n",
               format_count(file->dropped, text[0]));
    }
    printf("requests   %" PRIu64 " of %zu in %.1f s, %" PRIu64 " errors\n", r->requests, file->n,
           r->seconds, r->errors);
    printf("input      %s tokens, %s of them found in the cache: hit rate %.2f%%\n",
           format_count(r->input, text[0]), format_count(r->hit, text[1]), 100 * hit_rate(r));
    printf("output     %s tokens\n", format_count(r->output, text[0]));
    printf("open       p50 %s, p99 %s\n", format_us(r->open_p50_us, text[0]),
           format_us(r->open_p99_us, text[1]));
    printf("request    p50 %s, p99 %s\n", format_us(r->request_p50_us, text[0]),
           format_us(r->request_p99_us, text[1]));
    printf("retries    %s after AGAIN, %s lines begun again after NOSPACE\n",
           format_count(r->again, text[0]), format_count(r->nospace, text[1]));
}

// The pool to run on, and its properties. *ret_own: to be destroyed afterwards.
static kvpool_status open_pool(kvpool_client *client, struct replay_line *line,
                               kvpool_pool_info *ret, bool *ret_own) {
    kvpool_pool pool = 0;
    kvpool_status status = KVPOOL_OK;
    if (line->pool != NULL) {
        status = kvpool_pool_open(client, line->pool, &pool);
    } else {
        snprintf(line->own_name, sizeof(line->own_name), "replay-%ld", (long)getpid());
        line->config.name = line->own_name;
        status = kvpool_pool_create(client, &line->config, &pool);
        *ret_own = status == KVPOOL_OK;
    }
    return status != KVPOOL_OK ? status : kvpool_pool_stat(client, pool, ret);
}

// Returns the exit status.
static int report(const struct replay_line *line, const struct trace_file *file,
                  const struct replay_result *r) {
    char plain[sizeof(r->first_error)];
    if (line->globals->json) {
        print_json(line, file, r);
    } else {
        print(file, r);
    }
    if (r->errors > 0) {
        fprintf(stderr, "kvpool: %" PRIu64 " requests failed, the first: %s\n", r->errors,
                format_plain(r->first_error, plain, sizeof(plain)));
    }
    if (r->wrong > 0) {
        fprintf(stderr, "kvpool: attention over %" PRIu64 " sequences is wrong\n", r->wrong);
    }
    if (trace_interrupted) {
        fprintf(stderr, "kvpool: interrupted\n");
    }
    return r->errors > 0 || r->wrong > 0 || trace_interrupted ? 1 : 0;
}

int trace_replay(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "FILE",
        .doc = "Drives the daemon with the sequences of a trace, recorded, generated or public "
               "(Mooncake's format), and reports hit rate and latency. Token ids are made from the "
               "hash ids; K and V are written, attention is computed with --check only. FILE - is "
               "standard input.\vExamples:\n"
               "  kvpool trace replay load.jsonl --pages 8192\n"
               "  kvpool trace replay conversation_trace.jsonl --limit 1000 --pages 200000 -w 8\n"
               "  kvpool trace replay load.jsonl --pool llama --speed 2 --json",
        .children = cmd_global_child};
    struct replay_line line = {.globals = globals,
                               .config = KVPOOL_POOL_CONFIG_INIT,
                               .workers = 1,
                               .chunk = 512,
                               .block_size = MOONCAKE_BLOCK};
    kvpool_client *client = NULL;
    struct trace_file file = {0};
    struct replay_result result = {0};
    struct replay_args args = {.connect = KVPOOL_CONNECT_ARGS_INIT,
                               .pool = {.size = sizeof(args.pool)},
                               .file = &file,
                               .stop = &trace_interrupted};
    bool own = false;
    int rc = 1;
    line.config.layers = 1;
    line.config.kv_heads = 1;
    line.config.head_dim = 8;
    line.config.page_size = 16;
    line.config.dtype = KVPOOL_FP16;
    line.config.num_pages = 4096;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (!trace_file_read(line.path, line.block_size, line.limit, &file)) {
        return 1;
    }
    if (cmd_connect(globals, "kvpool-replay", &client) != 0) {
        goto free_file;
    }
    trace_catch_signals(); // the pool must be removed: it would outlive this process
    if (open_pool(client, &line, &args.pool, &own) != KVPOOL_OK) {
        cmd_fail(client, "cannot set up the pool");
        goto close;
    }
    args.connect.dir = globals->dir;
    args.connect.name = "kvpool-replay";
    args.connect.timeout_ms = globals->timeout_ms;
    args.workers = line.workers;
    args.chunk = line.chunk;
    args.speed = line.speed;
    args.check = line.check;
    rc = replay_run(&args, &result);
    if (rc == 0) {
        rc = report(&line, &file, &result);
    }
close:
    if (own && kvpool_pool_destroy(client, args.pool.pool) != KVPOOL_OK) {
        rc = cmd_fail(client, "cannot remove the pool");
    }
    kvpool_close(client);
free_file:
    trace_file_free(&file);
    return rc;
}
