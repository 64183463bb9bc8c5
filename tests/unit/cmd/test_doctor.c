// SPDX-License-Identifier: Apache-2.0
// test_doctor.c: what `kvpool doctor` finds in directories that are wrong in known ways.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/cmd/doctor.h"
#include "tests/unit/cmd/capture.h"

#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

struct room { // a private directory and a doctor that writes into memory
    char dir[64];
    struct capture capture;
    struct doctor doctor;
};

static void path_in(const struct room *r, const char *name, char path[128]) {
    snprintf(path, 128, "%s/%s", r->dir, name);
}

static int set_up(void **state) {
    struct room *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    snprintf(r->dir, sizeof(r->dir), "/tmp/kvpool-doctor-XXXXXX");
    assert_non_null(mkdtemp(r->dir)); // mode 0700
    capture_start(&r->capture);
    r->doctor.out = r->capture.out;
    *state = r;
    return 0;
}

static int tear_down(void **state) {
    static const char *const names[] = {"kvpoold.lock", "kvpool.sock", "fd.sock", "file"};
    struct room *r = *state;
    char path[128];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        path_in(r, names[i], path);
        unlink(path);
    }
    rmdir(r->dir);
    capture_free(&r->capture);
    free(r);
    return 0;
}

// Ends the capture: the doctor must have said `text` in a line that begins with `result`.
static void expect_line(struct room *r, const char *result, const char *text) {
    const char *said = capture_end(&r->capture);
    const char *at = strstr(said, text);
    if (at == NULL) {
        fail_msg("'%s' is not in: %s", text, said);
        return;
    }
    while (at > said && at[-1] != '\n') {
        at--;
    }
    if (strncmp(at, result, strlen(result)) != 0) {
        fail_msg("not %s: %s", result, said);
    }
}

static int touch(const struct room *r, const char *name) {
    char path[128];
    path_in(r, name, path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

// A bound socket of any kind; listens when it can.
static int bind_socket(const struct room *r, const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", r->dir, name);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void a_missing_directory_fails_and_says_how_to_start_a_daemon(void **state) {
    struct room *r = *state;
    char path[128];
    path_in(r, "missing", path);
    assert_false(doctor_directory(&r->doctor, path));
    assert_int_equal(r->doctor.counts[DOCTOR_FAIL], 1);
    expect_line(r, "FAIL", "start one: kvpoold --dir");
}

static void a_file_in_place_of_the_directory_fails(void **state) {
    struct room *r = *state;
    char path[128];
    close(touch(r, "file"));
    path_in(r, "file", path);
    assert_false(doctor_directory(&r->doctor, path));
    expect_line(r, "FAIL", "is not a directory");
}

static void a_path_too_long_for_a_socket_fails(void **state) {
    struct room *r = *state;
    char path[300];
    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[sizeof(path) - 1] = 0;
    assert_false(doctor_directory(&r->doctor, path));
    expect_line(r, "FAIL", "107 is the most a socket can have");
}

static void the_longest_possible_path_is_no_failure_of_length(void **state) {
    struct room *r = *state;
    char path[97]; // 96 + "/" + "kvpool.sock" = 107 would be one too many: 12 bytes follow
    memset(path, 'x', sizeof(path));
    path[0] = '/';
    path[95] = 0; // 95 + 12 = 107
    assert_false(doctor_directory(&r->doctor, path));
    expect_line(r, "FAIL", "No such file or directory");
}

static void a_directory_open_to_everyone_is_a_warning(void **state) {
    struct room *r = *state;
    assert_int_equal(chmod(r->dir, 0777), 0);
    assert_true(doctor_directory(&r->doctor, r->dir));
    assert_int_equal(r->doctor.counts[DOCTOR_WARN], 1);
    expect_line(r, "warn", "strangers can reach the sockets");
}

static void a_private_directory_is_fine(void **state) {
    struct room *r = *state;
    assert_int_equal(chmod(r->dir, 0750), 0);
    assert_true(doctor_directory(&r->doctor, r->dir));
    assert_int_equal(r->doctor.counts[DOCTOR_OK], 1);
    expect_line(r, "ok", "mode 0750");
}

static void a_directory_closed_to_this_user_names_mode_and_group(void **state) {
    struct room *r = *state;
    if (geteuid() == 0) {
        assert_int_equal(seteuid(65534), 0); // root passes everywhere: given up for this check
    } else {
        assert_int_equal(chmod(r->dir, 0), 0);
    }
    bool good = doctor_directory(&r->doctor, r->dir);
    if (geteuid() == 65534 && getuid() == 0) {
        assert_int_equal(seteuid(0), 0);
    }
    assert_int_equal(chmod(r->dir, 0700), 0);
    assert_false(good);
    expect_line(r, "FAIL", "which keeps user");
}

static void without_a_lock_file_no_daemon_ever_ran(void **state) {
    struct room *r = *state;
    assert_false(doctor_lock(&r->doctor, r->dir));
    expect_line(r, "FAIL", "none has ever run");
}

static void a_lock_file_that_nobody_holds_is_a_dead_daemon(void **state) {
    struct room *r = *state;
    close(touch(r, "kvpoold.lock"));
    assert_false(doctor_lock(&r->doctor, r->dir));
    expect_line(r, "FAIL", "nobody holds kvpoold.lock");
}

static void a_held_lock_names_the_process(void **state) {
    struct room *r = *state;
    char pid[32];
    int fd = touch(r, "kvpoold.lock");
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_true(doctor_lock(&r->doctor, r->dir));
    // the doctor took no lock itself: it is still ours alone
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    close(fd);
    snprintf(pid, sizeof(pid), "process %ld runs", (long)getpid());
    expect_line(r, "ok", pid);
}

static void missing_sockets_fail(void **state) {
    struct room *r = *state;
    assert_false(doctor_sockets(&r->doctor, r->dir));
    assert_int_equal(r->doctor.counts[DOCTOR_FAIL], 2); // both are named
    expect_line(r, "FAIL", "fd.sock: No such file");
}

static void a_file_in_place_of_a_socket_fails(void **state) {
    struct room *r = *state;
    close(touch(r, "kvpool.sock"));
    assert_false(doctor_sockets(&r->doctor, r->dir));
    expect_line(r, "FAIL", "kvpool.sock is not a socket");
}

static void a_socket_that_nobody_listens_on_fails(void **state) {
    struct room *r = *state;
    close(bind_socket(r, "kvpool.sock"));
    close(bind_socket(r, "fd.sock"));
    assert_false(doctor_sockets(&r->doctor, r->dir));
    expect_line(r, "FAIL", "Connection refused");
}

static void a_socket_that_accepts_is_fine(void **state) {
    struct room *r = *state;
    int fd = bind_socket(r, "fd.sock");
    close(bind_socket(r, "kvpool.sock"));
    assert_int_equal(listen(fd, 4), 0);
    assert_true(doctor_sockets(&r->doctor, r->dir));
    close(fd);
    expect_line(r, "ok", "fd.sock accepts");
}

static void a_full_queue_of_connections_fails_at_once(void **state) {
    struct room *r = *state;
    int fd = bind_socket(r, "fd.sock");
    int waiting[8];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    close(bind_socket(r, "kvpool.sock"));
    assert_int_equal(listen(fd, 0), 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/fd.sock", r->dir);
    for (int i = 0; i < 8; i++) {
        waiting[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)connect(waiting[i], (struct sockaddr *)&address, sizeof(address));
    }
    assert_false(doctor_sockets(&r->doctor, r->dir));
    for (int i = 0; i < 8; i++) {
        close(waiting[i]);
    }
    close(fd);
    expect_line(r, "FAIL", "queue of connections is full");
}

static void versions_differ_in_major_or_minor_only(void **state) {
    struct room *r = *state;
    doctor_versions(&r->doctor, "0.1.0", "0.1.9");
    assert_int_equal(r->doctor.counts[DOCTOR_OK], 1);
    doctor_versions(&r->doctor, "0.1.0", "0.2.0");
    doctor_versions(&r->doctor, "1.1.0", "0.1.0");
    doctor_versions(&r->doctor, "0.1.0", "garbage");
    assert_int_equal(r->doctor.counts[DOCTOR_WARN], 3);
    expect_line(r, "warn", "library 0.1.0, daemon 0.2.0");
}

static void the_machine_checks_report_every_part(void **state) {
    static const char *const checks[] = {
        "library: ",         "cpu: ",  "open files: ", "locked memory: ", "shared memory: ",
        "process handles: ", "clock: "};
    struct room *r = *state;
    doctor_machine(&r->doctor);
    const char *said = capture_end(&r->capture);
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        assert_non_null(strstr(said, checks[i]));
    }
    assert_int_equal(r->doctor.counts[DOCTOR_FAIL], 0);
}

static void reports_are_objects_in_json(void **state) {
    struct room *r = *state;
    struct json j = json_start(r->capture.out);
    r->doctor.json = &j;
    json_array(&j, NULL);
    doctor_report(&r->doctor, DOCTOR_OK, "a", NULL, "fine %d", 1);
    doctor_report(&r->doctor, DOCTOR_FAIL, "b", "do \"it\"", "bad");
    json_end(&j);
    json_finish(&j);
    assert_string_equal(
        capture_end(&r->capture),
        "[{\"check\":\"a\",\"result\":\"ok\",\"text\":\"fine 1\",\"advice\":null},"
        "{\"check\":\"b\",\"result\":\"fail\",\"text\":\"bad\",\"advice\":\"do \\\"it\\\"\"}]\n");
}

#define IN_A_ROOM(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_A_ROOM(a_missing_directory_fails_and_says_how_to_start_a_daemon),
        IN_A_ROOM(a_file_in_place_of_the_directory_fails),
        IN_A_ROOM(a_path_too_long_for_a_socket_fails),
        IN_A_ROOM(the_longest_possible_path_is_no_failure_of_length),
        IN_A_ROOM(a_directory_open_to_everyone_is_a_warning),
        IN_A_ROOM(a_private_directory_is_fine),
        IN_A_ROOM(a_directory_closed_to_this_user_names_mode_and_group),
        IN_A_ROOM(without_a_lock_file_no_daemon_ever_ran),
        IN_A_ROOM(a_lock_file_that_nobody_holds_is_a_dead_daemon),
        IN_A_ROOM(a_held_lock_names_the_process),
        IN_A_ROOM(missing_sockets_fail),
        IN_A_ROOM(a_file_in_place_of_a_socket_fails),
        IN_A_ROOM(a_socket_that_nobody_listens_on_fails),
        IN_A_ROOM(a_socket_that_accepts_is_fine),
        IN_A_ROOM(a_full_queue_of_connections_fails_at_once),
        IN_A_ROOM(versions_differ_in_major_or_minor_only),
        IN_A_ROOM(the_machine_checks_report_every_part),
        IN_A_ROOM(reports_are_objects_in_json),
    };
    return cmocka_run_group_tests_name("cmd/doctor", tests, NULL, NULL);
}
