// SPDX-License-Identifier: Apache-2.0
// table.c: see table.h.
#include "client/cmd/table.h"

#include "client/cmd/format.h"

#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct table {
    int columns;
    int rows; // with the heading
    int cap;
    char **cells; // [rows][columns]
    bool right[TABLE_MAX_COLUMNS];
};

static void row_reserve(struct table *t) {
    if (t->rows == t->cap) {
        t->cap = t->cap == 0 ? 16 : t->cap * 2;
        t->cells = cmd_realloc(t->cells, (size_t)t->cap * (size_t)t->columns * sizeof(char *));
    }
}

static void cell_set(struct table *t, int column, const char *text) {
    char *copy = cmd_realloc(NULL, strlen(text) + 1);
    format_plain(text, copy, strlen(text) + 1);
    t->cells[t->rows * t->columns + column] = copy;
}

struct table *table_new(int columns, ...) {
    assert(columns > 0 && columns <= TABLE_MAX_COLUMNS);
    struct table *t = cmd_realloc(NULL, sizeof(*t));
    *t = (struct table){.columns = columns};
    va_list ap;
    row_reserve(t);
    va_start(ap, columns);
    for (int i = 0; i < columns; i++) {
        const char *heading = va_arg(ap, const char *);
        t->right[i] = heading[0] == '>';
        cell_set(t, i, heading + 1);
    }
    va_end(ap);
    t->rows = 1;
    return t;
}

void table_row(struct table *t, ...) {
    va_list ap;
    row_reserve(t);
    va_start(ap, t);
    for (int i = 0; i < t->columns; i++) {
        cell_set(t, i, va_arg(ap, const char *));
    }
    va_end(ap);
    t->rows++;
}

int table_rows(const struct table *t) {
    return t->rows - 1;
}

void table_print(const struct table *t, FILE *out) {
    int width[TABLE_MAX_COLUMNS] = {0};
    for (int i = 0; i < t->rows * t->columns; i++) {
        int len = (int)strlen(t->cells[i]);
        width[i % t->columns] = len > width[i % t->columns] ? len : width[i % t->columns];
    }
    for (int row = 0; row < t->rows; row++) {
        for (int i = 0; i < t->columns; i++) {
            const char *cell = t->cells[row * t->columns + i];
            const char *gap = i == 0 ? "" : "  ";
            if (t->right[i]) {
                fprintf(out, "%s%*s", gap, width[i], cell);
            } else if (i == t->columns - 1) {
                fprintf(out, "%s%s", gap, cell); // no blanks at the end of a line
            } else {
                fprintf(out, "%s%-*s", gap, width[i], cell);
            }
        }
        putc('\n', out);
    }
}

void table_free(struct table *t) {
    if (t == NULL) {
        return;
    }
    for (int i = 0; i < t->rows * t->columns; i++) {
        free(t->cells[i]);
    }
    free(t->cells);
    free(t);
}
