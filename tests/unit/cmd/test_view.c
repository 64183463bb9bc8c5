// SPDX-License-Identifier: Apache-2.0
// test_view.c: what `kvpool status`, `top` and the lists show of given figures.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/lists.h"
#include "client/cmd/view.h"
#include "tests/unit/cmd/capture.h"

#include <string.h>

#define CLIENTS 30u

static kvpool_pool_info pools[2];
static struct usage_sum usage[2];
static kvpool_client_info clients[CLIENTS];

// A daemon with one pool and `n` clients, `seconds` after the first look.
static struct view make_view(uint32_t n, uint64_t seconds) {
    struct view v = {.dir = "/run/kvpool/0", .taken_ns = (100 + seconds) * 1000000000u};
    snprintf(v.daemon.version, sizeof(v.daemon.version), "0.1.0");
    snprintf(v.daemon.backend, sizeof(v.daemon.backend), "cpu");
    v.daemon.pid = 42;
    v.daemon.protocol = 1;
    v.daemon.epoch = 0xabcdef0123456789u;
    v.stats.epoch = v.daemon.epoch;
    v.stats.uptime_ns = 61000000000u;
    v.stats.requests = 1000 + 500 * seconds;
    v.stats.clients = n;
    pools[0] = (kvpool_pool_info){.pool = 0x100000001u,
                                  .name = "llama",
                                  .layers = 32,
                                  .kv_heads = 8,
                                  .head_dim = 128,
                                  .page_size = 16,
                                  .dtype = KVPOOL_BF16,
                                  .num_pages = 100,
                                  .free_pages = 75,
                                  .shared_pages = 5,
                                  .seqs = 3,
                                  .bytes = 1u << 20};
    v.pools = pools;
    v.num_pools = 1;
    usage[0] = (struct usage_sum){.pool = 0x100000001u,
                                  .known = true,
                                  .num_pages = 100,
                                  .active = 25,
                                  .cached = 50,
                                  .free_pages = 25,
                                  .hit_tokens = 3000 + 90 * seconds,
                                  .miss_tokens = 1000 + 10 * seconds,
                                  .evicted = 7 * seconds};
    v.usage = usage;
    for (uint32_t i = 0; i < n; i++) {
        clients[i] = (kvpool_client_info){.pid = 1000 + i, .uid = 7, .requests = 10 + i};
        snprintf(clients[i].name, sizeof(clients[i].name), "worker-%u", i);
    }
    v.clients = clients;
    v.num_clients = n;
    return v;
}

static unsigned lines(const char *text) {
    unsigned n = 0;
    for (; *text != 0; text++) {
        n += *text == '\n';
    }
    return n;
}

static void status_shows_pages_used_free_and_shared(void **state) {
    struct view v = make_view(0, 0);
    struct capture c;
    (void)state;
    capture_start(&c);
    view_print_status(&v, c.out);
    const char *text = capture_end(&c);
    assert_non_null(strstr(text, "kvpoold 0.1.0 in /run/kvpool/0: backend cpu, pid 42, up 1m 1s"));
    assert_non_null(strstr(text, "llama  32x8x128/16  bf16     100  25 (25%)    75       5"));
    assert_null(strstr(text, "deaths"));
    assert_null(strstr(text, "listener"));
    capture_free(&c);
}

static void status_mentions_deaths_and_leaks_once_there_are_any(void **state) {
    struct view v = make_view(0, 0);
    struct capture c;
    (void)state;
    v.stats.sessions_died = 2;
    v.stats.reclaim_last_ns = 1500000;
    v.stats.reclaim_max_ns = 2500000;
    v.stats.leaked_pipes = 1;
    v.num_pools = 0;
    capture_start(&c);
    view_print_status(&v, c.out);
    const char *text = capture_end(&c);
    assert_non_null(
        strstr(text, "deaths     2 clients; pages back after 1.50 ms (last), 2.50 ms (worst)"));
    assert_non_null(strstr(text, "1 connections leaked"));
    assert_non_null(strstr(text, "no pools"));
    capture_free(&c);
}

static void status_json_has_its_keys(void **state) {
    static const char *const keys[] = {
        "dir",       "version",      "library_version", "backend",         "protocol",
        "pid",       "epoch",        "uptime_s",        "requests_per_s",  "queue_depth",
        "requests",  "errors",       "tokens",          "appends",         "prefills",
        "decodes",   "commits",      "aborts",          "sequences",       "steps",
        "clients",   "regions",      "sessions_died",   "reclaim_last_us", "reclaim_max_us",
        "relistens", "leaked_pipes", "max_batch",       "max_inflight",    "max_message",
        "pools",     "caches"};
    struct view v = make_view(1, 0);
    struct capture c;
    (void)state;
    capture_start(&c);
    view_json_status(&v, c.out);
    const char *text = capture_end(&c);
    assert_int_equal(lines(text), 1);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char key[64];
        snprintf(key, sizeof(key), "\"%s\":", keys[i]);
        assert_non_null(strstr(text, key));
    }
    assert_non_null(strstr(text, "\"epoch\":\"0xabcdef0123456789\""));
    assert_non_null(strstr(text, "\"name\":\"llama\""));
    assert_non_null(strstr(text, "\"used_pages\":25,\"free_pages\":75,\"shared_pages\":5"));
    capture_free(&c);
}

static void a_rate_needs_two_looks_at_the_same_client_of_the_same_daemon(void **state) {
    kvpool_client_info old[3] = {{.pid = 1000, .requests = 4, .name = "worker-0"},
                                 {.pid = 1001, .requests = 1000, .name = "worker-1"},
                                 {.pid = 1002, .requests = 2, .name = "other"}};
    struct view now = make_view(3, 2);
    struct view before = make_view(3, 0);
    (void)state;
    before.clients = old;
    assert_true(view_client_rate(NULL, &now, 0) < 0);
    assert_float_equal(view_client_rate(&before, &now, 0), 3.0, 1e-9); // (10 - 4) / 2 s
    assert_true(view_client_rate(&before, &now, 1) < 0);               // it counts from anew
    assert_true(view_client_rate(&before, &now, 2) < 0);               // another name: new
    before.stats.epoch++;
    assert_true(view_client_rate(&before, &now, 0) < 0); // another daemon
}

static void clients_of_one_process_are_told_apart_by_their_order(void **state) {
    kvpool_client_info old[2] = {{.pid = 5, .requests = 10, .name = "w"},
                                 {.pid = 5, .requests = 20, .name = "w"}};
    kvpool_client_info new[2] = {{.pid = 5, .requests = 11, .name = "w"},
                                 {.pid = 5, .requests = 22, .name = "w"}};
    struct view before = make_view(2, 0);
    struct view now = make_view(2, 1);
    (void)state;
    before.clients = old;
    now.clients = new;
    assert_float_equal(view_client_rate(&before, &now, 0), 1.0, 1e-9);
    assert_float_equal(view_client_rate(&before, &now, 1), 2.0, 1e-9);
}

static void a_frame_fits_the_terminal_and_says_what_it_hides(void **state) {
    struct view v = make_view(CLIENTS, 0);
    struct capture c;
    (void)state;
    capture_start(&c);
    view_print_top(NULL, &v, 24, c.out);
    const char *text = capture_end(&c);
    assert_true(lines(text) < 24);
    assert_non_null(strstr(text, "... and "));
    assert_non_null(strstr(text, "per second  requests -"));
    capture_free(&c);
    capture_start(&c);
    view_print_top(NULL, &v, 0, c.out); // no terminal: everything
    text = capture_end(&c);
    assert_non_null(strstr(text, "worker-29"));
    assert_null(strstr(text, "... and "));
    capture_free(&c);
}

static void a_frame_leaves_this_program_out_and_sorts_by_rate(void **state) {
    struct view before = make_view(3, 0);
    kvpool_client_info old[3];
    (void)state;
    memcpy(old, clients, sizeof(old));
    before.clients = old;
    struct view now = make_view(3, 1);
    struct capture c;
    clients[1].requests += 100;
    now.own_pid = 1000;
    capture_start(&c);
    view_print_top(&before, &now, 0, c.out);
    const char *text = capture_end(&c);
    const char *busy = strstr(text, "worker-1");
    const char *idle = strstr(text, "worker-2");
    assert_null(strstr(text, "worker-0"));
    assert_non_null(busy);
    assert_non_null(idle);
    assert_true(busy < idle);
    assert_non_null(strstr(text, "requests 500.0"));
    capture_free(&c);
}

static void a_json_frame_is_one_line_with_rates(void **state) {
    struct view before = make_view(1, 0);
    struct view now = make_view(1, 1);
    struct capture c;
    (void)state;
    capture_start(&c);
    view_json_top(NULL, &now, c.out);
    const char *text = capture_end(&c);
    assert_int_equal(lines(text), 1);
    assert_non_null(strstr(text, "\"rates\":{\"requests\":null,"));
    assert_non_null(strstr(text, "\"client_list\":[{\"pid\":1000,"));
    capture_free(&c);
    capture_start(&c);
    view_json_top(&before, &now, c.out);
    assert_non_null(strstr(capture_end(&c), "\"rates\":{\"requests\":500,"));
    capture_free(&c);
}

static void caches_show_occupancy_and_hits(void **state) {
    struct view before = make_view(1, 0);
    struct usage_sum old[2];
    (void)state;
    memcpy(old, usage, sizeof(old));
    before.usage = old;
    struct view now = make_view(1, 2);
    struct capture c;
    assert_float_equal(view_hit_rate(&before, &now, 0), 0.9, 1e-9);
    assert_float_equal(view_evictions(&before, &now, 0), 7, 1e-9);
    capture_start(&c);
    view_print_top(&before, &now, 0, c.out);
    const char *text = capture_end(&c);
    assert_non_null(strstr(text, "CACHE  ACTIVE  CACHED  FREE  OCCUPANCY             HITS NOW"));
    assert_non_null(strstr(text, "llama      25      50    25  #####==========.....     90.0%      "
                                 "75.7%        7.0"));
    capture_free(&c);
    capture_start(&c);
    view_json_top(&before, &now, c.out);
    text = capture_end(&c);
    assert_non_null(strstr(text, "\"caches\":[{\"pool\":\"llama\",\"num_pages\":100,"
                                 "\"active_pages\":25,\"cached_pages\":50,"));
    assert_non_null(strstr(text, "\"hit_rate_now\":0.9,"));
    assert_non_null(strstr(text, "\"evicted_per_s\":7,"));
    capture_free(&c);
    capture_start(&c);
    view_print_status(&now, c.out); // one look has no interval
    assert_non_null(strstr(capture_end(&c), "-      75.7%          -\n"));
    capture_free(&c);
}

static void a_cache_without_a_past_has_no_rates(void **state) {
    struct view before = make_view(0, 0);
    struct usage_sum old[2];
    (void)state;
    memcpy(old, usage, sizeof(old));
    before.usage = old;
    struct view now = make_view(0, 1);
    struct capture c;
    assert_true(view_hit_rate(NULL, &now, 0) < 0);
    assert_true(view_evictions(NULL, &now, 0) < 0);
    old[0].pool++; // another pool
    assert_true(view_hit_rate(&before, &now, 0) < 0);
    assert_true(view_evictions(&before, &now, 0) < 0);
    old[0] = usage[0]; // nothing was looked up since
    assert_true(view_hit_rate(&before, &now, 0) < 0);
    assert_true(view_evictions(&before, &now, 0) == 0);
    before.stats.epoch++;
    assert_true(view_evictions(&before, &now, 0) < 0);
    usage[0].known = false; // a daemon that does not tell
    capture_start(&c);
    view_print_top(NULL, &now, 0, c.out);
    view_json_status(&now, c.out);
    const char *text = capture_end(&c);
    assert_null(strstr(text, "OCCUPANCY"));
    assert_non_null(strstr(text, "\"caches\":[]"));
    capture_free(&c);
}

static void a_namespace_has_its_line(void **state) {
    const kvpool_usage u = {.name = "default",
                            .num_pages = 100,
                            .reserve = 10,
                            .weight = 1,
                            .active = 3,
                            .cached = 4,
                            .seqs = 2,
                            .hit_tokens = 30,
                            .miss_tokens = 10};
    const kvpool_usage fresh = {.name = "new", .group = "g", .limit = 50, .weight = 2};
    struct capture c;
    (void)state;
    capture_start(&c);
    print_usage("llama", &u, 1, c.out);
    print_usage("llama", &fresh, 1, c.out);
    struct json j = json_start(c.out);
    json_object(&j, NULL);
    json_usage(&j, "llama", &u);
    json_end(&j);
    json_object(&j, NULL);
    json_usage(&j, "llama", &fresh);
    json_end(&j);
    const char *text = capture_end(&c);
    assert_non_null(
        strstr(text, "llama  default    -           10      -       1       3       4"));
    assert_non_null(strstr(text, "75.0%"));
    assert_non_null(strstr(text, "llama  new        g            0     50       2"));
    assert_non_null(strstr(text, "\"group\":null,\"num_pages\":100,"));
    assert_non_null(strstr(text, "\"hit_rate\":0.75,"));
    assert_non_null(strstr(text, "\"hit_rate\":null,"));
    capture_free(&c);
}

static void sequences_show_the_name_of_their_pool(void **state) {
    kvpool_seq_info seqs[2] = {{.seq = 0x200000001u,
                                .pool = 0x100000001u,
                                .length = 17,
                                .pages = 2,
                                .shared_pages = 1,
                                .in_step = 1,
                                .owner_pid = 99},
                               {.seq = 0x200000002u, .pool = 0x300000009u, .length = 1}};
    struct view v = make_view(0, 0);
    struct capture c;
    (void)state;
    capture_start(&c);
    print_seqs(seqs, 2, v.pools, v.num_pools, 0, c.out);
    const char *text = capture_end(&c);
    assert_non_null(strstr(text, "0x200000001  llama"));
    assert_non_null(strstr(text, "yes\n"));
    assert_non_null(strstr(text, "0x200000002  ?"));
    capture_free(&c);

    capture_start(&c);
    struct json j = json_start(c.out);
    json_seqs(&j, NULL, seqs, 2, v.pools, v.num_pools, 0x100000001u);
    json_finish(&j);
    assert_string_equal(capture_end(&c),
                        "[{\"sequence\":\"0x200000001\",\"pool\":\"llama\",\"length\":17,"
                        "\"pages\":2,\"shared_pages\":1,\"owner_pid\":99,\"in_step\":true}]\n");
    capture_free(&c);
}

static void empty_lists_say_so(void **state) {
    struct capture c;
    (void)state;
    capture_start(&c);
    print_pools(NULL, 0, c.out);
    print_clients(NULL, 0, c.out);
    print_seqs(NULL, 0, NULL, 0, 0, c.out);
    struct json j = json_start(c.out);
    json_clients(&j, NULL, NULL, 0);
    json_finish(&j);
    assert_string_equal(capture_end(&c), "no pools\nno clients\nno sequences\n[]\n");
    capture_free(&c);
}

static void a_name_cannot_steer_the_terminal(void **state) {
    struct capture c;
    (void)state;
    make_view(1, 0);
    snprintf(clients[0].name, sizeof(clients[0].name), "\033[2Jx");
    capture_start(&c);
    print_clients(clients, 1, c.out);
    const char *text = capture_end(&c);
    assert_null(strchr(text, '\033'));
    assert_non_null(strstr(text, "?[2Jx"));
    capture_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_shows_pages_used_free_and_shared),
        cmocka_unit_test(status_mentions_deaths_and_leaks_once_there_are_any),
        cmocka_unit_test(status_json_has_its_keys),
        cmocka_unit_test(a_rate_needs_two_looks_at_the_same_client_of_the_same_daemon),
        cmocka_unit_test(clients_of_one_process_are_told_apart_by_their_order),
        cmocka_unit_test(a_frame_fits_the_terminal_and_says_what_it_hides),
        cmocka_unit_test(a_frame_leaves_this_program_out_and_sorts_by_rate),
        cmocka_unit_test(a_json_frame_is_one_line_with_rates),
        cmocka_unit_test(caches_show_occupancy_and_hits),
        cmocka_unit_test(a_cache_without_a_past_has_no_rates),
        cmocka_unit_test(a_namespace_has_its_line),
        cmocka_unit_test(sequences_show_the_name_of_their_pool),
        cmocka_unit_test(empty_lists_say_so),
        cmocka_unit_test(a_name_cannot_steer_the_terminal),
    };
    return cmocka_run_group_tests_name("cmd/view", tests, NULL, NULL);
}
