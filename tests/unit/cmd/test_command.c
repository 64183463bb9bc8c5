// SPDX-License-Identifier: Apache-2.0
// test_command.c: the `kvpool` program without a daemon: usage, errors, exit statuses, help.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <kvpool/kvpool.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const commands[] = {"status", "ping",  "sequences", "clients",
                                       "pools",  "pool",  "bench",     "doctor",
                                       "top",    "usage", "trace",     "version"};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

struct result {
    int status;
    char text[32768]; // stdout and stderr
};

// Runs "kvpool ARGS" for a directory that has no daemon.
static struct result *run(const char *args) {
    static struct result r;
    char line[1024];
    const char *bin = getenv("KVPOOL_BIN");
    assert_non_null(bin);
    snprintf(line, sizeof(line), "exec 2>&1; KVPOOL_DIR=/nonexistent/kvpool %s/kvpool %s", bin,
             args);
    FILE *f = popen(line, "r"); // NOLINT(cert-env33-c): a command line of our own
    assert_non_null(f);
    size_t n = fread(r.text, 1, sizeof(r.text) - 1, f);
    r.text[n] = 0;
    int rc = pclose(f);
    r.status = WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
    return &r;
}

static void expect(const char *args, int status, const char *text) {
    const struct result *r = run(args);
    if (r->status != status || strstr(r->text, text) == NULL) {
        fail_msg("kvpool %s: exit status %d, wanted %d with '%s': %s", args, r->status, status,
                 text, r->text);
    }
}

static void help_lists_every_command_with_an_example(void **state) {
    (void)state;
    expect("--help", 0, "Examples:");
    for (size_t i = 0; i < COMMANDS; i++) {
        char line[64];
        expect("--help", 0, commands[i]);
        snprintf(line, sizeof(line), "%s --help", commands[i]);
        expect(line, 0, "Examples:");
        expect(line, 0, "--json");
        snprintf(line, sizeof(line), "help %s", commands[i]);
        expect(line, 0, "Examples:");
    }
    expect("help", 0, "Commands:");
}

static void without_a_daemon_commands_fail_and_point_to_the_doctor(void **state) {
    static const char *const lines[] = {"status",  "ping -c 3", "sequences",
                                        "clients", "pools",     "pool destroy x",
                                        "bench",   "top",       "usage"};
    (void)state;
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        expect(lines[i], 1, "kvpool: cannot reach the daemon in /nonexistent/kvpool: ");
        expect(lines[i], 1, "(kvpool doctor tells more)");
    }
}

static void the_option_names_the_directory_before_and_after_the_command(void **state) {
    (void)state;
    expect("--dir /nonexistent/a status", 1, "in /nonexistent/a: ");
    expect("status --dir /nonexistent/b", 1, "in /nonexistent/b: ");
    expect("--dir /nonexistent/a status --dir=/nonexistent/c", 1, "in /nonexistent/c: ");
}

static void wrong_usage_has_status_64(void **state) {
    (void)state;
    expect("", 64, "Usage: kvpool");
    expect("frobnicate", 64, "no command 'frobnicate'");
    expect("--frobnicate", 64, "unrecognized option");
    expect("status --frobnicate", 64, "unrecognized option");
    expect("status extra", 64, "unexpected argument 'extra'");
    expect("ping -c 0", 64, "not a number in 1..1000000");
    expect("ping -c many", 64, "not a number in 1..1000000");
    expect("bench -n -1", 64, "not a number in 1..1000000");
    expect("top -d 0.01", 64, "not a time of 50ms or more");
    expect("top -n 0", 64, "not a positive number");
    expect("--timeout never status", 64, "not a time of 1ms to 24h");
    expect("sequences --pool", 64, "requires an argument");
    expect("sequences extra", 64, "unexpected argument 'extra'");
    expect("doctor extra", 64, "unexpected argument 'extra'");
    expect("usage pool extra", 64, "unexpected argument 'extra'");
}

static void pool_needs_an_action_a_name_and_a_geometry(void **state) {
    (void)state;
    expect("pool", 64, "needs an action and a name");
    expect("pool create", 64, "needs an action and a name");
    expect("pool rename x", 64, "unexpected argument 'rename'");
    expect("pool create x", 64, "create needs --layers, --kv-heads and --head-dim");
    expect("pool create x --layers 1 --kv-heads 1 --head-dim 64", 64,
           "one of --pages and --memory");
    expect("pool create x --layers 1 --kv-heads 1 --head-dim 64 --pages 1 --memory 1G", 64,
           "one of --pages and --memory");
    expect("pool create x --layers one", 64, "'one' is not a number");
    expect("pool create x --dtype int8", 64, "none of fp16, bf16, fp32");
    expect("pool create x --dtype fp8_e4m3", 64, "none of fp16, bf16, fp32");
    expect("pool create x --kv-dtype int8", 64, "neither fp8_e4m3 nor the --dtype");
    expect("pool create x --export tcp", 64, "none of fd, ipc");
    expect("pool destroy x --export fd", 64, "no geometry");
    expect("pool create x --memory lots", 64, "not a size");
    expect("pool destroy x --layers 1", 64, "no geometry");
    expect("pool destroy x y", 64, "unexpected argument 'y'");
}

static void trace_needs_an_action_and_a_file(void **state) {
    static const char *const actions[] = {"record", "generate", "replay"};
    (void)state;
    expect("trace", 64, "needs an action: record, generate or replay");
    expect("trace rename x", 64, "trace has no action 'rename'");
    for (size_t i = 0; i < sizeof(actions) / sizeof(actions[0]); i++) {
        char line[64];
        snprintf(line, sizeof(line), "trace %s", actions[i]);
        expect(line, 64, "needs a FILE");
        snprintf(line, sizeof(line), "trace %s a b", actions[i]);
        expect(line, 64, "unexpected argument 'b'");
        snprintf(line, sizeof(line), "trace %s --help", actions[i]);
        expect(line, 0, "Examples:");
        expect(line, 0, "--json");
    }
    expect("trace record x --seconds never", 64, "not a time of 1ms to 24h");
    expect("trace record x", 1, "cannot reach the daemon in /nonexistent/kvpool: ");
    expect("trace generate - --requests 0", 64, "not a number in 1..");
    expect("trace generate - --zipf -1", 64, "not a number in 0..100");
    expect("trace generate - --zipf one", 64, "not a number in 0..100");
    expect("trace generate - --seed x", 64, "--seed: 'x' is not a number");
    expect("trace generate - --prefix-len 0 --suffix-len 0", 64, "one must be more than 0");
    expect("trace generate - --requests 1 --prefixes 1 --prefix-len 16 --suffix-len 0", 0,
           "{\"timestamp\":0,\"input_length\":16,\"output_length\":32,\"hash_ids\":[0],"
           "\"block_size\":16}\n");
    expect("trace generate /nonexistent/x", 1, "/nonexistent/x: No such file");
    expect("trace replay /nonexistent/x", 1, "/nonexistent/x: No such file");
    expect("trace replay x --workers 0", 64, "not a number in 1..256");
    expect("trace replay x --speed -1", 64, "not a number of 0 or more");
    expect("trace replay x --dtype int8", 64, "none of fp16, bf16, fp32");
    expect("trace replay x --dtype fp8_e4m3", 64, "none of fp16, bf16, fp32");
    expect("trace replay x --pool a --pages 7", 64, "--pool has its own geometry");
    expect("trace replay - </dev/null", 1, "cannot reach the daemon in /nonexistent/kvpool: ");
}

static void a_malformed_trace_is_refused_with_its_line(void **state) {
    (void)state;
    expect("trace replay - <<'END'\n"
           "{\"dropped\":1}\n"
           "\n"
           "{\"timestamp\":0,\"input_length\":3}\n"
           "END\n",
           1, "kvpool: -: line 3: output_length is missing");
    if (access("/dev/full", W_OK) == 0) {
        expect("trace generate /dev/full", 1, "/dev/full: cannot write");
    }
}

static void the_doctor_works_without_a_daemon_and_fails(void **state) {
    (void)state;
    expect("doctor", 1, "FAIL  directory: /nonexistent/kvpool: No such file or directory");
    expect("doctor", 1, "failures");
    expect("doctor --json", 1, "{\"dir\":\"/nonexistent/kvpool\",\"checks\":[{\"check\":");
}

static void version_works_without_a_daemon(void **state) {
    (void)state;
    expect("version", 0, kvpool_version());
    expect("version", 0, "kvpoold: not reached in /nonexistent/kvpool");
    expect("version --json", 0, "\"version\":null");
    expect("--version", 0, kvpool_version());
}

static void output_that_cannot_be_written_is_an_error(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        skip();
    }
    expect("version >/dev/full", 1, "cannot write the output");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_lists_every_command_with_an_example),
        cmocka_unit_test(without_a_daemon_commands_fail_and_point_to_the_doctor),
        cmocka_unit_test(the_option_names_the_directory_before_and_after_the_command),
        cmocka_unit_test(wrong_usage_has_status_64),
        cmocka_unit_test(pool_needs_an_action_a_name_and_a_geometry),
        cmocka_unit_test(trace_needs_an_action_and_a_file),
        cmocka_unit_test(a_malformed_trace_is_refused_with_its_line),
        cmocka_unit_test(the_doctor_works_without_a_daemon_and_fails),
        cmocka_unit_test(version_works_without_a_daemon),
        cmocka_unit_test(output_that_cannot_be_written_is_an_error),
    };
    return cmocka_run_group_tests_name("cmd/command", tests, NULL, NULL);
}
