// SPDX-License-Identifier: Apache-2.0
// consumer.c: a user's program: says the library's version, and what it learns where no daemon is.
#include <kvpool/kvpool.h>

#include <stdio.h>

int main(void) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    kvpool_client *client = NULL;
    char text[256];
    args.dir = "/nonexistent/kvpool";
    kvpool_status status = kvpool_connect(&args, &client);
    printf("%s %s: %s\n", kvpool_version(), kvpool_status_name(status),
           kvpool_last_error(NULL, text, sizeof text));
    kvpool_close(client);
    return status == KVPOOL_E_CONN ? 0 : 1;
}
