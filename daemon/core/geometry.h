// SPDX-License-Identifier: Apache-2.0
// geometry.h: the limits of a pool's configuration that kvpool.h does not name.
#ifndef KVPOOL_DAEMON_CORE_GEOMETRY_H
#define KVPOOL_DAEMON_CORE_GEOMETRY_H

#include "daemon/core/state.h"

#define GEOMETRY_MAX_PAGES ((uint32_t)INT32_MAX) // page ids also fit a signed kernel index
#define GEOMETRY_MAX_SEQS (UINT32_C(1) << 20)
#define GEOMETRY_DEFAULT_SEQS 1024u

// 1..31 bytes of [A-Za-z0-9_.-], terminated. Errors: INVAL.
int geometry_check_name(const char name[CORE_NAME_SIZE], struct err *err);

#endif
