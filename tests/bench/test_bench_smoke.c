// SPDX-License-Identifier: Apache-2.0
// test_bench_smoke.c: `kvpool-bench all --quick --json` ends well and prints every fixed figure,
// each line a JSON object of the fixed form. The figures themselves are not judged.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define MAX_FIGURES 256

struct figure {
    char bench[32], name[32], metric[32];
    double value;
};

static struct figure figures[MAX_FIGURES];
static size_t num_figures;
static int exit_status;

// Takes `before`, then a name up to the closing quote; moves *at behind both.
static bool take(const char **at, const char *before, char name[32]) {
    size_t len = 0;
    if (strncmp(*at, before, strlen(before)) != 0) {
        return false;
    }
    *at += strlen(before);
    len = strspn(*at, "abcdefghijklmnopqrstuvwxyz0123456789_");
    if (len == 0 || len >= 32 || (*at)[len] != '"') {
        return false;
    }
    memcpy(name, *at, len);
    name[len] = 0;
    *at += len + 1;
    return true;
}

// The whole line must be {"bench":"..","case":"..","metric":"..","value":number} and a newline.
static bool parse(const char *line, struct figure *f) {
    static const char value[] = ",\"value\":";
    const char *at = line;
    char *end = NULL;
    if (!take(&at, "{\"bench\":\"", f->bench) || !take(&at, ",\"case\":\"", f->name) ||
        !take(&at, ",\"metric\":\"", f->metric) || strncmp(at, value, strlen(value)) != 0) {
        return false;
    }
    at += strlen(value);
    if (strspn(at, "-0123456789") == 0) { // no blanks, no "nan", no "inf"
        return false;
    }
    f->value = strtod(at, &end);
    return strcmp(end, "}\n") == 0;
}

static int run_all(void **state) {
    char line[512];
    const char *bin = getenv("KVPOOL_BIN");
    (void)state;
    assert_non_null(bin);
    snprintf(line, sizeof(line), "exec %s/kvpool-bench all --quick --json", bin);
    FILE *f = popen(line, "r"); // NOLINT(cert-env33-c): a command line of our own
    assert_non_null(f);
    while (fgets(line, sizeof(line), f) != NULL) {
        if (num_figures == MAX_FIGURES || !parse(line, &figures[num_figures])) {
            print_error("not a figure: %s", line);
            pclose(f);
            return -1;
        }
        num_figures++;
    }
    int rc = pclose(f);
    exit_status = WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
    return 0;
}

static const struct figure *find(const char *bench, const char *name, const char *metric) {
    for (size_t i = 0; i < num_figures; i++) {
        if (strcmp(figures[i].bench, bench) == 0 && strcmp(figures[i].name, name) == 0 &&
            strcmp(figures[i].metric, metric) == 0) {
            return &figures[i];
        }
    }
    return NULL;
}

static void expect_positive(const char *bench, const char *name, const char *metric) {
    const struct figure *f = find(bench, name, metric);
    if (f == NULL || !isfinite(f->value) || f->value <= 0) {
        fail_msg("%s %s %s is missing or not positive", bench, name, metric);
    }
}

static void it_ends_with_status_0(void **state) {
    (void)state;
    assert_int_equal(exit_status, 0);
}

static void core_has_its_cases(void **state) {
    static const char *const steps[] = {"step_1", "step_32", "step_256"};
    (void)state;
    expect_positive("core", "alloc_free", "pages_per_s");
    for (size_t i = 0; i < 3; i++) {
        expect_positive("core", steps[i], "p50_us");
        expect_positive("core", steps[i], "p99_us");
    }
}

static void prefix_has_its_cases(void **state) {
    (void)state;
    expect_positive("prefix", "hash_16", "tokens_per_s");
    expect_positive("prefix", "lookup", "per_s");
    expect_positive("prefix", "match_50k", "p50_ms");
    expect_positive("prefix", "match_50k", "probe_p50_ms");
    expect_positive("prefix", "evict_1e4", "ns_per_page");
    expect_positive("prefix", "evict_1e5", "ns_per_page");
}

static void control_has_its_cases_without_errors(void **state) {
    static const char *const names[] = {"echo_1", "ping_1", "ping_8", "ping_64", "decode_1"};
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        const struct figure *errors = find("control", names[i], "errors");
        expect_positive("control", names[i], "p50_us");
        expect_positive("control", names[i], "p99_us");
        assert_non_null(errors);
        assert_true(errors->value == 0);
    }
}

static void attention_has_its_cases(void **state) {
    (void)state;
    expect_positive("attention", "roof", "gb_per_s");
    expect_positive("attention", "decode_b8_4k", "roof_fraction");
    assert_true(find("attention", "decode_b8_4k", "gb_per_s") != NULL ||
                find("attention", "decode_b8_4k", "gflop_per_s") != NULL);
    assert_true(find("attention", "prefill_1_2k", "gb_per_s") != NULL ||
                find("attention", "prefill_1_2k", "gflop_per_s") != NULL);
}

static void no_figure_is_printed_twice(void **state) {
    (void)state;
    for (size_t i = 0; i < num_figures; i++) {
        assert_ptr_equal(find(figures[i].bench, figures[i].name, figures[i].metric), &figures[i]);
    }
}

static void a_line_of_another_form_is_refused(void **state) {
    struct figure f = {.value = 0};
    (void)state;
    assert_true(parse("{\"bench\":\"a\",\"case\":\"b\",\"metric\":\"c\",\"value\":-1.5e3}\n", &f));
    assert_true(f.value == -1500);
    assert_false(parse("{\"bench\":\"a\",\"case\":\"b\",\"metric\":\"c\",\"value\":nan}\n", &f));
    assert_false(parse("{\"bench\":\"a\",\"case\":\"b\",\"metric\":\"c\",\"value\":1}", &f));
    assert_false(parse("{\"bench\":\"a\",\"case\":\"b\",\"value\":1}\n", &f));
    assert_false(parse("hello\n", &f));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_ends_with_status_0),
        cmocka_unit_test(core_has_its_cases),
        cmocka_unit_test(prefix_has_its_cases),
        cmocka_unit_test(control_has_its_cases_without_errors),
        cmocka_unit_test(attention_has_its_cases),
        cmocka_unit_test(no_figure_is_printed_twice),
        cmocka_unit_test(a_line_of_another_form_is_refused),
    };
    return cmocka_run_group_tests_name("bench/smoke", tests, run_all, NULL);
}
