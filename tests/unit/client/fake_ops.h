// SPDX-License-Identifier: Apache-2.0
// fake_ops.h: what the fake daemon answers when no hook does.
// Thread: the fake's, with its lock held.
#ifndef KVPOOL_TESTS_UNIT_CLIENT_FAKE_OPS_H
#define KVPOOL_TESTS_UNIT_CLIENT_FAKE_OPS_H

#include "tests/unit/client/fake.h"

void fake_answer(struct fake *f, struct fake_conn *c, const struct proto_msg *request);

#endif
