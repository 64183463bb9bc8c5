// SPDX-License-Identifier: Apache-2.0
// golden.c: prints what the tests of this folder compare with, for a new op:
//     build/dev/tests/proto_golden bytes > tests/proto/golden.txt
//     build/dev/tests/proto_golden drawings      (to be pasted into proto/PROTOCOL.md)
// A line that changes is a change of the wire format.
#include "drawing.h"
#include "samples.h"

#include <stdio.h>

static void print_bytes(void) {
    static struct sample samples[SAMPLES_MAX];
    size_t n = samples_make(samples);
    for (size_t i = 0; i < n; i++) {
        printf("%s ", samples[i].name);
        for (size_t b = 0; b < samples[i].len; b++)
            printf("%02x", samples[i].bytes[b]);
        printf("\n");
    }
}

static void print_drawings(void) {
    const struct proto_layout *layouts[LAYOUTS_MAX];
    size_t n = drawing_layouts(layouts);
    for (size_t i = 0; i < n; i++) {
        char drawing[DRAWING_MAX];
        drawing_make(layouts[i], drawing);
        printf("%s, %u bytes\n%s\n", layouts[i]->name, layouts[i]->size, drawing);
    }
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "bytes") == 0)
        print_bytes();
    else if (argc == 2 && strcmp(argv[1], "drawings") == 0)
        print_drawings();
    else
        return fprintf(stderr, "usage: proto_golden bytes|drawings\n"), 2;
    return 0;
}
