// SPDX-License-Identifier: Apache-2.0
// test_trace.c: traces end to end: made, replayed on a real daemon, recorded from it; and the daemon's
// hit rate against a simulation of its policies that shares no code with it.
#include "tests/system/harness.h"
#include "tests/system/policy_sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 16u
#define CHUNK 512u
#define SIZES 3
#define POLICIES 2

static const uint32_t sizes[SIZES] = {400, 800, 1600}; // pages
static const char *const policies[POLICIES] = {"lru", "s3fifo"};

static char out[1 << 16];

static void file_path(const char *name, char ret[256]) {
    snprintf(ret, 256, "%s/%s", kvd.dir, name);
}

// A pool for each policy and size, and one of each for scans and for recordings. Together they have so
// many pages that the daemon does not verify its core after each operation.
static int setup(void **state) {
    static const char *const extra_pools[] = {"scan", "recorded", "again"};
    char path[256];
    (void)state;
    daemon_prepare(&kvd);
    file_path("conf", path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int p = 0; p < POLICIES; p++) {
        for (int i = 0; i < SIZES + 3; i++) {
            char size[16];
            snprintf(size, sizeof size, "%u", i < SIZES ? sizes[i] : sizes[1]);
            fprintf(f,
                    "[pool %s-%s]\nlayers = 1\nkv_heads = 1\nhead_dim = 8\npage_size = %u\n"
                    "dtype = fp16\nnum_pages = %s\nmax_seqs = 16\npolicy = %s\n",
                    policies[p], i < SIZES ? size : extra_pools[i - SIZES], PAGE, size,
                    policies[p]);
        }
    }
    assert_int_equal(fclose(f), 0);
    daemon_start(&kvd, (const char *const[]){"--config", path, NULL});
    return 0;
}

// Runs kvpool with `args`, a line of words; returns its exit status, its output is in `out`.
__attribute__((format(printf, 1, 2))) static int kvpool(const char *args, ...) {
    static char program[512], words[1024];
    const char *argv[64] = {program, "--dir", kvd.dir, "--json"};
    size_t n = 4;
    char *save;
    va_list ap;
    va_start(ap, args);
    vsnprintf(words, sizeof words, args, ap);
    va_end(ap);
    snprintf(program, sizeof program, "%s", program_path("kvpool"));
    for (char *word = strtok_r(words, " ", &save); word != NULL && n < 63;
         word = strtok_r(NULL, " ", &save)) {
        argv[n++] = word;
    }
    argv[n] = NULL;
    return program_run(out, sizeof out, 120000, argv);
}

// A number of the JSON object in `out`.
static double number(const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(out, quoted);
    if (at == NULL) {
        fail_msg("no %s in: %s", quoted, out);
        return 0;
    }
    return strtod(at + strlen(quoted), NULL);
}

// Hit rate that the daemon has in a pool.
static double replayed(const char *path, const char *pool, size_t requests) {
    int status = kvpool("trace replay %s --pool %s --chunk %u", path, pool, CHUNK);
    if (status != 0) {
        fail_msg("exit status %d: %s", status, out);
    }
    assert_true(number("requests") == (double)requests);
    assert_true(number("errors") == 0);
    return number("hit_tokens") / number("input_tokens");
}

static double simulated(const struct trace_file *file, int policy, uint32_t pages) {
    struct policy_sim *s = policy_sim_open((enum sim_policy)policy, pages, PAGE);
    uint64_t hit = 0, input = 0;
    for (size_t i = 0; i < file->n; i++) {
        hit += policy_sim_run(s, &file->lines[i], CHUNK);
        input += file->lines[i].input;
    }
    assert_true(policy_sim_evicted(s) > 4ull * pages); // the trace is much larger than the pool
    policy_sim_close(s);
    return (double)hit / (double)input;
}

static void within_a_point(double daemon_rate, double sim_rate) {
    if (fabs(daemon_rate - sim_rate) > 0.01) {
        fail_msg("hit rate %.4f, the simulation has %.4f", daemon_rate, sim_rate);
    }
}

static void the_hit_rate_is_the_simulations(void **state) {
    (void)state;
    char path[256];
    struct trace_file file;
    file_path("zipf.jsonl", path);
    assert_int_equal(kvpool("trace generate %s --requests 1500 --prefixes 200 --zipf 1.0 "
                            "--prefix-len 256 --suffix-len 40 --output-len 24 --seed 5",
                            path),
                     0);
    assert_true(trace_file_read(path, PAGE, 0, &file));
    assert_int_equal(file.n, 1500);
    printf("%-8s %6s %12s %12s\n", "policy", "pages", "daemon", "simulation");
    double before[POLICIES] = {0};
    for (int i = 0; i < SIZES; i++) {
        for (int p = 0; p < POLICIES; p++) {
            char pool[64];
            snprintf(pool, sizeof pool, "%s-%u", policies[p], sizes[i]);
            double sim_rate = simulated(&file, p, sizes[i]);
            double daemon_rate = replayed(path, pool, file.n);
            printf("%-8s %6u %11.2f%% %11.2f%%\n", policies[p], sizes[i], 100 * daemon_rate,
                   100 * sim_rate);
            within_a_point(daemon_rate, sim_rate);
            assert_true(sim_rate > before[p] + 0.02); // more pages, more hits
            before[p] = sim_rate;
        }
    }
    trace_file_free(&file);
}

static void scans_harm_s3fifo_less_than_lru(void **state) {
    (void)state;
    char path[256];
    struct trace_file file;
    double sim_rate[POLICIES], daemon_rate[POLICIES];
    file_path("scan.jsonl", path);
    assert_int_equal(kvpool("trace generate %s --requests 1200 --prefixes 60 --zipf 0.9 "
                            "--prefix-len 256 --suffix-len 24 --output-len 8 --scan-every 6 "
                            "--scan-len 4096 --seed 6",
                            path),
                     0);
    assert_true(trace_file_read(path, PAGE, 0, &file));
    for (int p = 0; p < POLICIES; p++) {
        char pool[64];
        snprintf(pool, sizeof pool, "%s-scan", policies[p]);
        sim_rate[p] = simulated(&file, p, sizes[1]);
        daemon_rate[p] = replayed(path, pool, file.n);
        printf("%-8s %6u %11.2f%% %11.2f%%  with scans\n", policies[p], sizes[1],
               100 * daemon_rate[p], 100 * sim_rate[p]);
        within_a_point(daemon_rate[p], sim_rate[p]);
    }
    assert_true(sim_rate[SIM_S3FIFO] > sim_rate[SIM_LRU] + 0.01);
    assert_true(daemon_rate[SIM_S3FIFO] > daemon_rate[SIM_LRU] + 0.01);
    trace_file_free(&file);
}

// Starts `kvpool trace record` and waits until it records.
static pid_t record_start(const char *path, const char *option) {
    char program[512];
    pid_t parent = getpid();
    snprintf(program, sizeof program, "%s", program_path("kvpool"));
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(126);
        }
        execl(program, "kvpool", "--dir", kvd.dir, "trace", "record", path, option, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 1000; i++) { // the pings get into the file once it records
        assert_int_equal(kvpool("ping -c 1"), 0);
        sleep_ms(10);
        FILE *f = fopen(path, "r");
        if (f != NULL && fseek(f, 0, SEEK_END) == 0 && ftell(f) > 0) {
            fclose(f);
            return pid;
        }
        if (f != NULL) {
            fclose(f);
        }
    }
    fail_msg("nothing is recorded");
    return pid;
}

static void what_was_recorded_can_be_replayed(void **state) {
    (void)state;
    char made[256], path[256];
    struct trace_file file;
    file_path("made.jsonl", made);
    file_path("recorded.jsonl", path);
    assert_int_equal(kvpool("trace generate %s --requests 400 --prefixes 40 --prefix-len 250 "
                            "--suffix-len 33 --output-len 20 --seed 7",
                            made),
                     0);
    pid_t recorder = record_start(path, NULL);
    double rate = replayed(made, "lru-recorded", 400);
    double input = number("input_tokens"), output = number("output_tokens");
    kill(recorder, SIGINT);
    assert_int_equal(process_wait(recorder, 10000), 0);
    assert_true(trace_file_read(path, PAGE, 0, &file));
    assert_int_equal(file.n, 400);
    assert_int_equal(file.dropped, 0);
    uint64_t looked_up = 0, appended = 0;
    for (size_t i = 0; i < file.n; i++) {
        assert_int_equal(file.lines[i].opened, file.lines[i].input);
        assert_true(file.lines[i].matched <= file.lines[i].input);
        looked_up += file.lines[i].input;
        appended += file.lines[i].output;
    }
    // What is looked up is all but the last token of a prompt: that one counts as appended.
    assert_true((double)looked_up == input - 400);
    assert_true((double)appended == output + 400);
    double again = replayed(path, "lru-again", 400);
    printf("recorded %.2f%%, replayed %.2f%%\n", 100 * rate, 100 * again);
    assert_true(rate > 0.3);
    within_a_point(again, rate);
    trace_file_free(&file);
}

static bool file_has(const char *path, const char *part) {
    static char text[1 << 22];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return strstr(text, part) != NULL;
}

// Appends five tokens to a sequence of a pool of this test's geometry.
static void append_five(kvpool_client *client, kvpool_pool pool, kvpool_seq seq) {
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_attn_args attn = KVPOOL_ATTN_ARGS_INIT;
    kvpool_region *region;
    const uint32_t five = 5;
    begin.pool = pool;
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &five;
    expect_ok(client, kvpool_region_create(client, 4096, &region));
    expect_ok(client, kvpool_step_begin(client, &begin, &attn.step, NULL));
    attn.k = (kvpool_tensor){region, 0, 0, 0};
    attn.v = (kvpool_tensor){region, 2048, 0, 0};
    expect_ok(client, kvpool_append(client, &attn));
    expect_ok(client, kvpool_step_commit(client, attn.step));
    kvpool_region_free(region);
}

static void tokens_are_recorded_only_when_asked_for(void **state) {
    (void)state;
    static const char *const options[] = {NULL, "--tokens"};
    kvpool_client *client = client_open(&kvd);
    kvpool_open_args open = KVPOOL_OPEN_ARGS_INIT;
    uint32_t tokens[20], matched;
    expect_ok(client, kvpool_pool_open(client, "lru-again", &open.pool));
    for (uint32_t i = 0; i < 20; i++) {
        tokens[i] = 123400000 + i;
    }
    open.tokens = tokens;
    open.n = 20;
    for (int i = 0; i < 2; i++) {
        char path[256];
        kvpool_seq seqs[2];
        file_path(i == 0 ? "plain.jsonl" : "tokens.jsonl", path);
        pid_t recorder = record_start(path, options[i]);
        expect_ok(client, kvpool_seq_open_with(client, &open, &seqs[0], &matched));
        expect_ok(client, kvpool_seq_open_with(client, &open, &seqs[1], &matched));
        expect_ok(client, kvpool_seq_free(client, 1, seqs));
        for (int k = 0; k < 5; k++) { // 20 of them are those of the prompt
            append_five(client, open.pool, seqs[1]);
        }
        if (i == 1) {
            kvpool_close(client); // ends the other sequence
        } else {
            expect_ok(client, kvpool_seq_free(client, 1, &seqs[1]));
        }
        assert_int_equal(kvpool("ping -c 1"), 0);
        kill(recorder, SIGTERM);
        assert_int_equal(process_wait(recorder, 10000), 0);
        assert_int_equal(file_has(path, "123400000"), i == 1);
        struct trace_file file;
        assert_true(trace_file_read(path, PAGE, 0, &file));
        assert_int_equal(file.n, 2);
        assert_int_equal(file.lines[0].output, 0);
        assert_int_equal(file.lines[1].output, 5);
        assert_memory_equal(file.lines[0].ids, file.lines[1].ids, 2 * sizeof(uint64_t));
        trace_file_free(&file);
    }
}

static void several_workers_share_a_pool_that_is_too_small_for_them(void **state) {
    (void)state;
    char path[256];
    file_path("tight.jsonl", path);
    assert_int_equal(kvpool("trace generate %s --requests 150 --prefixes 8 --prefix-len 320 "
                            "--suffix-len 200 --output-len 40 --seed 8",
                            path),
                     0);
    // A request has 35 pages: two fit, six do not.
    assert_int_equal(
        kvpool("trace replay %s --pages 80 --workers 6 --chunk 64 --layers 2 --check", path), 0);
    assert_true(number("mismatches") == 0);
    assert_true(number("hit_tokens") > 0);
    assert_true(number("requests") == 150);
    assert_true(number("errors") == 0);
    assert_true(number("nospace") > 0);
    assert_true(number("output_tokens") == 150 * 40);
    // The private pool is gone.
    assert_int_equal(kvpool("pools"), 0);
    assert_null(strstr(out, "replay-"));
}

static void what_never_fits_is_an_error_and_ends(void **state) {
    (void)state;
    char path[256];
    kvpool_client *client = client_open(&kvd);
    kvpool_pool_config config = KVPOOL_POOL_CONFIG_INIT;
    kvpool_step_args begin = KVPOOL_STEP_ARGS_INIT;
    kvpool_seq seq;
    kvpool_step step;
    const uint32_t tokens = 8 * PAGE;
    config.name = "held";
    config.layers = 1;
    config.kv_heads = 1;
    config.head_dim = 8;
    config.page_size = PAGE;
    config.dtype = KVPOOL_FP16;
    config.num_pages = 40;
    expect_ok(client, kvpool_pool_create(client, &config, &begin.pool));
    expect_ok(client, kvpool_seq_create(client, begin.pool, 1, &seq));
    begin.n = 1;
    begin.seqs = &seq;
    begin.new_tokens = &tokens;
    expect_ok(client, kvpool_step_begin(client, &begin, &step, NULL)); // holds 8 of 40 pages
    file_path("tight.jsonl", path);
    assert_int_equal(kvpool("trace replay %s --pool held --workers 3 --limit 10", path), 1);
    assert_true(number("errors") == 10);
    assert_true(number("requests") == 0);
    assert_non_null(strstr(out, "(KVPOOL_E_NOSPACE)"));
    assert_int_equal(kvpool("trace replay %s --pages 34 --limit 2", path),
                     1); // longer than any row
    assert_true(number("errors") == 2);
    assert_non_null(strstr(out, "(KVPOOL_E_INVAL)"));
    kvpool_close(client);
}

static void replay_keeps_the_traces_time(void **state) {
    (void)state;
    char path[256];
    file_path("slow.jsonl", path);
    assert_int_equal(kvpool("trace generate %s --requests 11 --prefixes 2 --interval 100000", path),
                     0);
    assert_int_equal(kvpool("trace replay %s --speed 2 --workers 2", path), 0);
    assert_true(number("seconds") >= 0.5);
    assert_int_equal(kvpool("trace replay %s --limit 3", path), 0);
    assert_true(number("requests") == 3);
}

static void public_traces_are_replayed(void **state) {
    (void)state;
    char path[256];
    file_path("mooncake.jsonl", path);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("{\"timestamp\": 0, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [0, 1, "
          "2]}\n"
          "{\"timestamp\": 0, \"input_length\": 700, \"output_length\": 0, \"hash_ids\": [0, 3]}\n"
          "{\"timestamp\": 9, \"input_length\": 1100, \"output_length\": 5, \"hash_ids\": [0, 1, "
          "2]}\n",
          f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(kvpool("trace replay %s", path), 0);
    assert_true(number("requests") == 3);
    assert_true(number("input_tokens") == 2900);
    assert_true(number("looked_up_tokens") == 2897);
    assert_true(number("hit_tokens") == 512 + 1088); // whole pages of 16 in the 1099 looked up
    assert_true(number("output_tokens") == 10);
}

static void figures_of_the_cache_are_shown(void **state) {
    (void)state;
    assert_int_equal(kvpool("usage lru-again"), 0);
    assert_non_null(strstr(out, "\"namespace\":\"default\""));
    assert_true(number("hit_tokens") > 0);
    assert_true(number("hit_rate") > 0.3 && number("hit_rate") < 1);
    assert_true(number("evicted") > 0);
    assert_true(number("active_pages") == 0);
    double cached = number("cached_pages");
    assert_true(cached > 0 && cached + number("free_pages") == number("num_pages"));
    assert_int_equal(kvpool("usage nonsense"), 1);
    assert_non_null(strstr(out, "no pool 'nonsense'"));
    assert_int_equal(kvpool("top -n 2 --delay 0.2"), 0);
    assert_non_null(strstr(out, "\"caches\":[{\"pool\":\"lru-400\""));
    assert_non_null(strstr(out, "\"hit_rate_now\":null"));
    assert_non_null(strstr(out, "\"evicted_per_s\":0"));
    assert_int_equal(kvpool("status"), 0);
    assert_true(number("active_pages") == 0);
    assert_true(number("cached_pages") > 300); // of the first pool's 400
}

static void a_recording_ends_with_its_daemon(void **state) { // the last test
    (void)state;
    char path[256];
    struct trace_file file;
    file_path("ended.jsonl", path);
    pid_t recorder = record_start(path, NULL);
    assert_int_equal(daemon_end(&kvd, SIGTERM, 10000), 0);
    assert_int_equal(process_wait(recorder, 10000), 1);
    assert_true(trace_file_read(path, PAGE, 0, &file)); // whole lines
    trace_file_free(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_hit_rate_is_the_simulations),
        cmocka_unit_test(scans_harm_s3fifo_less_than_lru),
        cmocka_unit_test(what_was_recorded_can_be_replayed),
        cmocka_unit_test(tokens_are_recorded_only_when_asked_for),
        cmocka_unit_test(several_workers_share_a_pool_that_is_too_small_for_them),
        cmocka_unit_test(what_never_fits_is_an_error_and_ends),
        cmocka_unit_test(replay_keeps_the_traces_time),
        cmocka_unit_test(public_traces_are_replayed),
        cmocka_unit_test(figures_of_the_cache_are_shown),
        cmocka_unit_test(a_recording_ends_with_its_daemon),
    };
    return cmocka_run_group_tests_name("trace", tests, setup, kvd_teardown);
}
