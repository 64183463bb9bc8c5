// SPDX-License-Identifier: Apache-2.0
// promcheck.c: see promcheck.h.
#include "tests/unit/daemon/promcheck.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SERIES = 20000, MAX_NAMES = 500, LONG = 512 };

struct family {
    char name[LONG], type[32];
};

struct check {
    struct family families[MAX_NAMES];
    unsigned num_families;
    char *series[MAX_SERIES]; // seen, "name{labels}"
    unsigned num_series;
    char help[LONG];   // of the HELP line that waits for its TYPE
    char bucket[LONG]; // labels but le of the buckets that are being read
    double last_bucket;
    bool inf_seen;
    char said[2 * LONG];
};

static bool name_char(char c, bool first) {
    return isalpha((unsigned char)c) || c == '_' || c == ':' ||
           (!first && isdigit((unsigned char)c));
}

static const char *skip_name(const char *at) {
    const char *begin = at;
    while (name_char(*at, at == begin)) {
        at++;
    }
    return at > begin ? at : NULL;
}

// {a="b",c="d"}: returns what follows, NULL when it does not parse.
static const char *skip_labels(const char *at) {
    if (*at != '{') {
        return at;
    }
    for (at++; *at != '}';) {
        at = skip_name(at);
        if (at == NULL || at[0] != '=' || at[1] != '"') {
            return NULL;
        }
        for (at += 2; *at != '"'; at++) {
            if (*at == '\\' && strchr("\\\"n", at[1]) != NULL && at[1] != '\0') {
                at++;
            } else if (*at == '\\' || *at == '\0') {
                return NULL;
            }
        }
        at++;
        if (*at == ',' && at[1] != '}') {
            at++;
        } else if (*at != '}') {
            return NULL;
        }
    }
    return at + 1;
}

static bool wrong(struct check *c, const char *what, const char *line) {
    snprintf(c->said, sizeof c->said, "%s: %.400s", what, line);
    return false;
}

static bool meta_line(struct check *c, const char *line) {
    const bool help = strncmp(line, "# HELP ", 7) == 0;
    const char *name = line + 7;
    const char *end;
    if (!help && strncmp(line, "# TYPE ", 7) != 0) {
        return wrong(c, "neither HELP nor TYPE", line);
    }
    end = skip_name(name);
    if (end == NULL || *end != ' ' || end[1] == '\0') {
        return wrong(c, "no name or no text", line);
    }
    const int len = (int)(end - name);
    if (help) {
        for (unsigned i = 0; i < c->num_families; i++) {
            if (strncmp(c->families[i].name, name, (size_t)len) == 0 &&
                c->families[i].name[len] == '\0') {
                return wrong(c, "HELP twice", line);
            }
        }
        snprintf(c->help, sizeof c->help, "%.*s", len, name);
        return true;
    }
    if (strncmp(c->help, name, (size_t)len) != 0 || c->help[len] != '\0') {
        return wrong(c, "TYPE without its HELP before it", line);
    }
    if (strcmp(end + 1, "counter") != 0 && strcmp(end + 1, "gauge") != 0 &&
        strcmp(end + 1, "histogram") != 0) {
        return wrong(c, "unknown type", line);
    }
    struct family *f = &c->families[c->num_families++];
    snprintf(f->name, sizeof f->name, "%.*s", len, name);
    snprintf(f->type, sizeof f->type, "%s", end + 1);
    c->help[0] = '\0';
    if (strcmp(f->type, "counter") == 0 && (len < 6 || strcmp(f->name + len - 6, "_total") != 0)) {
        return wrong(c, "a counter whose name does not end in _total", line);
    }
    return true;
}

// Buckets: labels without le, cumulative, +Inf last, equal to _count.
static bool histogram_line(struct check *c, const char *line, const char *suffix,
                           const char *labels, double value) {
    char rest[LONG];
    const char *le = strstr(labels, "le=\"");
    if (strcmp(suffix, "_bucket") == 0) {
        if (le == NULL) {
            return wrong(c, "a bucket without le", line);
        }
        snprintf(rest, sizeof rest, "%.*s", (int)(le - labels), labels);
        if (c->inf_seen || strcmp(rest, c->bucket) != 0) {
            snprintf(c->bucket, sizeof c->bucket, "%s", rest);
            c->last_bucket = 0;
        }
        if (value < c->last_bucket) {
            return wrong(c, "buckets do not rise", line);
        }
        c->last_bucket = value;
        c->inf_seen = strncmp(le, "le=\"+Inf\"", 9) == 0;
        return true;
    }
    if (!c->inf_seen) {
        return wrong(c, "no bucket +Inf", line);
    }
    if (strcmp(suffix, "_count") == 0 && value != c->last_bucket) {
        return wrong(c, "_count is not the last bucket", line);
    }
    return strcmp(suffix, "_count") == 0 || strcmp(suffix, "_sum") == 0
               ? true
               : wrong(c, "not a series of a histogram", line);
}

static bool series_line(struct check *c, const char *line) {
    const struct family *f = c->num_families > 0 ? &c->families[c->num_families - 1] : NULL;
    const char *end = skip_name(line);
    const char *labels = end;
    const size_t family = f != NULL ? strlen(f->name) : 0;
    char suffix[LONG], text[LONG];
    char *rest;
    double value;
    end = end != NULL ? skip_labels(end) : NULL;
    if (end == NULL || *end != ' ') {
        return wrong(c, "does not parse", line);
    }
    value = strtod(end + 1, &rest);
    if (rest == end + 1 || *rest != '\0') {
        return wrong(c, "no number", line);
    }
    if (f == NULL || c->help[0] != '\0' || strncmp(line, f->name, family) != 0) {
        return wrong(c, "not below its HELP and TYPE", line);
    }
    snprintf(suffix, sizeof suffix, "%.*s", (int)((size_t)(labels - line) - family), line + family);
    snprintf(text, sizeof text, "%.*s", (int)(end - line), line);
    for (unsigned i = 0; i < c->num_series; i++) {
        if (strcmp(c->series[i], text) == 0) {
            return wrong(c, "twice", line);
        }
    }
    c->series[c->num_series++] = strdup(text);
    if (value < 0 && strcmp(f->type, "gauge") != 0) {
        return wrong(c, "negative", line);
    }
    if (strcmp(f->type, "histogram") == 0) {
        return histogram_line(c, line, suffix, labels, value);
    }
    return suffix[0] == '\0' ? true : wrong(c, "not below its HELP and TYPE", line);
}

const char *prom_check(const char *text) {
    static char said[2 * LONG];
    struct check *c = calloc(1, sizeof *c);
    bool ok = true;
    if (*text == '\0' || text[strlen(text) - 1] != '\n') {
        free(c);
        return "does not end with a newline";
    }
    while (ok && *text != '\0') {
        const char *end = strchr(text, '\n');
        char *line = strndup(text, (size_t)(end - text));
        ok = line[0] == '#' ? meta_line(c, line) : series_line(c, line);
        free(line);
        text = end + 1;
    }
    snprintf(said, sizeof said, "%s", ok ? "" : c->said);
    for (unsigned i = 0; i < c->num_series; i++) {
        free(c->series[i]);
    }
    free(c);
    return said;
}

bool prom_value(const char *text, const char *series, double *ret) {
    const size_t len = strlen(series);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, series, len) == 0 && line[len] == ' ') {
            *ret = strtod(line + len + 1, NULL);
            return true;
        }
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return false;
}

bool prom_has(const char *text, const char *name) {
    const size_t len = strlen(name);
    for (const char *line = text; line != NULL && *line != '\0';) {
        if (strncmp(line, name, len) == 0 && (line[len] == ' ' || line[len] == '{')) {
            return true;
        }
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return false;
}

unsigned prom_count(const char *text) {
    unsigned n = 0;
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1) {
        n += *line != '#';
    }
    return n;
}
