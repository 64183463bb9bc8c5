// SPDX-License-Identifier: Apache-2.0
// starve.h: a machine without time for NNG: its threads get what busy threads leave them.
// Thread: the test's.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_STARVE_H
#define KVPOOL_TESTS_UNIT_DAEMON_STARVE_H

#include <stdbool.h>

bool starve_begin(
    void);             // of this process's NNG threads; false: this machine has no such scheduling
void starve_end(void); // no more busy threads; NNG's stay of low priority unless we are root

#endif
