// SPDX-License-Identifier: Apache-2.0
// test_log.c: one line an event, escaped, levelled, and never in anybody's way.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/log.h"
#include "tests/unit/daemon/tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct tmpdir dir;
static char path[128];

static int setup(void **state) {
    (void)state;
    unsetenv("JOURNAL_STREAM");
    if (!tmpdir_make(&dir)) {
        return -1;
    }
    tmpdir_file(&dir, "log", path, sizeof path);
    return log_open(path, LOG_INFO);
}

static int teardown(void **state) {
    (void)state;
    log_open(NULL, LOG_INFO);
    tmpdir_remove(&dir);
    return 0;
}

static size_t count_lines(const char *text) {
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += *text == '\n';
    }
    return n;
}

static void an_event_is_one_stamped_line(void **state) {
    char text[512];
    (void)state;
    log_info("session.open", "pid=%d name=\"%s\"", 4711, "worker 1");
    tmpdir_read(path, text, sizeof text);
    assert_int_equal(strlen("2026-01-31T12:00:00.123Z"), strcspn(text, " "));
    assert_int_equal('Z', text[23]);
    assert_string_equal(" info   session.open pid=4711 name=\"worker 1\"\n", text + 24);
}

static void control_characters_are_escaped(void **state) {
    char text[512];
    (void)state;
    log_error("bad.name", "name=\"%s\"", "a\nb\x1b[31m\x7f\xc3\xa4");
    tmpdir_read(path, text, sizeof text);
    assert_int_equal(1, count_lines(text));
    assert_non_null(strstr(text, "name=\"a\\x0ab\\x1b[31m\\x7f\xc3\xa4\"\n"));
}

static void a_long_line_is_cut_and_marked(void **state) {
    char value[5000], text[8192];
    (void)state;
    memset(value, '\n', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    log_info("long", "v=%s", value);
    memset(value, 'x', sizeof value - 1);
    log_info("long", "v=%s", value);
    tmpdir_read(path, text, sizeof text);
    assert_int_equal(2, count_lines(text));
    assert_true(strlen(text) <= 4096);
    assert_memory_equal("...\n", text + strlen(text) - 4, 4);
}

static void lines_above_the_level_are_left_out(void **state) {
    char text[512];
    (void)state;
    log_debug("hidden", "a=1");
    assert_false(log_enabled(LOG_DEBUG));
    log_level_set(LOG_DEBUG);
    assert_true(log_enabled(LOG_DEBUG));
    log_debug("shown", "a=2");
    tmpdir_read(path, text, sizeof text);
    assert_null(strstr(text, "hidden"));
    assert_non_null(strstr(text, "shown a=2"));
}

static void level_names_go_both_ways(void **state) {
    enum log_level level = LOG_ERROR;
    (void)state;
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++) {
        assert_true(log_level_parse(log_level_name((enum log_level)i), &level));
        assert_int_equal(i, level);
    }
    assert_false(log_level_parse("verbose", &level));
    assert_false(log_level_parse("", &level));
    assert_int_equal(LOG_DEBUG, level);
    assert_string_equal("?", log_level_name((enum log_level)99));
}

// Runs fn with stderr replaced by `fd`.
static void with_stderr(int fd, void (*fn)(void)) {
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    log_open(NULL, LOG_INFO);
    fn();
    dup2(saved, STDERR_FILENO);
    close(saved);
    log_open(path, LOG_INFO);
}

static void write_two(void) {
    log_error("one", "a=%d", 1);
    log_info("two", "a=%d", 2);
}

static void under_journald_lines_begin_with_the_priority(void **state) {
    char text[256] = "";
    int pipes[2];
    (void)state;
    assert_int_equal(0, pipe(pipes));
    setenv("JOURNAL_STREAM", "8:12345", 1);
    with_stderr(pipes[1], write_two);
    unsetenv("JOURNAL_STREAM");
    assert_true(read(pipes[0], text, sizeof text - 1) > 0);
    assert_string_equal("<3>one a=1\n<6>two a=2\n", text);
    close(pipes[0]);
    close(pipes[1]);
}

static void a_log_file_has_stamps_even_under_journald(void **state) {
    char text[256];
    (void)state;
    setenv("JOURNAL_STREAM", "8:12345", 1);
    assert_int_equal(0, log_open(path, LOG_INFO));
    unsetenv("JOURNAL_STREAM");
    log_info("x", "a=%d", 1);
    assert_int_equal('2', tmpdir_read(path, text, sizeof text)[0]);
}

static void a_full_disk_loses_lines_and_the_next_good_one_says_how_many(void **state) {
    char link[128], text[1024];
    uint64_t before = log_dropped();
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        skip();
    }
    tmpdir_file(&dir, "link", link, sizeof link);
    assert_int_equal(0, symlink("/dev/full", link));
    assert_int_equal(0, log_open(link, LOG_INFO));
    for (int i = 0; i < 5; i++) {
        log_info("lost", "i=%d", i);
    }
    assert_int_equal(before + 5, log_dropped());

    assert_int_equal(0, unlink(link)); // the disk has room again
    assert_int_equal(0, symlink(path, link));
    assert_int_equal(0, log_reopen());
    log_info("good", "i=%d", 1);
    log_info("good", "i=%d", 2);
    tmpdir_read(path, text, sizeof text);
    assert_int_equal(3, count_lines(text));
    assert_non_null(strstr(text, "log.dropped count=5\n"));
    assert_null(strstr(text, "lost"));
    assert_int_equal(before + 5, log_dropped());
}

static void write_many(void) {
    for (int i = 0; i < 3000; i++) {
        log_info("flood", "i=%d padding=%0100d", i, i);
    }
}

static void a_full_pipe_does_not_block(void **state) {
    uint64_t before = log_dropped();
    int pipes[2];
    (void)state;
    assert_int_equal(0, pipe(pipes));
    with_stderr(pipes[1], write_many);
    assert_true(log_dropped() > before + 1000);
    close(pipes[0]);
    close(pipes[1]);
}

static void a_full_socket_does_not_block(void **state) {
    uint64_t before = log_dropped();
    int pair[2];
    (void)state;
    assert_int_equal(0, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    with_stderr(pair[1], write_many);
    assert_true(log_dropped() > before + 100);
    close(pair[0]);
    close(pair[1]);
}

static void a_reader_that_went_away_is_survived(void **state) {
    uint64_t before = log_dropped();
    int pair[2];
    (void)state;
    assert_int_equal(0, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    close(pair[0]);
    with_stderr(pair[1], write_two);
    assert_int_equal(before + 2, log_dropped());
    close(pair[1]);
}

static void a_file_that_cannot_be_opened_leaves_the_log_as_it_was(void **state) {
    char text[512], name[400];
    (void)state;
    assert_int_equal(-ENOENT, log_open("/nonexistent/dir/log", LOG_DEBUG));
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(-ENAMETOOLONG, log_open(name, LOG_DEBUG));
    assert_false(log_enabled(LOG_DEBUG));
    log_info("still", "here=%d", 1);
    assert_non_null(strstr(tmpdir_read(path, text, sizeof text), "still here=1"));
}

static void a_fifo_without_a_reader_is_an_error_not_a_hang(void **state) {
    char fifo[128];
    (void)state;
    tmpdir_file(&dir, "fifo", fifo, sizeof fifo);
    assert_int_equal(0, mkfifo(fifo, 0600));
    assert_int_equal(-ENXIO, log_open(fifo, LOG_INFO));
}

static void reopen_follows_a_rotation(void **state) {
    char old[128], text[512];
    (void)state;
    log_info("before", "a=%d", 1);
    tmpdir_file(&dir, "log.1", old, sizeof old);
    assert_int_equal(0, rename(path, old));
    log_info("between", "a=%d", 2);
    assert_int_equal(0, log_reopen());
    log_info("after", "a=%d", 3);
    tmpdir_read(old, text, sizeof text);
    assert_non_null(strstr(text, "before"));
    assert_non_null(strstr(text, "between"));
    tmpdir_read(path, text, sizeof text);
    assert_non_null(strstr(text, "after"));
    assert_null(strstr(text, "between"));
}

static void a_failed_reopen_keeps_the_old_file(void **state) {
    char sub[128], file[160], moved[160], text[512];
    (void)state;
    tmpdir_file(&dir, "sub", sub, sizeof sub);
    assert_int_equal(0, mkdir(sub, 0700));
    snprintf(file, sizeof file, "%s/log", sub);
    assert_int_equal(0, log_open(file, LOG_INFO));
    tmpdir_file(&dir, "moved", moved, sizeof moved);
    assert_int_equal(0, rename(file, moved));
    assert_int_equal(0, rmdir(sub));
    assert_int_equal(-ENOENT, log_reopen());
    log_info("kept", "a=%d", 1);
    assert_non_null(strstr(tmpdir_read(moved, text, sizeof text), "kept"));
}

static void *log_hundred(void *arg) {
    for (int i = 0; i < 100; i++) {
        log_info("thread", "id=%d i=%d tail=\"end\"", *(int *)arg, i);
    }
    return NULL;
}

static void lines_of_several_threads_do_not_mix(void **state) {
    static char text[1 << 16];
    pthread_t threads[4];
    int ids[4];
    char *line, *rest = text;
    size_t n = 0;
    (void)state;
    for (int i = 0; i < 4; i++) {
        ids[i] = i;
        assert_int_equal(0, pthread_create(&threads[i], NULL, log_hundred, &ids[i]));
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    tmpdir_read(path, text, sizeof text);
    while ((line = strsep(&rest, "\n")) != NULL && *line != '\0') {
        assert_non_null(strstr(line, "tail=\"end\""));
        assert_int_equal('2', line[0]);
        n++;
    }
    assert_int_equal(400, n);
}

static void errno_survives_a_log_line(void **state) {
    (void)state;
    errno = EXDEV;
    log_info("x", "a=%d", 1);
    assert_int_equal(EXDEV, errno);
}

static void a_limited_event_is_a_line_at_first_and_then_a_minute_after_the_last(void **state) {
    struct log_limit limit = {0};
    uint64_t suppressed = 7;
    const uint64_t first = 5; // sooner after 0 than the limit
    (void)state;
    assert_true(log_limit_passes(&limit, first, &suppressed));
    assert_int_equal(0, suppressed);
    suppressed = 7;
    assert_false(log_limit_passes(&limit, first, &suppressed));
    assert_false(log_limit_passes(&limit, first + LOG_LIMIT_NS - 1, &suppressed));
    assert_int_equal(7, suppressed);
    assert_true(log_limit_passes(&limit, first + LOG_LIMIT_NS, &suppressed));
    assert_int_equal(2, suppressed);
    assert_false(log_limit_passes(&limit, first + LOG_LIMIT_NS + 1, &suppressed));
    assert_true(log_limit_passes(&limit, first + 9 * LOG_LIMIT_NS, &suppressed));
    assert_int_equal(1, suppressed);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(an_event_is_one_stamped_line),
        TEST(control_characters_are_escaped),
        TEST(a_long_line_is_cut_and_marked),
        TEST(lines_above_the_level_are_left_out),
        TEST(level_names_go_both_ways),
        TEST(under_journald_lines_begin_with_the_priority),
        TEST(a_log_file_has_stamps_even_under_journald),
        TEST(a_full_disk_loses_lines_and_the_next_good_one_says_how_many),
        TEST(a_full_pipe_does_not_block),
        TEST(a_full_socket_does_not_block),
        TEST(a_reader_that_went_away_is_survived),
        TEST(a_file_that_cannot_be_opened_leaves_the_log_as_it_was),
        TEST(a_fifo_without_a_reader_is_an_error_not_a_hang),
        TEST(reopen_follows_a_rotation),
        TEST(a_failed_reopen_keeps_the_old_file),
        TEST(lines_of_several_threads_do_not_mix),
        TEST(errno_survives_a_log_line),
        TEST(a_limited_event_is_a_line_at_first_and_then_a_minute_after_the_last),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
