// SPDX-License-Identifier: Apache-2.0
// promcheck.h: reads Prometheus' text format 0.0.4 strictly, as `promtool check metrics` does.
// Thread: any.
#ifndef KVPOOL_TESTS_UNIT_DAEMON_PROMCHECK_H
#define KVPOOL_TESTS_UNIT_DAEMON_PROMCHECK_H

#include <stdbool.h>
#include <stddef.h>

// Checks the whole text: every line parses; HELP, then TYPE, then all series of a name together;
// no series twice; counters end in _total and are not negative; the buckets of a histogram rise, end
// with +Inf and agree with _count. "" or what is wrong.
const char *prom_check(const char *text);

// The value of a series, written exactly as in the text up to the blank. False: not there.
bool prom_value(const char *text, const char *series, double *ret);

// A series of that name is there, with whatever labels. Histograms: name_bucket, name_sum, ...
bool prom_has(const char *text, const char *name);

unsigned prom_count(const char *text); // series

#endif
