// SPDX-License-Identifier: Apache-2.0
// table.h: columns of text, aligned, for people.
//
//     struct table *t = table_new(2, "<NAME", ">PAGES");   '<' left, '>' right
//     table_row(t, "kv", "128");
//     table_print(t, stdout);
//     table_free(t);
//
// Invariants
//  1. Every row has as many cells as the heading.
//  2. No cell can steer a terminal: control characters and bytes above 126 are shown as '?'.
// Memory that runs out ends the program with a message (cmd_realloc).
// Thread: a table belongs to one thread.
#ifndef KVPOOL_CMD_TABLE_H
#define KVPOOL_CMD_TABLE_H

#include <stdio.h>

#define TABLE_MAX_COLUMNS 16

struct table; // opaque

struct table *table_new(int columns, ...); // `columns` headings (const char *)
void table_row(struct table *t, ...);      // as many cells (const char *), copied
int table_rows(const struct table *t);     // without the heading
void table_print(const struct table *t, FILE *out);
void table_free(struct table *t);

#endif
