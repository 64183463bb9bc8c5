// SPDX-License-Identifier: Apache-2.0
// tmpdir.h: a private directory for a test, and small files in it.
//
// Invariants
//  1. tmpdir_remove removes the plain files and sockets in the directory, then the directory.
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_TMPDIR_H
#define KVPOOL_TESTS_UNIT_DAEMON_TMPDIR_H

#include <stdbool.h>
#include <stddef.h>

struct tmpdir {
    char path[64];
};

bool tmpdir_make(struct tmpdir *ret);
void tmpdir_remove(const struct tmpdir *dir);
void tmpdir_file(const struct tmpdir *dir, const char *name, char *ret, size_t size); // its path
bool tmpdir_write(const struct tmpdir *dir, const char *name, const char *text, char *ret_path,
                  size_t size);
// The file's text, terminated, at most size - 1 bytes; "" when it cannot be read.
const char *tmpdir_read(const char *path, char *ret, size_t size);
// How often `what` is in the file, in its first 64 KiB.
unsigned tmpdir_count(const char *path, const char *what);

#endif
