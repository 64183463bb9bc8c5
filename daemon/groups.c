// SPDX-License-Identifier: Apache-2.0
// groups.c: see groups.h.
#include "daemon/groups.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifndef SO_PEERGROUPS // Linux 4.13
#define SO_PEERGROUPS 59
#endif

_Static_assert(sizeof(gid_t) == sizeof(uint32_t), "the kernel's list is used as it is");

int groups_of_peer(int socket, uint32_t gid, uint32_t **ret, uint32_t *ret_n, struct err *err) {
    socklen_t size = 0;
    // Asked for nothing the kernel says how much there is; it never changes for a connection.
    int rc = getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, NULL, &size);
    if (rc != 0 && errno != ERANGE && errno != ENOPROTOOPT && errno != ENODATA)
        return err_set(err, KVPOOL_E_SYSTEM, "SO_PEERGROUPS: %s", strerror(errno));
    bool more = rc != 0 && errno == ERANGE;
    uint32_t *gids = malloc(sizeof *gids + (more ? size : 0));
    if (gids == NULL)
        return err_set(err, KVPOOL_E_NOMEM, "groups of a client: no memory");
    gids[0] = gid;
    if (more && getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, gids + 1, &size) != 0) {
        int status = err_set(err, KVPOOL_E_SYSTEM, "SO_PEERGROUPS: %s", strerror(errno));
        free(gids);
        return status;
    }
    *ret = gids;
    *ret_n = 1 + (more ? size / (uint32_t)sizeof *gids : 0);
    return 0;
}
