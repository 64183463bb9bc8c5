// SPDX-License-Identifier: Apache-2.0
// test_doc.c: PROTOCOL.md cannot fall behind: it has every op under its number, every status, every
// limit, a drawing of every struct as the tables have it, and a word on every field.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "drawing.h"

#include <stdio.h>
#include <stdlib.h>

static char *doc;

static int setup(void **state) {
    (void)state;
    const size_t cap = 1u << 20;
    FILE *f = fopen(DOC, "r");
    doc = malloc(cap);
    if (f == NULL || doc == NULL)
        return -1;
    size_t n = fread(doc, 1, cap - 1, f);
    doc[n] = '\0';
    fclose(f);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    free(doc);
    return 0;
}

static void want(const char *text) {
    if (strstr(doc, text) == NULL)
        fail_msg("PROTOCOL.md does not have:\n%s", text);
}

static void every_op_has_its_section(void **state) {
    (void)state;
    for (uint16_t op = 0; op < PROTO_NUM_OPS; op++)
        if (proto_op(op) != NULL) {
            char heading[64];
            snprintf(heading, sizeof heading, "\n### %u %s\n", op, proto_op_name(op));
            want(heading);
        }
}

static void every_status_is_in_the_table(void **state) {
    (void)state;
#define STATUS(name, value, text) want("\n| `KVPOOL_" #name "` | " #value " | " text " |");
    KVPOOL_STATUS_MAP(STATUS)
#undef STATUS
}

static void every_struct_is_drawn(void **state) {
    (void)state;
    const struct proto_layout *layouts[LAYOUTS_MAX];
    size_t n = drawing_layouts(layouts);
    assert_true(n > 20);
    for (size_t i = 0; i < n; i++) {
        char drawing[DRAWING_MAX], title[96];
        drawing_make(layouts[i], drawing);
        want(drawing);
        snprintf(title, sizeof title, "`%s`, %u bytes", layouts[i]->name, layouts[i]->size);
        want(title);
    }
}

static void every_field_is_explained(void **state) {
    (void)state;
    const struct proto_layout *layouts[LAYOUTS_MAX];
    size_t n = drawing_layouts(layouts);
    for (size_t i = 0; i < n; i++)
        for (uint32_t f = 0; f < layouts[i]->num_fields; f++) {
            const char *name = layouts[i]->fields[f].name, *dot = strrchr(name, '.');
            char text[64];
            snprintf(text, sizeof text, "`%s`", dot != NULL ? dot + 1 : name);
            want(text);
        }
}

static void limits_are_those_of_the_header(void **state) {
    (void)state;
    const struct {
        const char *name;
        unsigned value;
    } limits[] = {
        {"PROTO_MAX_MESSAGE", PROTO_MAX_MESSAGE}, {"PROTO_MAX_BATCH", PROTO_MAX_BATCH},
        {"PROTO_MAX_TOKENS", PROTO_MAX_TOKENS},   {"PROTO_MAX_REQUEST", PROTO_MAX_REQUEST},
        {"PROTO_EXTRA_MAX", PROTO_EXTRA_MAX},     {"PROTO_CREDENTIAL_SIZE", PROTO_CREDENTIAL_SIZE},
        {"PROTO_MAX_LIST", PROTO_MAX_LIST},       {"PROTO_NAME_SIZE", PROTO_NAME_SIZE},
        {"PROTO_TOKEN_SIZE", PROTO_TOKEN_SIZE},   {"PROTO_DECODE_MAX_Q", PROTO_DECODE_MAX_Q},
        {"PROTO_VERSION_MIN", PROTO_VERSION_MIN}, {"PROTO_VERSION_MAX", PROTO_VERSION_MAX},
        {"ERR_TEXT_MAX", ERR_TEXT_MAX},           {"PROTO_IPC_SIZE", PROTO_IPC_SIZE},
    };
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        char row[96];
        snprintf(row, sizeof row, "\n| `%s` | %u |", limits[i].name, limits[i].value);
        want(row);
    }
    want("`" PROTO_CONTROL_SOCKET "`");
    want("`" PROTO_FD_SOCKET "`");
}

static void every_feature_bit_is_in_the_table(void **state) {
    (void)state;
    const struct {
        const char *name;
        uint64_t value;
    } features[] = {
        {"PROTO_FEATURE_PREFIX", PROTO_FEATURE_PREFIX},
        {"PROTO_FEATURE_RESUME", PROTO_FEATURE_RESUME},
        {"PROTO_FEATURE_TRACE", PROTO_FEATURE_TRACE},
        {"PROTO_FEATURE_DEVICE", PROTO_FEATURE_DEVICE},
    };
    uint64_t all = 0;
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        char row[96];
        snprintf(row, sizeof row, "\n| `%s` | %d | %llu |", features[i].name,
                 __builtin_ctzll(features[i].value), (unsigned long long)features[i].value);
        want(row);
        all |= features[i].value;
    }
    assert_int_equal(all, PROTO_FEATURES);
}

static void ops_with_token_ids_say_so(void **state) {
    (void)state;
    size_t found = 0;
    for (uint16_t op = 0; op < PROTO_NUM_OPS; op++) {
        const struct proto_op_info *info = proto_op(op);
        const struct proto_layout *body = info != NULL ? info->request.body : NULL;
        for (uint32_t f = 0; body != NULL && f < body->num_fields; f++)
            if (body->fields[f].kind == FIELD_TOKENS) {
                char heading[64];
                snprintf(heading, sizeof heading, "\n### %u %s\n", op, info->name);
                const char *section = strstr(doc, heading);
                assert_non_null(section);
                const char *text = strstr(section, "`num_tokens` token ids, u32 each");
                const char *next = strstr(section + 1, "\n### ");
                assert_non_null(text);
                assert_true(next == NULL || text < next);
                found++;
            }
    }
    assert_int_equal(found, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_op_has_its_section),
        cmocka_unit_test(every_status_is_in_the_table),
        cmocka_unit_test(every_struct_is_drawn),
        cmocka_unit_test(every_field_is_explained),
        cmocka_unit_test(limits_are_those_of_the_header),
        cmocka_unit_test(every_feature_bit_is_in_the_table),
        cmocka_unit_test(ops_with_token_ids_say_so),
    };
    return cmocka_run_group_tests_name("proto_doc", tests, setup, teardown);
}
