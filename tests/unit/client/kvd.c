// SPDX-License-Identifier: Apache-2.0
// kvd.c: see kvd.h.
#include "tests/unit/client/kvd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

struct fake kvd;
static unsigned fds_before;

int kvd_setup(void **state) {
    (void)state;
    fds_before = open_fds();
    fake_init(&kvd);
    fake_start(&kvd);
    return 0;
}

int kvd_teardown(void **state) {
    (void)state;
    fake_cleanup(&kvd);
    assert_int_equal(open_fds(), fds_before);
    return 0;
}
