// SPDX-License-Identifier: Apache-2.0
// drawing.c: see drawing.h.
#include "drawing.h"

#include <stdio.h>
#include <stdlib.h>

#define BYTE_WIDTH 8
#define ROW_WIDTH (8 * BYTE_WIDTH + 1)

size_t drawing_layouts(const struct proto_layout *ret[LAYOUTS_MAX]) {
    size_t n = 0;
    ret[n++] = &proto_layout_header;
    ret[n++] = &proto_layout_error;
    for (uint16_t op = 0; op < PROTO_NUM_OPS; op++) {
        const struct proto_op_info *info = proto_op(op);
        if (info == NULL)
            continue;
        const struct proto_layout *four[] = {info->request.body, info->request.record,
                                             info->reply.body, info->reply.record};
        for (size_t i = 0; i < 4; i++) {
            size_t at = 0;
            while (at < n && ret[at] != four[i])
                at++;
            if (four[i] != NULL && at == n && n < LAYOUTS_MAX)
                ret[n++] = four[i];
        }
    }
    return n;
}

static void centre(char *cell, size_t width, const char *text) {
    size_t len = strlen(text);
    if (len > width)
        abort();
    for (size_t i = 0; i < len; i++) // no terminator: the cell is part of a row
        cell[(width - len) / 2 + i] = text[i];
}

// One row from field *i on. Writes the row and the columns of its borders.
static void draw_row(const struct proto_layout *l, uint32_t *i, char row[ROW_WIDTH],
                     char borders[ROW_WIDTH]) {
    memset(row, ' ', ROW_WIDTH);
    memset(borders, '-', ROW_WIDTH);
    const struct proto_field *f = &l->fields[*i];
    uint32_t start = f->offset, end = f->size > 8 ? start : start + 8;
    if (f->size > 8) { // one row stands for several
        char text[64];
        snprintf(text, sizeof text, "%s (%u bytes)", f->name, f->size);
        centre(row + 1, ROW_WIDTH - 2, text);
        row[0] = row[ROW_WIDTH - 1] = '/';
        borders[0] = borders[ROW_WIDTH - 1] = '+';
        ++*i;
        return;
    }
    row[0] = '|';
    borders[0] = '+';
    for (; *i < l->num_fields && l->fields[*i].offset < end; ++*i) {
        f = &l->fields[*i];
        size_t from = (size_t)(f->offset - start) * BYTE_WIDTH;
        size_t width = (size_t)f->size * BYTE_WIDTH;
        centre(row + from + 1, width - 1, f->name);
        row[from + width] = '|';
        borders[from + width] = '+';
    }
}

void drawing_make(const struct proto_layout *l, char ret[DRAWING_MAX]) {
    size_t at = (size_t)snprintf(ret, DRAWING_MAX, "%7s", "");
    for (int byte = 0; byte < 8; byte++)
        at += (size_t)snprintf(ret + at, DRAWING_MAX - at, "%-*d", byte < 7 ? BYTE_WIDTH : 1, byte);
    at += (size_t)snprintf(ret + at, DRAWING_MAX - at, "\n");
    char above[ROW_WIDTH], row[ROW_WIDTH], borders[ROW_WIDTH];
    memset(above, '-', sizeof above);
    for (uint32_t i = 0; i < l->num_fields;) {
        uint32_t offset = l->fields[i].offset;
        draw_row(l, &i, row, borders);
        for (size_t c = 0; c < ROW_WIDTH; c++)
            if (borders[c] == '+')
                above[c] = '+';
        at += (size_t)snprintf(ret + at, DRAWING_MAX - at, "%6s%.*s\n%5u %.*s\n", "", ROW_WIDTH,
                               above, offset, ROW_WIDTH, row);
        memcpy(above, borders, sizeof above);
    }
    snprintf(ret + at, DRAWING_MAX - at, "%6s%.*s\n", "", ROW_WIDTH, above);
}
