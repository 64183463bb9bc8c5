// SPDX-License-Identifier: Apache-2.0
// drawing.h: a wire struct drawn as PROTOCOL.md shows it: eight bytes a row, offsets at the left.
// test_doc.c wants every drawing in the document, letter by letter.
#ifndef KVPOOL_TESTS_PROTO_DRAWING_H
#define KVPOOL_TESTS_PROTO_DRAWING_H

#include "proto/layout.h"

#define DRAWING_MAX 8192

// Every layout there is, each once: the header, the error, then in order of the ops.
#define LAYOUTS_MAX 64
size_t drawing_layouts(const struct proto_layout *ret[LAYOUTS_MAX]);

void drawing_make(const struct proto_layout *l, char ret[DRAWING_MAX]);

#endif
