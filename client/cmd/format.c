// SPDX-License-Identifier: Apache-2.0
// format.c: see format.h.
#include "client/cmd/format.h"

#include <kvpool/kvpool.h>

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// Three significant digits: "1.50", "15.0" and "150" without trailing zeros after the point.
static char *scaled(double value, const char *unit, char buf[FORMAT_SIZE]) {
    char number[FORMAT_SIZE];
    int digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    snprintf(number, sizeof(number), "%.*f", digits, value);
    if (strchr(number, '.') != NULL) {
        size_t len = strlen(number);
        while (number[len - 1] == '0') {
            number[--len] = 0;
        }
        if (number[len - 1] == '.') {
            number[len - 1] = 0;
        }
    }
    snprintf(buf, FORMAT_SIZE, "%.20s%.8s", number, unit);
    return buf;
}

char *format_bytes(uint64_t bytes, char buf[FORMAT_SIZE]) {
    static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
    size_t unit = 0;
    double value = (double)bytes;
    while (value >= 1023.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    return scaled(value, units[unit], buf);
}

char *format_count(uint64_t count, char buf[FORMAT_SIZE]) {
    static const char *const units[] = {"", "k", "M", "G", "T", "P", "E"};
    size_t unit = 0;
    double value = (double)count;
    if (count < 10000) {
        return format_u64(count, buf);
    }
    while (value >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1000;
        unit++;
    }
    return scaled(value, units[unit], buf);
}

char *format_uptime(uint64_t ns, char buf[FORMAT_SIZE]) {
    uint64_t s = ns / 1000000000u;
    if (s < 60) {
        snprintf(buf, FORMAT_SIZE, "%" PRIu64 "s", s);
    } else if (s < 3600) {
        snprintf(buf, FORMAT_SIZE, "%" PRIu64 "m %" PRIu64 "s", s / 60, s % 60);
    } else if (s < 86400) {
        snprintf(buf, FORMAT_SIZE, "%" PRIu64 "h %" PRIu64 "m", s / 3600, s / 60 % 60);
    } else {
        snprintf(buf, FORMAT_SIZE, "%" PRIu64 "d %" PRIu64 "h", s / 86400, s / 3600 % 24);
    }
    return buf;
}

char *format_us(double us, char buf[FORMAT_SIZE]) {
    if (us < 999.5) {
        snprintf(buf, FORMAT_SIZE, "%.1f us", us);
    } else if (us < 999.5e3) {
        snprintf(buf, FORMAT_SIZE, "%.2f ms", us / 1e3);
    } else {
        snprintf(buf, FORMAT_SIZE, "%.2f s", us / 1e6);
    }
    return buf;
}

char *format_u64(uint64_t value, char buf[FORMAT_SIZE]) {
    snprintf(buf, FORMAT_SIZE, "%" PRIu64, value);
    return buf;
}

char *format_handle(uint64_t value, char buf[FORMAT_SIZE]) {
    snprintf(buf, FORMAT_SIZE, "0x%" PRIx64, value);
    return buf;
}

char *format_plain(const char *text, char *buf, size_t size) {
    size_t i = 0;
    for (; text[i] != 0 && i + 1 < size; i++) {
        unsigned char c = (unsigned char)text[i];
        buf[i] = c < 0x20 || c > 0x7E ? '?' : text[i];
    }
    buf[i] = 0;
    return buf;
}

bool parse_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret) {
    char *end = NULL;
    if (text[0] < '0' || text[0] > '9') { // strtoull would take a sign and blanks
        return false;
    }
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != 0 || value < min || value > max) {
        return false;
    }
    *ret = (uint32_t)value;
    return true;
}

// A plain decimal number at the start of text; false for signs, "inf", "nan" and hexadecimals.
static bool parse_decimal(const char *text, double *ret, const char **ret_rest) {
    size_t len = strspn(text, "0123456789.");
    char number[FORMAT_SIZE];
    char *end = NULL;
    if (len == 0 || len >= sizeof(number)) {
        return false;
    }
    memcpy(number, text, len);
    number[len] = 0;
    *ret = strtod(number, &end);
    *ret_rest = text + len;
    return *end == 0;
}

bool parse_double(const char *text, double min, double max, double *ret) {
    const char *rest = NULL;
    double value = 0;
    if (!parse_decimal(text, &value, &rest) || *rest != 0 || value < min || value > max) {
        return false;
    }
    *ret = value;
    return true;
}

bool parse_duration_ms(const char *text, uint32_t *ret_ms) {
    double value = 0;
    const char *unit = NULL;
    if (!parse_decimal(text, &value, &unit)) {
        return false;
    }
    if (strcmp(unit, "ms") != 0) {
        if (strcmp(unit, "") != 0 && strcmp(unit, "s") != 0) {
            return false;
        }
        value *= 1000;
    }
    if (value < 1 || value > 86400e3) {
        return false;
    }
    *ret_ms = (uint32_t)value;
    return true;
}

bool parse_bytes(const char *text, uint64_t *ret) {
    static const char letters[] = "KMGT";
    double value = 0;
    const char *unit = NULL;
    if (!parse_decimal(text, &value, &unit)) {
        return false;
    }
    if (*unit != 0 && strcmp(unit, "B") != 0) {
        const char *letter = strchr(letters, *unit >= 'a' ? *unit - 'a' + 'A' : *unit);
        const char *tail = unit + 1;
        if (letter == NULL ||
            (*tail != 0 && strcasecmp(tail, "B") != 0 && strcasecmp(tail, "iB") != 0)) {
            return false;
        }
        value = ldexp(value, 10 * (int)(letter - letters + 1));
    }
    if (value > 0x1p62) {
        return false;
    }
    *ret = (uint64_t)value;
    return true;
}

static const struct {
    uint32_t dtype, bytes;
    const char *name;
} dtypes[] = {{KVPOOL_FP16, 2, "fp16"},
              {KVPOOL_BF16, 2, "bf16"},
              {KVPOOL_FP32, 4, "fp32"},
              {KVPOOL_FP8_E4M3, 1, "fp8_e4m3"}};

const char *dtype_name(uint32_t dtype) {
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (dtypes[i].dtype == dtype) {
            return dtypes[i].name;
        }
    }
    return "?";
}

bool dtype_parse(const char *text, uint32_t *ret) {
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(dtypes[i].name, text) == 0) {
            *ret = dtypes[i].dtype;
            return true;
        }
    }
    return false;
}

const char *pool_dtype_name(const kvpool_pool_info *pool, char ret[FORMAT_SIZE]) {
    if (pool->kv_dtype == 0) {
        return dtype_name(pool->dtype);
    }
    snprintf(ret, FORMAT_SIZE, "%s/%s", dtype_name(pool->dtype), dtype_name(pool->kv_dtype));
    return ret;
}

static const struct {
    uint32_t how;
    const char *name;
} exports[] = {{KVPOOL_EXPORT_FD, "fd"}, {KVPOOL_EXPORT_IPC, "ipc"}};

const char *export_name(uint32_t how) {
    for (size_t i = 0; i < sizeof(exports) / sizeof(exports[0]); i++) {
        if (exports[i].how == how) {
            return exports[i].name;
        }
    }
    return "?";
}

bool export_parse(const char *text, uint32_t *ret) {
    for (size_t i = 0; i < sizeof(exports) / sizeof(exports[0]); i++) {
        if (strcmp(exports[i].name, text) == 0) {
            *ret = exports[i].how;
            return true;
        }
    }
    return false;
}

uint32_t dtype_bytes(uint32_t dtype) {
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (dtypes[i].dtype == dtype) {
            return dtypes[i].bytes;
        }
    }
    return 0;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

struct summary summarize(double *samples, size_t n) {
    struct summary s = {.n = n};
    if (n == 0) {
        return s;
    }
    qsort(samples, n, sizeof(samples[0]), compare_doubles);
    for (size_t i = 0; i < n; i++) {
        s.mean += samples[i] / (double)n;
    }
    s.min = samples[0];
    s.max = samples[n - 1];
    s.p50 = samples[(n - 1) / 2]; // nearest rank
    s.p99 = samples[(size_t)ceil(0.99 * (double)n) - 1];
    return s;
}

void *cmd_realloc(void *p, size_t size) {
    void *memory = realloc(p, size);
    if (memory == NULL) {
        fprintf(stderr, "kvpool: out of memory\n");
        exit(1);
    }
    return memory;
}
