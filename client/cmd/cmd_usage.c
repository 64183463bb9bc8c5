// SPDX-License-Identifier: Apache-2.0
// cmd_usage.c: `kvpool usage [POOL]`: the namespaces of one pool, or of all.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/lists.h"
#include "client/cmd/usage.h"

#include <stdlib.h>
#include <string.h>

struct usage_line {
    struct cmd_globals *globals;
    const char *pool; // NULL: all
};

static error_t parse(int key, char *arg, struct argp_state *state) {
    struct usage_line *line = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = line->globals;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0) {
            argp_error(state, "unexpected argument '%s'", arg);
        }
        line->pool = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

// The namespaces of all pools, one table or array a pool after another.
static int show(kvpool_client *client, const struct usage_line *line, const kvpool_pool_info *pools,
                uint32_t n) {
    struct json j = json_start(stdout);
    bool found = line->pool == NULL;
    int rc = 0;
    if (line->globals->json) {
        json_array(&j, NULL);
    }
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        kvpool_usage *usage = NULL;
        uint32_t got = 0;
        if (line->pool != NULL && strcmp(line->pool, pools[i].name) != 0) {
            continue;
        }
        found = true;
        if (list_usage(client, pools[i].pool, &usage, &got) != KVPOOL_OK) {
            rc = cmd_fail(client, "cannot list the usage");
        } else if (!line->globals->json) {
            print_usage(pools[i].name, usage, got, stdout);
        }
        for (uint32_t k = 0; k < got && line->globals->json; k++) {
            json_object(&j, NULL);
            json_usage(&j, pools[i].name, &usage[k]);
            json_end(&j);
        }
        free(usage);
    }
    if (line->globals->json) {
        json_end(&j);
        json_finish(&j);
    } else if (n == 0 && found) {
        printf("no pools\n");
    }
    if (!found) {
        fprintf(stderr, "kvpool: no pool '%s' (kvpool pools lists them)\n", line->pool);
        rc = 1;
    }
    return rc;
}

int cmd_usage(int argc, char **argv, struct cmd_globals *globals) {
    static const struct argp argp = {
        .parser = parse,
        .args_doc = "[POOL]",
        .doc = "Lists the namespaces of a pool, or of all: what they may have, the pages that are "
               "in use and cached, tokens found and missed when sequences were opened, pages "
               "sealed and evicted, requests refused. Root and the daemon's user see all, others "
               "their own.\vExamples:\n"
               "  kvpool usage\n"
               "  kvpool usage llama --json | jq '.[] | {namespace, hit_rate}'",
        .children = cmd_global_child};
    struct usage_line line = {globals, NULL};
    kvpool_client *client = NULL;
    kvpool_pool_info *pools = NULL;
    uint32_t n = 0;
    int rc = 1;
    argp_parse(&argp, argc, argv, 0, NULL, &line);
    if (cmd_connect(globals, "kvpool-usage", &client) != 0) {
        return 1;
    }
    if (list_pools(client, &pools, &n) != KVPOOL_OK) {
        cmd_fail(client, "cannot list the pools");
    } else {
        rc = show(client, &line, pools, n);
    }
    free(pools);
    kvpool_close(client);
    return rc;
}
