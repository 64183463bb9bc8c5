// SPDX-License-Identifier: Apache-2.0
// test_metrics.c: the figures as Prometheus text, and that text itself: every series from the first
// scrape, each once, below its HELP and TYPE; the documents name only series that exist. Beside it
// the clock of open steps and the counts of answers.
// argv[1] is the folder docs/.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/metrics.h"
#include "daemon/step_clock.h"
#include "proto/proto.h"
#include "tests/unit/daemon/promcheck.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *docs;

static struct {
    struct stats stats;
    struct histogram step, wait[2], run[2];
    struct metrics_work work[2];
    struct core_ns_info ns[3];
    struct metrics_pool pools[2];
    struct metrics m;
    struct text text;
} t;

static int setup(void **state) {
    (void)state;
    memset(&t, 0, sizeof t);
    t.work[0] = (struct metrics_work){"decode", &t.wait[0], &t.run[0]};
    t.work[1] = (struct metrics_work){"prefill", &t.wait[1], &t.run[1]};
    t.m = (struct metrics){.version = "1.2.3",
                           .backend = "cpu",
                           .stats = &t.stats,
                           .step = &t.step,
                           .work = t.work,
                           .num_work = 2};
    return 0;
}

static int teardown(void **state) {
    (void)state;
    text_free(&t.text);
    return 0;
}

// Two pools: "kv" with two namespaces, "other" with one.
static void add_pools(void) {
    for (int i = 0; i < 2; i++) {
        t.pools[i].info.config.num_pages = 100;
        t.pools[i].ns = &t.ns[i == 0 ? 0 : 2];
        t.pools[i].num_ns = i == 0 ? 2 : 1;
        snprintf(t.pools[i].info.config.name, CORE_NAME_SIZE, "%s", i == 0 ? "kv" : "other");
    }
    snprintf(t.ns[0].config.name, CORE_NAME_SIZE, "default");
    snprintf(t.ns[1].config.name, CORE_NAME_SIZE, "tenant-a");
    snprintf(t.ns[2].config.name, CORE_NAME_SIZE, "default");
    t.m.pools = t.pools;
    t.m.num_pools = 2;
}

static const char *format(void) {
    text_free(&t.text);
    metrics_format(&t.m, &t.text);
    assert_false(t.text.failed);
    assert_int_equal(t.text.len, strlen(t.text.data));
    assert_string_equal("", prom_check(t.text.data));
    return t.text.data;
}

static void is(const char *series, double want) {
    double value = -1;
    if (!prom_value(t.text.data, series, &value)) {
        fail_msg("%s is not there", series);
    }
    if (value < want - 1e-9 || value > want + 1e-9) {
        fail_msg("%s is %.9f, not %.9f", series, value, want);
    }
}

// --- tests -------------------------------------------------------------------------------------

static void every_series_is_there_from_the_first_scrape(void **state) {
    unsigned first;
    (void)state;
    add_pools();
    format();
    first = prom_count(t.text.data);
    is("kvpool_hit_tokens_total{pool=\"kv\",namespace=\"tenant-a\"}", 0);
    is("kvpool_requests_total{op=\"PREFIX_PIN\",status=\"KVPOOL_E_NOSPACE\"}", 0);
    is("kvpool_run_seconds_bucket{kind=\"prefill\",le=\"+Inf\"}", 0);
    is("kvpool_step_seconds_count", 0);
    is("kvpool_reclaim_max_seconds", 0);
    // Whatever happens then, none is added.
    for (uint16_t op = 0; op < 100; op++) {
        for (int status = 0; status > -40; status--) {
            stats_answered(&t.stats, op, status, 1);
        }
    }
    for (uint64_t ns = 1; ns < 1ull << 40; ns *= 3) {
        histogram_add(&t.step, ns);
        histogram_add(&t.wait[1], ns);
        histogram_add(&t.run[0], ns);
    }
    memset(&t.ns[0].counters, 0xff, sizeof t.ns[0].counters);
    format();
    assert_int_equal(first, prom_count(t.text.data));
}

static void a_daemon_without_pools_has_well_formed_metrics(void **state) {
    (void)state;
    t.m.num_work = 0;
    format();
    assert_false(prom_has(t.text.data, "kvpool_pool_pages"));
    assert_true(prom_has(t.text.data, "kvpool_clients"));
}

static void every_figure_is_where_it_belongs(void **state) {
    (void)state;
    add_pools();
    t.m.uptime_ns = 1500000000;
    t.m.clients = 1;
    t.m.steps = 2;
    t.m.regions = 3;
    t.m.queue_depth = 4;
    t.m.relistens = 5;
    t.m.leaked_pipes = 6;
    t.m.dropped_log_lines = 7;
    t.m.events = 8;
    t.stats.commits = 9;
    t.stats.aborts = 10;
    t.stats.tokens = 11;
    t.stats.sessions_died = 12;
    t.stats.reclaim_last_ns = 13000;
    t.stats.reclaim_max_ns = 14000;
    t.pools[0].info.free_pages = 50;
    t.pools[0].info.cached_pages = 25;
    t.pools[0].info.shared_pages = 3;
    t.pools[0].info.sealed_pages = 30;
    t.pools[0].info.seqs = 15;
    t.pools[0].info.pins = 16;
    t.ns[1] = (struct core_ns_info){
        .config = {.name = "tenant-a", .reserve = 17, .limit = 18},
        .active = 19,
        .cached = 20,
        .seqs = 21,
        .counters = {.hit_tokens = 22,
                     .miss_tokens = 23,
                     .sealed = 24,
                     .deduplicated = 25,
                     .evicted = 26,
                     .dropped = 27,
                     .refused = 0x100000000ull},
    };
    format();
    is("kvpool_info{version=\"1.2.3\",backend=\"cpu\"}", 1);
    is("kvpool_uptime_seconds", 1.5);
    is("kvpool_clients", 1);
    is("kvpool_open_steps", 2);
    is("kvpool_regions", 3);
    is("kvpool_queue_depth", 4);
    is("kvpool_relistens_total", 5);
    is("kvpool_leaked_pipes", 6);
    is("kvpool_dropped_log_lines_total", 7);
    is("kvpool_events_total", 8);
    is("kvpool_commits_total", 9);
    is("kvpool_aborts_total", 10);
    is("kvpool_tokens_total", 11);
    is("kvpool_sessions_died_total", 12);
    is("kvpool_reclaim_last_seconds", 13e-6);
    is("kvpool_reclaim_max_seconds", 14e-6);
    is("kvpool_pool_pages{pool=\"kv\",state=\"free\"}", 50);
    is("kvpool_pool_pages{pool=\"kv\",state=\"cached\"}", 25);
    is("kvpool_pool_pages{pool=\"kv\",state=\"active\"}", 25);
    is("kvpool_pool_pages{pool=\"kv\",state=\"shared\"}", 3);
    is("kvpool_pool_pages{pool=\"kv\",state=\"sealed\"}", 30);
    is("kvpool_pool_occupancy_ratio{pool=\"kv\"}", 0.25);
    is("kvpool_pool_size_pages{pool=\"kv\"}", 100);
    is("kvpool_pool_sequences{pool=\"kv\"}", 15);
    is("kvpool_pool_sequences{pool=\"other\"}", 0);
    is("kvpool_pool_pins{pool=\"kv\"}", 16);
#define TENANT "{pool=\"kv\",namespace=\"tenant-a\"}"
    is("kvpool_namespace_reserve_pages" TENANT, 17);
    is("kvpool_namespace_limit_pages" TENANT, 18);
    is("kvpool_namespace_pages{pool=\"kv\",namespace=\"tenant-a\",state=\"active\"}", 19);
    is("kvpool_namespace_pages{pool=\"kv\",namespace=\"tenant-a\",state=\"cached\"}", 20);
    is("kvpool_namespace_sequences" TENANT, 21);
    is("kvpool_hit_tokens_total" TENANT, 22);
    is("kvpool_miss_tokens_total" TENANT, 23);
    is("kvpool_sealed_pages_total" TENANT, 24);
    is("kvpool_deduplicated_pages_total" TENANT, 25);
    is("kvpool_evicted_pages_total" TENANT, 26);
    is("kvpool_dropped_pages_total" TENANT, 27);
    is("kvpool_refused_total" TENANT, 4294967296.0);
    is("kvpool_refused_total{pool=\"kv\",namespace=\"default\"}", 0);
}

static void requests_are_counted_by_operation_and_status(void **state) {
    (void)state;
    stats_answered(&t.stats, PROTO_PING, 0, 1);
    stats_answered(&t.stats, PROTO_PING, 0, 1);
    stats_answered(&t.stats, PROTO_STEP_BEGIN, KVPOOL_E_NOSPACE, 1);
    stats_answered(&t.stats, 0, KVPOOL_E_PROTO, 1);     // no header
    stats_answered(&t.stats, 60, KVPOOL_E_PROTO, 1);    // no such operation
    stats_answered(&t.stats, 60000, KVPOOL_E_PROTO, 1); // nor this
    stats_answered(&t.stats, PROTO_PING, -1000, 1);     // no such status
    format();
    is("kvpool_requests_total{op=\"PING\",status=\"KVPOOL_OK\"}", 2);
    is("kvpool_requests_total{op=\"PING\",status=\"KVPOOL_E_INTERNAL\"}", 1);
    is("kvpool_requests_total{op=\"STEP_BEGIN\",status=\"KVPOOL_E_NOSPACE\"}", 1);
    is("kvpool_requests_total{op=\"unknown\",status=\"KVPOOL_E_PROTO\"}", 3);
    is("kvpool_request_errors_total", 5);
}

static void histograms_are_cumulative(void **state) {
    (void)state;
    histogram_add(&t.step, 9000);
    histogram_add(&t.step, 20000);
    histogram_add(&t.step, 20000);
    histogram_add(&t.step, 60000000000ull);
    histogram_add(&t.run[1], 1000000);
    histogram_add(&t.wait[0], 30000);
    format();
    is("kvpool_step_seconds_bucket{le=\"1e-05\"}", 1);
    is("kvpool_step_seconds_bucket{le=\"2.5e-05\"}", 3);
    is("kvpool_step_seconds_bucket{le=\"10\"}", 3);
    is("kvpool_step_seconds_bucket{le=\"+Inf\"}", 4);
    is("kvpool_step_seconds_count", 4);
    is("kvpool_step_seconds_sum", 60.000049);
    is("kvpool_run_seconds_bucket{kind=\"prefill\",le=\"0.0005\"}", 0);
    is("kvpool_run_seconds_bucket{kind=\"prefill\",le=\"0.001\"}", 1);
    is("kvpool_run_seconds_sum{kind=\"prefill\"}", 0.001);
    is("kvpool_run_seconds_count{kind=\"decode\"}", 0);
    is("kvpool_queue_wait_seconds_bucket{kind=\"decode\",le=\"2.5e-05\"}", 0);
    is("kvpool_queue_wait_seconds_bucket{kind=\"decode\",le=\"5e-05\"}", 1);
    is("kvpool_queue_wait_seconds_count{kind=\"prefill\"}", 0);
}

static void label_values_are_escaped(void **state) {
    (void)state;
    add_pools();
    t.m.backend = "a \"GPU\"\nof\\mine";
    memset(t.pools[0].info.config.name, '"', CORE_NAME_SIZE - 1);
    memset(t.ns[0].config.name, '\\', CORE_NAME_SIZE - 1);
    format();
    is("kvpool_info{version=\"1.2.3\",backend=\"a \\\"GPU\\\"\\nof\\\\mine\"}", 1);
    const char *pins = strstr(t.text.data, "\nkvpool_pool_pins{pool=\"");
    assert_non_null(pins);
    for (size_t i = 0; i < CORE_NAME_SIZE - 1; i++) { // none is cut off
        assert_memory_equal("\\\"", pins + 24 + 2 * i, 2);
    }
    assert_memory_equal("\"} 0", pins + 24 + 2ul * (CORE_NAME_SIZE - 1), 4);
}

static char document[1 << 20];

// Reads the file: all of it, or the section of that heading.
static void read_document(const char *name, const char *section) {
    char path[512];
    char *begin = document, *end;
    snprintf(path, sizeof path, "%s/%s", docs, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    document[fread(document, 1, sizeof document - 1, file)] = '\0';
    fclose(file);
    if (section != NULL) {
        begin = strstr(document, section);
        assert_non_null(begin);
        end = strstr(begin + 1, "\n## ");
        assert_non_null(end);
        *end = '\0';
        memmove(document, begin, strlen(begin) + 1);
    }
}

// Every word kvpool_... is a series that exists; at least `least` of them.
static void check_document(unsigned least) {
    unsigned n = 0;
    for (const char *at = document; (at = strstr(at, "kvpool_")) != NULL; n++) {
        char word[128], bucket[160];
        size_t len = 0;
        while (islower((unsigned char)at[len]) || at[len] == '_') {
            len++;
        }
        snprintf(word, sizeof word, "%.*s", (int)len, at);
        snprintf(bucket, sizeof bucket, "%s_bucket", word);
        if (!prom_has(t.text.data, word) && !prom_has(t.text.data, bucket)) {
            fail_msg("%s does not exist", word);
        }
        at += len;
    }
    assert_true(n >= least);
}

static void the_dashboard_shows_series_that_exist(void **state) {
    (void)state;
    add_pools();
    format();
    read_document("grafana.json", NULL);
    check_document(30);
}

static void the_manual_names_every_series_and_no_other(void **state) {
    (void)state;
    add_pools();
    format();
    read_document("operations.md", "\n## Metrics\n");
    check_document(30);
    for (const char *at = t.text.data; (at = strstr(at, "# TYPE ")) != NULL;) {
        char name[160];
        at += 7;
        snprintf(name, sizeof name, "`%.*s`", (int)strcspn(at, " "), at);
        if (strstr(document, name) == NULL) {
            fail_msg("operations.md does not name %s", name);
        }
    }
}

static void the_checker_finds_what_is_wrong(void **state) {
#define GAUGE(name) "# HELP " name " x\n# TYPE " name " gauge\n"
#define HISTOGRAM "# HELP h x\n# TYPE h histogram\n"
    static const char *const bad[] = {
        "a 1\n",
        GAUGE("a") "a 1",
        GAUGE("a") "a 1\na 2\n",
        GAUGE("a") "a 1\n" GAUGE("a"),
        GAUGE("a") "b 1\n",
        GAUGE("a") "a{x=\"1\" 1\n",
        GAUGE("a") "a{x=\"1\",} 1\n",
        GAUGE("a") "a{x=\"\\y\"} 1\n",
        GAUGE("a") "a{x=1} 1\n",
        GAUGE("a") "a one\n",
        GAUGE("a") "a\n",
        GAUGE("a") "a 1\n" GAUGE("b") "b 1\na{x=\"y\"} 1\n",
        "# TYPE a gauge\na 1\n",
        "# HELP a x\n# TYPE a counter\na 1\n",
        "# HELP a_total x\n# TYPE a_total counter\na_total -1\n",
        "# HELP a x\na 1\n",
        HISTOGRAM "h_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\n",
        HISTOGRAM "h_bucket{le=\"1\"} 2\nh_sum 1\nh_count 2\n",
        HISTOGRAM "h_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 3\n",
        HISTOGRAM "h 1\n",
    };
    (void)state;
    assert_string_equal("", prom_check(GAUGE("a") "a{x=\"1\",y=\"\\\"\"} -1.5e3\n" HISTOGRAM
                                                  "h_bucket{le=\"1\"} 2\n"
                                                  "h_bucket{le=\"+Inf\"} 2\nh_sum 1\nh_count 2\n"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (strcmp(prom_check(bad[i]), "") == 0) {
            fail_msg("not found: %s", bad[i]);
        }
    }
}

static void a_step_is_timed_from_begin_to_its_end(void **state) {
    struct step_clock *c;
    uint64_t began = 0;
    struct err err;
    (void)state;
    assert_int_equal(0, step_clock_open(3, &c, &err));
    assert_false(step_clock_end(c, 1, 1, &began));
    step_clock_begin(c, 1, 1, 100);
    step_clock_begin(c, 1, 2, 200);
    step_clock_begin(c, 2, 1, 300);
    step_clock_begin(c, 9, 9, 400); // one too many: not timed
    assert_false(step_clock_end(c, 9, 9, &began));
    assert_true(step_clock_end(c, 2, 1, &began));
    assert_int_equal(300, began);
    assert_false(step_clock_end(c, 2, 1, &began));
    step_clock_begin(c, 1, 2, 250); // the id again: the new time
    assert_true(step_clock_end(c, 1, 2, &began));
    assert_int_equal(250, began);
    step_clock_begin(c, 3, 7, 500);
    step_clock_forget(c, 1);
    assert_false(step_clock_end(c, 1, 1, &began));
    assert_true(step_clock_end(c, 3, 7, &began));
    assert_int_equal(500, began);
    step_clock_close(c);
}

// Against a plain array, with many collisions.
static void the_clock_of_many_steps_loses_none(void **state) {
    enum { SESSIONS = 4, STEPS = 16 };
    uint64_t model[SESSIONS][STEPS] = {{0}};
    struct step_clock *c;
    struct err err;
    (void)state;
    srand(1);
    assert_int_equal(0, step_clock_open(SESSIONS * STEPS, &c, &err));
    for (uint64_t i = 1; i < 200000; i++) {
        const uint32_t session = (uint32_t)rand() % SESSIONS, step = (uint32_t)rand() % STEPS;
        uint64_t began = 0;
        if (rand() % 1000 == 0) {
            step_clock_forget(c, session + 1);
            memset(model[session], 0, sizeof model[session]);
        } else if (rand() % 2 == 0) {
            step_clock_begin(c, session + 1, step + 1, i);
            model[session][step] = i;
        } else {
            assert_int_equal(model[session][step] != 0,
                             step_clock_end(c, session + 1, step + 1, &began));
            assert_int_equal(model[session][step], began);
            model[session][step] = 0;
        }
    }
    step_clock_close(c);
}

int main(int argc, char **argv) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(every_series_is_there_from_the_first_scrape),
        TEST(a_daemon_without_pools_has_well_formed_metrics),
        TEST(every_figure_is_where_it_belongs),
        TEST(requests_are_counted_by_operation_and_status),
        TEST(histograms_are_cumulative),
        TEST(label_values_are_escaped),
        TEST(the_dashboard_shows_series_that_exist),
        TEST(the_manual_names_every_series_and_no_other),
        TEST(the_checker_finds_what_is_wrong),
        TEST(a_step_is_timed_from_begin_to_its_end),
        TEST(the_clock_of_many_steps_loses_none),
    };
    if (argc < 2) {
        fprintf(stderr, "usage: %s DOCS\n", argv[0]);
        return 2;
    }
    docs = argv[1];
    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
