// SPDX-License-Identifier: Apache-2.0
// leakcheck.h: tells LeakSanitizer not to judge this process any more. NNG 1.5 loses the memory of
// connections whose listener broke; in builds with AddressSanitizer that would be reported as ours.
//
// Invariants
//  1. Until the first leakcheck_give_up every leak is reported; in other builds nothing happens.
// Threads: any.
#ifndef KVPOOL_DAEMON_LEAKCHECK_H
#define KVPOOL_DAEMON_LEAKCHECK_H

void leakcheck_give_up(void);

#endif
