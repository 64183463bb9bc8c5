// SPDX-License-Identifier: Apache-2.0
// credentials.h: the secrets by which clients prove an identity, from a file of the operator's:
//
//   # a comment
//   IDENTITY SECRET          an identity may have several secrets (to change them), one a line
//
// Invariants
//  1. A table comes only from a file that nobody but its owner can read or write, and whose owner
//     is root or the daemon's own user.
//  2. No secret belongs to two identities.
//  3. Looking up takes the same time for every credential, known or not.
//  4. Secrets are wiped from memory before it is freed; no message contains one.
// Thread: loop thread.
#ifndef KVPOOL_DAEMON_CREDENTIALS_H
#define KVPOOL_DAEMON_CREDENTIALS_H

#include "daemon/core/core.h"
#include "proto/proto.h"

#define CREDENTIALS_MAX 1024 // lines with a secret

struct credentials;

// Errors: SYSTEM (unreadable), PERM (owner or mode), INVAL (names file and line), NOMEM.
int credentials_load(const char *path, struct credentials **ret, struct err *err);
void credentials_free(struct credentials *c); // NULL is ignored

// The identity that the credential (terminated and zero-padded) proves, or NULL. It is the table's.
const char *credentials_find(const struct credentials *c,
                             const char credential[PROTO_CREDENTIAL_SIZE]);
uint32_t credentials_count(const struct credentials *c);

// A name that an identity, a namespace or a share may have: 1 to 31 of [A-Za-z0-9_.-].
bool credentials_name_ok(const char *name, size_t len);

#endif
