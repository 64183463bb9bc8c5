// SPDX-License-Identifier: Apache-2.0
// cmd_pool.c: `kvpool pool create NAME ...` and `kvpool pool destroy NAME`.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/format.h"
#include "client/cmd/lists.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum {
    KEY_LAYERS = 0x200,
    KEY_KV_HEADS,
    KEY_HEAD_DIM,
    KEY_PAGE_SIZE,
    KEY_DTYPE,
    KEY_KV_DTYPE,
    KEY_EXPORT,
    KEY_PAGES,
    KEY_MEMORY,
    KEY_MAX_SEQS,
    KEY_MAX_SEQ_LEN
};

struct pool_line {
    struct cmd_globals *globals;
    kvpool_pool_config config;
    const char *action;
    uint64_t memory; // --memory, 0: --pages says it
    bool geometry;   // an option of create was given
};

// The numbers of a pool. Their limits are the daemon's: its message names field and limit.
static uint32_t *number_of(struct pool_line *line, int key) {
    switch (key) {
    case KEY_LAYERS:
        return &line->config.layers;
    case KEY_KV_HEADS:
        return &line->config.kv_heads;
    case KEY_HEAD_DIM:
        return &line->config.head_dim;
    case KEY_PAGE_SIZE:
        return &line->config.page_size;
    case KEY_PAGES:
        return &line->config.num_pages;
    case KEY_MAX_SEQS:
        return &line->config.max_seqs;
    case KEY_MAX_SEQ_LEN:
        return &line->config.max_seq_len;
    default:
        return NULL;
    }
}

static void check(struct pool_line *line, struct argp_state *state) {
    const kvpool_pool_config *c = &line->config;
    if (line->action == NULL || c->name == NULL) {
        argp_error(state, "needs an action and a name: create NAME, or destroy NAME");
        return;
    }
    if (strcmp(line->action, "destroy") == 0) {
        if (line->geometry) {
            argp_error(state, "destroy takes a name and no geometry");
        }
        return;
    }
    if (c->layers == 0 || c->kv_heads == 0 || c->head_dim == 0) {
        argp_error(state, "create needs --layers, --kv-heads and --head-dim");
    }
    if ((c->num_pages == 0) == (line->memory == 0)) {
        argp_error(state, "create needs one of --pages and --memory");
    }
}

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct pool_line *line = state->input;
    uint32_t *number = number_of(line, key);
    if (number != NULL) {
        line->geometry = true;
        if (!parse_u32(arg, 1, UINT32_MAX, number)) {
            argp_error(state, "'%s' is not a number in 1..%" PRIu32, arg, UINT32_MAX);
        }
        return 0;
    }
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case KEY_DTYPE:
        line->geometry = true;
        if (!dtype_parse(arg, &line->config.dtype) || line->config.dtype == KVPOOL_FP8_E4M3) {
            argp_error(state, "--dtype: '%s' is none of fp16, bf16, fp32", arg);
        }
        return 0;
    case KEY_KV_DTYPE:
        line->geometry = true;
        if (!dtype_parse(arg, &line->config.kv_dtype)) {
            argp_error(state, "--kv-dtype: '%s' is neither fp8_e4m3 nor the --dtype", arg);
        }
        return 0;
    case KEY_EXPORT:
        line->geometry = true;
        if (!export_parse(arg, &line->config.export_as)) {
            argp_error(state, "--export: '%s' is none of fd, ipc", arg);
        }
        return 0;
    case KEY_MEMORY:
        line->geometry = true;
        if (!parse_bytes(arg, &line->memory) || line->memory == 0) {
            argp_error(state, "--memory: '%s' is not a size, e.g. 512M or 4G", arg);
        }
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0 && (strcmp(arg, "create") == 0 || strcmp(arg, "destroy") == 0)) {
            line->action = arg;
        } else if (state->arg_num == 1) {
            line->config.name = arg;
        } else {
            argp_error(state, "unexpected argument '%s'", arg);
        }
        return 0;
    case ARGP_KEY_END:
        check(line, state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"layers", KEY_LAYERS, "N", 0, "Layers of the model, 1..512", 0},
    {"kv-heads", KEY_KV_HEADS, "N", 0, "Key/value heads of a layer, 1..256", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "Elements of a head: a multiple of 8 up to 576", 0},
    {"page-size", KEY_PAGE_SIZE, "N", 0, "Tokens of a page: a power of two, 8..256 (default 16)",
     0},
    {"dtype", KEY_DTYPE, "TYPE", 0, "fp16, bf16 (default) or fp32", 0},
    {"kv-dtype", KEY_KV_DTYPE, "TYPE", 0, "Of the pages: fp8_e4m3 (default: as --dtype)", 0},
    {"export", KEY_EXPORT, "HOW", 0,
     "Of the pages to other processes: fd or ipc (default: the daemon's, fd)", 0},
    {"pages", KEY_PAGES, "N", 0, "Number of pages", 0},
    {"memory", KEY_MEMORY, "SIZE", 0, "As many pages as fit, e.g. 512M or 4G", 0},
    {"max-seqs", KEY_MAX_SEQS, "N", 0, "Sequences at once (default: the daemon's)", 0},
    {"max-seq-len", KEY_MAX_SEQ_LEN, "N", 0, "Tokens of one sequence (default: all pages)", 0},
    {0}};

static int create(kvpool_client *client, struct pool_line *line) {
    kvpool_pool_config *c = &line->config;
    kvpool_pool_info info = {.size = sizeof(info)};
    kvpool_pool pool = 0;
    if (line->memory != 0) {
        // K and V of one token in every layer
        uint32_t element = dtype_bytes(c->kv_dtype != 0 ? c->kv_dtype : c->dtype);
        double token = 2.0 * c->layers * c->kv_heads * c->head_dim * element;
        double pages = (double)line->memory / (token * c->page_size);
        if (pages < 1 || pages > (double)UINT32_MAX) {
            fprintf(stderr, "kvpool: --memory: that is %.0f pages of %.0f bytes\n", pages,
                    token * c->page_size);
            return 1;
        }
        c->num_pages = (uint32_t)pages;
    }
    if (kvpool_pool_create(client, c, &pool) != KVPOOL_OK ||
        kvpool_pool_stat(client, pool, &info) != KVPOOL_OK) {
        return cmd_fail(client, "cannot create the pool");
    }
    if (line->globals->json) {
        struct json j = json_start(stdout);
        json_pools(&j, NULL, &info, 1);
        json_finish(&j);
    } else {
        print_pools(&info, 1, stdout);
    }
    return 0;
}

static int destroy(kvpool_client *client, const struct pool_line *line) {
    kvpool_pool pool = 0;
    if (kvpool_pool_open(client, line->config.name, &pool) != KVPOOL_OK ||
        kvpool_pool_destroy(client, pool) != KVPOOL_OK) {
        return cmd_fail(client, "cannot destroy the pool");
    }
    return 0;
}

int cmd_pool(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "create NAME\ndestroy NAME",
        .doc = "Creates a pool, the pages of one KV geometry, or destroys one. Creating one that "
               "exists with the same properties does nothing; a pool with sequences cannot be "
               "destroyed.\vExamples:\n"
               "  kvpool pool create llama --layers 32 --kv-heads 8 --head-dim 128 --memory 4G\n"
               "  kvpool pool destroy llama",
        .children = cmd_global_child};
    struct pool_line line = {.globals = globals, .config = KVPOOL_POOL_CONFIG_INIT};
    kvpool_client *client = NULL;
    int rc = 1;
    line.config.page_size = 16;
    line.config.dtype = KVPOOL_BF16;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (cmd_connect(globals, "kvpool-pool", &client) != 0) {
        return 1;
    }
    rc = strcmp(line.action, "create") == 0 ? create(client, &line) : destroy(client, &line);
    kvpool_close(client);
    return rc;
}
