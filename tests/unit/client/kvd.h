// SPDX-License-Identifier: Apache-2.0
// kvd.h: the fake daemon of a test program whose every test starts and ends one with no options, and
// leaves no file descriptor open.
//
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_CLIENT_KVD_H
#define KVPOOL_TESTS_UNIT_CLIENT_KVD_H

#include "tests/unit/client/fake.h"

extern struct fake kvd;
int kvd_setup(void **state);
int kvd_teardown(void **state); // asserts that as many descriptors are open as before kvd_setup

#endif
