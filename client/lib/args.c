// SPDX-License-Identifier: Apache-2.0
// args.c: see args.h.
#include "client/lib/args.h"

#include <string.h>

int args_check(size_t known, const void *dst, const char *name, struct err *err) {
    if (dst == NULL)
        return err_set(err, KVPOOL_E_INVAL, "%s is NULL", name);
    size_t size;
    memcpy(&size, dst, sizeof size);
    if (size < known)
        return err_set(err, KVPOOL_E_INVAL, "%s.size is %zu, at least %zu is needed", name, size,
                       known);
    return 0;
}

int args_read(void *dst, size_t known, const void *src, const char *name, struct err *err) {
    int rc = args_check(known, src, name, err);
    if (rc == 0)
        memcpy(dst, src, known);
    return rc;
}

int args_read_grown(void *dst, size_t known, size_t first, const void *src, const char *name,
                    struct err *err) {
    if (src == NULL)
        return err_set(err, KVPOOL_E_INVAL, "%s is NULL", name);
    size_t size;
    memcpy(&size, src, sizeof size);
    if (size != first)
        return args_read(dst, known, src, name, err);
    memcpy(dst, src, first);
    memset((char *)dst + first, 0, known - first);
    return 0;
}

int args_check_grown(size_t known, size_t first, const void *dst, const char *name,
                     struct err *err) {
    size_t size = 0;
    if (dst != NULL)
        memcpy(&size, dst, sizeof size);
    return dst != NULL && size == first ? 0 : args_check(known, dst, name, err);
}

void args_write(void *dst, const void *src, size_t known) {
    size_t size;
    memcpy(&size, dst, sizeof size);
    known = size < known ? size : known;
    memcpy((char *)dst + sizeof(size_t), (const char *)src + sizeof(size_t),
           known - sizeof(size_t));
}

int args_name(char *dst, const char *name, const char *what, struct err *err) {
    if (name == NULL)
        return err_set(err, KVPOOL_E_INVAL, "%s is NULL", what);
    size_t len = strnlen(name, KVPOOL_NAME_MAX + 1);
    if (len == 0)
        return err_set(err, KVPOOL_E_INVAL, "%s is empty", what);
    if (len > KVPOOL_NAME_MAX)
        return err_set(err, KVPOOL_E_INVAL, "%s is longer than %d bytes", what, KVPOOL_NAME_MAX);
    memset(dst, 0, KVPOOL_NAME_MAX + 1);
    memcpy(dst, name, len);
    return 0;
}
