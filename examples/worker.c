// SPDX-License-Identifier: Apache-2.0
// worker.c: kvpool-worker, an inference process whose attention is wholly kvpool's.
//
// Reads in this order: main (here) -> roles.c (what is done with sequences) -> forward.c (one step)
// -> llama.c (arithmetic); recompute.c and transcript.c check the result. Prints one line:
//     worker role=plain tokens=65 reused=0 mismatches=0 ties=0 max_error=1.2e-06
// and exits 0 when nothing failed and nothing mismatched, else 1 (2: wrong usage).
// Thread: main only.
#include "examples/roles.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_SIZE 16u
#define POOL_PAGES 2048u
#define CHUNK 256u // tokens of prompt a step

static const char usage[] =
    "Usage: kvpool-worker [options]\n"
    "Prefills a text, decodes greedily through a kvpool daemon, and checks every token.\n\n"
    "  --dir DIR          sockets of the daemon (default $KVPOOL_DIR, else " KVPOOL_DEFAULT_DIR
    ")\n"
    "  --role ROLE        plain, fork or truncate (default plain)\n"
    "  --text FILE        prompt, one token a byte (default README.md)\n"
    "  --prompt-bytes N   how much of it to use (default 1000)\n"
    "  --shared-bytes N   how much of that is its beginning; the rest is from --tail-at on\n"
    "                     (default all of it)\n"
    "  --tail-at N        where in the file the rest begins (default 0)\n"
    "  --tokens N         decode steps of every branch (default 64)\n"
    "  --seed S           of the random weights (default 1)\n"
    "  --checkpoint FILE  weights in llama2.c's legacy format instead\n"
    "  --pool NAME        pool to create or open (default: named by the model's geometry)\n"
    "  --help             this text\n";

struct options {
    const char *dir, *text, *checkpoint, *pool;
    enum role role;
    uint32_t prompt_bytes, shared_bytes, tail_at, tokens;
    uint64_t seed;
};

static bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret) {
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || value < min || value > max) {
        return false;
    }
    *ret = value;
    return true;
}

// 0; 1: done (--help); 2: wrong usage, said on stderr.
static int parse_options(int argc, char **argv, struct options *ret) {
    enum { DIR = 1, ROLE, TEXT, BYTES, SHARED, TAIL, TOKENS, SEED, CHECKPOINT, POOL, HELP };
    static const struct option longs[] = {
        {"dir", required_argument, NULL, DIR},
        {"role", required_argument, NULL, ROLE},
        {"text", required_argument, NULL, TEXT},
        {"prompt-bytes", required_argument, NULL, BYTES},
        {"shared-bytes", required_argument, NULL, SHARED},
        {"tail-at", required_argument, NULL, TAIL},
        {"tokens", required_argument, NULL, TOKENS},
        {"seed", required_argument, NULL, SEED},
        {"checkpoint", required_argument, NULL, CHECKPOINT},
        {"pool", required_argument, NULL, POOL},
        {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    struct options o = {.text = "README.md",
                        .prompt_bytes = 1000,
                        .shared_bytes = UINT32_MAX,
                        .tokens = 64,
                        .seed = 1};
    int option;
    uint64_t number = 0;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        bool ok = true;
        switch (option) {
        case DIR:
            o.dir = optarg;
            break;
        case ROLE:
            ok = role_parse(optarg, &o.role);
            break;
        case TEXT:
            o.text = optarg;
            break;
        case BYTES:
            ok = parse_number(optarg, 1, 1u << 20, &number);
            o.prompt_bytes = (uint32_t)number;
            break;
        case SHARED:
            ok = parse_number(optarg, 1, 1u << 20, &number);
            o.shared_bytes = (uint32_t)number;
            break;
        case TAIL:
            ok = parse_number(optarg, 0, 1u << 20, &number);
            o.tail_at = (uint32_t)number;
            break;
        case TOKENS:
            ok = parse_number(optarg, 1, 1u << 20, &number);
            o.tokens = (uint32_t)number;
            break;
        case SEED:
            ok = parse_number(optarg, 0, UINT64_MAX, &o.seed);
            break;
        case CHECKPOINT:
            o.checkpoint = optarg;
            break;
        case POOL:
            o.pool = optarg;
            break;
        case HELP:
            fputs(usage, stdout);
            return 1;
        default:
            fputs("Try 'kvpool-worker --help'.\n", stderr);
            return 2;
        }
        if (!ok) {
            fprintf(stderr, "kvpool-worker: '%s' is not valid here\n", optarg);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "kvpool-worker: unexpected argument '%s'\n", argv[optind]);
        return 2;
    }
    *ret = o;
    return 0;
}

// The prompt: bytes of a file as tokens, its beginning and what is at tail_at. Returns how many, 0
// after saying on stderr why none.
static uint32_t read_tokens(const struct options *o, uint32_t *tokens) {
    const char *path = o->text;
    uint32_t n = 0;
    int byte = 0;
    FILE *file = fopen(path, "rb");
    if (!file) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 0;
    }
    while (n < o->prompt_bytes && byte != EOF) {
        if (n == o->shared_bytes && fseek(file, (long)o->tail_at, SEEK_SET) != 0) {
            fprintf(stderr, "%s: %s\n", path, strerror(errno));
            n = 0;
            break;
        }
        byte = getc(file);
        if (byte != EOF) {
            tokens[n++] = (uint32_t)byte;
        }
    }
    if (n == 0) {
        fprintf(stderr, "%s: nothing to read\n", path);
    }
    fclose(file);
    return n;
}

static int failed(const kvpool_client *client, const char *call, kvpool_status status) {
    char text[256];
    fprintf(stderr, "%s: %s: %s\n", call, kvpool_strerror(status),
            kvpool_last_error(client, text, sizeof text));
    return -1;
}

// A number for the weights in use: the seed's, or a checkpoint's by the first of its numbers (FNV-1a
// over them: workers of one checkpoint agree, and others hardly do).
static uint64_t weights_of(const struct options *o, const struct llama *m) {
    if (!o->checkpoint) {
        return o->seed;
    }
    const uint32_t n = m->config.vocab * m->config.dim;
    uint64_t hash = 0xCBF29CE484222325u;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &m->embedding[i], sizeof bits);
        hash = (hash ^ bits) * 0x100000001B3u;
    }
    return hash;
}

// Connects, makes the pool, runs the role.
static int run(const struct options *o, const struct llama *m, const uint32_t *prompt,
               uint32_t prompt_len, struct tally *tally) {
    static const char *const role_names[] = {"worker plain", "worker fork", "worker truncate"};
    char name[KVPOOL_NAME_MAX + 1];
    kvpool_client *client = NULL;
    kvpool_pool pool = 0;

    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    args.dir = o->dir;
    args.name = role_names[o->role];
    kvpool_status status = kvpool_connect(&args, &client);
    if (status != KVPOOL_OK) {
        return failed(NULL, "kvpool_connect", status);
    }
    // Workers of one geometry share one pool: the first creates it, the others open it.
    snprintf(name, sizeof name, "llama-%ux%ux%u", m->config.layers, m->config.kv_heads,
             m->head_dim);
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    config.name = o->pool ? o->pool : name;
    config.layers = m->config.layers;
    config.kv_heads = m->config.kv_heads;
    config.head_dim = m->head_dim;
    config.page_size = PAGE_SIZE;
    config.dtype = KVPOOL_FP32;
    config.num_pages = POOL_PAGES;
    int result;
    status = kvpool_pool_create(client, &config, &pool);
    if (status != KVPOOL_OK) {
        result = failed(client, "kvpool_pool_create", status);
    } else {
        const struct role_args role = {.m = m,
                                       .prompt = prompt,
                                       .prompt_len = prompt_len,
                                       .weights = weights_of(o, m),
                                       .tokens = o->tokens,
                                       .chunk = CHUNK,
                                       .page_size = PAGE_SIZE};
        result = role_run(o->role, client, pool, &role, tally);
    }
    kvpool_close(client);
    return result;
}

int main(int argc, char **argv) {
    static const char *const role_names[] = {"plain", "fork", "truncate"};
    struct options o;
    struct llama m = {0};
    struct tally tally = {0};
    uint32_t *prompt = NULL;
    int result = -1;

    const int usage_error = parse_options(argc, argv, &o);
    if (usage_error) {
        return usage_error == 1 ? 0 : 2;
    }
    if ((o.checkpoint ? llama_load(o.checkpoint, &m) : llama_random(o.seed, &m)) != 0) {
        return 1;
    }
    prompt = malloc(o.prompt_bytes * sizeof *prompt);
    const uint32_t prompt_len = prompt ? read_tokens(&o, prompt) : 0;
    if (prompt_len > 0) {
        result = run(&o, &m, prompt, prompt_len, &tally);
    }
    if (result == 0) {
        printf("worker role=%s tokens=%u reused=%u mismatches=%u ties=%u max_error=%.1e\n",
               role_names[o.role], tally.tokens, tally.reused, tally.mismatches, tally.ties,
               (double)tally.max_error);
    }
    free(prompt);
    llama_free(&m);
    return result == 0 && tally.mismatches == 0 && tally.tokens > 0 ? 0 : 1;
}
