// SPDX-License-Identifier: Apache-2.0
// err.c: see err.h; also the two public tables made from KVPOOL_STATUS_MAP.
#include "proto/err.h"

#include <stdarg.h>
#include <stdio.h>

__attribute__((format(printf, 4, 0))) static int set(struct err *err, int status, uint64_t detail,
                                                     const char *fmt, va_list ap) {
    if (err != NULL) {
        err->status = status;
        err->detail = detail;
        vsnprintf(err->text, sizeof err->text, fmt, ap);
    }
    return status;
}

int err_set(struct err *err, int status, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    set(err, status, 0, fmt, ap);
    va_end(ap);
    return status;
}

int err_set_detail(struct err *err, int status, uint64_t detail, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    set(err, status, detail, fmt, ap);
    va_end(ap);
    return status;
}

const char *kvpool_strerror(kvpool_status status) {
    switch (status) {
#define CASE(name, value, text) \
    case KVPOOL_##name:         \
        return text;
        KVPOOL_STATUS_MAP(CASE)
#undef CASE
    }
    return "unknown status";
}

const char *kvpool_status_name(kvpool_status status) {
    switch (status) {
#define CASE(name, value, text) \
    case KVPOOL_##name:         \
        return "KVPOOL_" #name;
        KVPOOL_STATUS_MAP(CASE)
#undef CASE
    }
    return "KVPOOL_E_?";
}
