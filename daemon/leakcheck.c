// SPDX-License-Identifier: Apache-2.0
// leakcheck.c: see leakcheck.h. LeakSanitizer asks __lsan_is_turned_off before its check at exit.
#include "daemon/leakcheck.h"

#if defined(__SANITIZE_ADDRESS__)
#include <stdatomic.h>

static atomic_int given_up;

__attribute__((visibility("default"))) int __lsan_is_turned_off(void);

__attribute__((visibility("default"))) int __lsan_is_turned_off(void) {
    return atomic_load(&given_up);
}

void leakcheck_give_up(void) {
    atomic_store(&given_up, 1);
}
#else
void leakcheck_give_up(void) {}
#endif
