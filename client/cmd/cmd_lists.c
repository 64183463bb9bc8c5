// SPDX-License-Identifier: Apache-2.0
// cmd_lists.c: `kvpool status`, `sequences`, `clients`, `pools` and `version`: ask once, print.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/format.h"
#include "client/cmd/lists.h"
#include "client/cmd/view.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cmd_status(int argc, char **argv, struct cmd_globals *globals) {
    static const char doc[] =
        "What the daemon does now: load, objects, work done since its start, and its pools (used, "
        "free and shared pages).\vExamples:\n"
        "  kvpool status\n"
        "  kvpool status --json | jq '.pools[] | {name, free_pages}'";
    kvpool_client *client = NULL;
    struct view view;
    int rc = 1;
    cmd_parse_plain(doc, argc, argv, globals);
    if (cmd_connect(globals, "kvpool-status", &client) != 0) {
        return 1;
    }
    if (view_fetch(client, cmd_dir(globals), &view) != KVPOOL_OK) {
        cmd_fail(client, "cannot read the status");
        goto out;
    }
    if (globals->json) {
        view_json_status(&view, stdout);
    } else {
        view_print_status(&view, stdout);
    }
    view_free(&view);
    rc = 0;
out:
    kvpool_close(client);
    return rc;
}

struct sequences_line {
    struct cmd_globals *globals;
    const char *pool;
};

static error_t parse_sequences(int key, char *arg, struct argp_state *state) {
    struct sequences_line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case 'p':
        line->pool = arg;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int cmd_sequences(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp_option options[] = {
        {"pool", 'p', "NAME", 0, "Only the sequences of this pool", 0}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_sequences,
        .doc = "Lists the sequences: handle, pool, committed length, pages, how many of them are "
               "shared with other sequences, the process that owns it, and whether an open step "
               "has it.\vExamples:\n"
               "  kvpool sequences\n"
               "  kvpool sequences --pool llama --json",
        .children = cmd_global_child};
    struct sequences_line line = {globals, NULL};
    kvpool_client *client = NULL;
    kvpool_pool_info *pools = NULL;
    kvpool_seq_info *seqs = NULL;
    uint32_t num_pools = 0;
    uint32_t n = 0;
    kvpool_pool only = 0;
    int rc = 1;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (cmd_connect(globals, "kvpool-sequences", &client) != 0) {
        return 1;
    }
    if (list_pools(client, &pools, &num_pools) != KVPOOL_OK ||
        list_seqs(client, &seqs, &n) != KVPOOL_OK) {
        cmd_fail(client, "cannot list the sequences");
        goto out;
    }
    for (uint32_t i = 0; line.pool != NULL && i < num_pools; i++) {
        if (strcmp(pools[i].name, line.pool) == 0) {
            only = pools[i].pool;
        }
    }
    if (line.pool != NULL && only == 0) {
        fprintf(stderr, "kvpool: no pool '%s' (kvpool pools lists them)\n", line.pool);
        goto out;
    }
    if (globals->json) {
        struct json j = json_start(stdout);
        json_seqs(&j, NULL, seqs, n, pools, num_pools, only);
        json_finish(&j);
    } else {
        print_seqs(seqs, n, pools, num_pools, only, stdout);
    }
    rc = 0;
out:
    free(seqs);
    free(pools);
    kvpool_close(client);
    return rc;
}

int cmd_clients(int argc, char **argv, struct cmd_globals *globals) {
    static const char doc[] =
        "Lists the connected clients: process, user, what they hold, requests in flight and "
        "answered so far.\vExamples:\n"
        "  kvpool clients\n"
        "  kvpool clients --json | jq '.[].pid'";
    kvpool_client *client = NULL;
    kvpool_client_info *clients = NULL;
    uint32_t n = 0;
    int rc = 1;
    cmd_parse_plain(doc, argc, argv, globals);
    if (cmd_connect(globals, "kvpool-clients", &client) != 0) {
        return 1;
    }
    if (list_clients(client, &clients, &n) != KVPOOL_OK) {
        cmd_fail(client, "cannot list the clients");
        goto out;
    }
    if (globals->json) {
        struct json j = json_start(stdout);
        json_clients(&j, NULL, clients, n);
        json_finish(&j);
    } else {
        print_clients(clients, n, stdout);
    }
    rc = 0;
out:
    free(clients);
    kvpool_close(client);
    return rc;
}

int cmd_pools(int argc, char **argv, struct cmd_globals *globals) {
    static const char doc[] =
        "Lists the pools: geometry (layers x kv_heads x head_dim / page_size), dtype, pages and "
        "memory.\vExamples:\n"
        "  kvpool pools\n"
        "  kvpool pools --json";
    kvpool_client *client = NULL;
    kvpool_pool_info *pools = NULL;
    uint32_t n = 0;
    int rc = 1;
    cmd_parse_plain(doc, argc, argv, globals);
    if (cmd_connect(globals, "kvpool-pools", &client) != 0) {
        return 1;
    }
    if (list_pools(client, &pools, &n) != KVPOOL_OK) {
        cmd_fail(client, "cannot list the pools");
        goto out;
    }
    if (globals->json) {
        struct json j = json_start(stdout);
        json_pools(&j, NULL, pools, n);
        json_finish(&j);
    } else {
        print_pools(pools, n, stdout);
    }
    rc = 0;
out:
    free(pools);
    kvpool_close(client);
    return rc;
}

int cmd_version(int argc, char **argv, struct cmd_globals *globals) {
    static const char doc[] =
        "Prints the version of the library and, when a daemon answers, the daemon's.\vExamples:\n"
        "  kvpool version\n"
        "  kvpool version --json";
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    kvpool_daemon_info info = {.size = sizeof(info)};
    kvpool_client *client = NULL;
    bool reached = false;
    cmd_parse_plain(doc, argc, argv, globals);
    args.dir = globals->dir;
    args.name = "kvpool-version";
    args.timeout_ms = globals->timeout_ms == 0 ? 1000 : globals->timeout_ms;
    if (kvpool_connect(&args, &client) == KVPOOL_OK) {
        reached = kvpool_daemon(client, &info) == KVPOOL_OK;
        kvpool_close(client);
    }
    if (globals->json) {
        struct json j = json_start(stdout);
        json_object(&j, NULL);
        json_str(&j, "library_version", kvpool_version());
        json_str(&j, "version", reached ? info.version : NULL);
        json_str(&j, "backend", reached ? info.backend : NULL);
        json_end(&j);
        json_finish(&j);
    } else if (reached) {
        char version[sizeof(info.version)];
        char backend[sizeof(info.backend)];
        printf("kvpool %s\nkvpoold %s (%s, protocol %" PRIu32 ")\n", kvpool_version(),
               format_plain(info.version, version, sizeof(version)),
               format_plain(info.backend, backend, sizeof(backend)), info.protocol);
    } else {
        printf("kvpool %s\nkvpoold: not reached in %s\n", kvpool_version(), cmd_dir(globals));
    }
    return 0;
}
