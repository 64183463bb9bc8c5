// SPDX-License-Identifier: Apache-2.0
// test_runtime_dir.c: one live daemon a directory; what a dead one left is removed.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/runtime_dir.h"
#include "tests/unit/daemon/tmpdir.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static struct tmpdir dir;
static struct err err;

static int setup(void **state) {
    (void)state;
    memset(&err, 0, sizeof err);
    return tmpdir_make(&dir) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    tmpdir_remove(&dir);
    return 0;
}

// A socket that an earlier daemon left.
static void leave_socket(const char *name, char *ret, size_t size) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    tmpdir_file(&dir, name, ret, size);
    assert_true(strlen(ret) < sizeof addr.sun_path);
    memcpy(addr.sun_path, ret, strlen(ret) + 1);
    assert_int_equal(0, bind(fd, (struct sockaddr *)&addr, sizeof addr));
    close(fd);
}

static void a_missing_directory_is_made_with_its_mode(void **state) {
    struct runtime_dir *d = NULL;
    char path[128], lock[160], text[32];
    struct stat st;
    mode_t mask = umask(0077);
    (void)state;
    tmpdir_file(&dir, "run", path, sizeof path);
    assert_int_equal(0, runtime_dir_open(path, 0750, &d, &err));
    umask(mask);
    assert_int_equal(0, stat(path, &st));
    assert_int_equal(0750, st.st_mode & 07777);
    assert_false(runtime_dir_is_open_to_all(d));
    snprintf(lock, sizeof lock, "%s/kvpoold.lock", path);
    assert_int_equal(getpid(), strtol(tmpdir_read(lock, text, sizeof text), NULL, 10));
    runtime_dir_close(d);
    assert_int_equal(0, unlink(lock));
    assert_int_equal(0, rmdir(path));
}

static void an_existing_directory_keeps_its_mode(void **state) {
    struct runtime_dir *d = NULL;
    struct stat st;
    (void)state;
    assert_int_equal(0, chmod(dir.path, 0777));
    assert_int_equal(0, runtime_dir_open(dir.path, 0750, &d, &err));
    assert_int_equal(0, stat(dir.path, &st));
    assert_int_equal(0777, st.st_mode & 0777);
    assert_true(runtime_dir_is_open_to_all(d));
    runtime_dir_close(d);
}

static void a_missing_parent_is_refused(void **state) {
    struct runtime_dir *d = NULL;
    char path[128];
    (void)state;
    tmpdir_file(&dir, "no/run", path, sizeof path);
    assert_int_equal(KVPOOL_E_SYSTEM, runtime_dir_open(path, 0750, &d, &err));
    assert_non_null(strstr(err.text, "no/run: its parent directory does not exist"));
    assert_null(d);
}

static void a_file_in_the_directorys_place_is_refused(void **state) {
    struct runtime_dir *d = NULL;
    char path[128];
    (void)state;
    assert_true(tmpdir_write(&dir, "run", "x", path, sizeof path));
    assert_int_equal(KVPOOL_E_INVAL, runtime_dir_open(path, 0750, &d, &err));
    assert_non_null(strstr(err.text, "Not a directory"));
}

static void a_directory_held_by_a_live_daemon_is_refused_and_left_alone(void **state) {
    struct runtime_dir *d = NULL;
    char socket_path[128], expected[160];
    int ready[2], status;
    char byte;
    pid_t pid;
    (void)state;
    assert_int_equal(0, pipe(ready));
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) { // the live daemon
        struct runtime_dir *own;
        if (runtime_dir_open(dir.path, 0750, &own, NULL) != 0 || write(ready[1], "r", 1) != 1) {
            _exit(1);
        }
        pause();
        _exit(0);
    }
    assert_int_equal(1, read(ready[0], &byte, 1));
    leave_socket("kvpool.sock", socket_path, sizeof socket_path);
    assert_int_equal(KVPOOL_E_BUSY, runtime_dir_open(dir.path, 0750, &d, &err));
    snprintf(expected, sizeof expected, "socket directory %s is held by a live kvpoold (pid %ld)",
             dir.path, (long)pid);
    assert_string_equal(expected, err.text);
    assert_int_equal(0, access(socket_path, F_OK)); // the live daemon's socket

    kill(pid, SIGKILL); // however it ends, the lock ends with it
    assert_int_equal(pid, waitpid(pid, &status, 0));
    assert_int_equal(0, runtime_dir_open(dir.path, 0750, &d, &err));
    assert_int_not_equal(0, access(socket_path, F_OK)); // stale now
    runtime_dir_close(d);
    close(ready[0]);
    close(ready[1]);
}

static void stale_sockets_are_removed(void **state) {
    struct runtime_dir *d = NULL;
    char a[128], b[128], other[128];
    (void)state;
    leave_socket("kvpool.sock", a, sizeof a);
    leave_socket("fd.sock", b, sizeof b);
    leave_socket("other.sock", other, sizeof other);
    assert_int_equal(0, runtime_dir_open(dir.path, 0750, &d, &err));
    assert_int_not_equal(0, access(a, F_OK));
    assert_int_not_equal(0, access(b, F_OK));
    assert_int_equal(0, access(other, F_OK));
    runtime_dir_close(d);
}

static void a_file_in_a_sockets_place_is_refused_and_kept(void **state) {
    struct runtime_dir *d = NULL;
    char path[128];
    (void)state;
    assert_true(tmpdir_write(&dir, "fd.sock", "precious", path, sizeof path));
    assert_int_equal(KVPOOL_E_INVAL, runtime_dir_open(dir.path, 0750, &d, &err));
    assert_non_null(strstr(err.text, "fd.sock is in the way and is not a socket"));
    assert_int_equal(0, access(path, F_OK));
    assert_int_equal(0, unlink(path)); // and the failed open gave the lock back
    assert_int_equal(0, runtime_dir_open(dir.path, 0750, &d, &err));
    runtime_dir_close(d);
}

static void a_symlink_in_the_locks_place_is_not_followed(void **state) {
    struct runtime_dir *d = NULL;
    char target[128], lock[128], text[16];
    (void)state;
    assert_true(tmpdir_write(&dir, "target", "precious", target, sizeof target));
    tmpdir_file(&dir, "kvpoold.lock", lock, sizeof lock);
    assert_int_equal(0, symlink(target, lock));
    assert_int_equal(KVPOOL_E_SYSTEM, runtime_dir_open(dir.path, 0750, &d, &err));
    assert_string_equal("precious", tmpdir_read(target, text, sizeof text));
}

static void the_lock_can_be_taken_again_after_close(void **state) {
    struct runtime_dir *d = NULL;
    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(0, runtime_dir_open(dir.path, 0750, &d, &err));
        runtime_dir_close(d);
    }
    runtime_dir_close(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_missing_directory_is_made_with_its_mode),
        TEST(an_existing_directory_keeps_its_mode),
        TEST(a_missing_parent_is_refused),
        TEST(a_file_in_the_directorys_place_is_refused),
        TEST(a_directory_held_by_a_live_daemon_is_refused_and_left_alone),
        TEST(stale_sockets_are_removed),
        TEST(a_file_in_a_sockets_place_is_refused_and_kept),
        TEST(a_symlink_in_the_locks_place_is_not_followed),
        TEST(the_lock_can_be_taken_again_after_close),
    };
    return cmocka_run_group_tests_name("runtime_dir", tests, NULL, NULL);
}
