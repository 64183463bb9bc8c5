// SPDX-License-Identifier: Apache-2.0
// test_parts.c: parts of the library that have no socket: the SP framing and the step table.
#include "client/lib/last_error.h"
#include "client/lib/sp.h"
#include "client/lib/steptab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

static void a_frame_is_taken_when_it_is_whole(void **state) {
    (void)state;
    uint8_t buf[SP_HEADER + 300];
    memset(buf, 0x5A, sizeof buf);
    sp_put_header(buf, SP_REQUEST_ID | 0x123456, 300);
    struct sp_frame frame;
    for (size_t len = 0; len < sizeof buf; len++)
        assert_int_equal(sp_take(buf, len, 300, &frame, NULL), 0);
    assert_int_equal(sp_take(buf, sizeof buf, 300, &frame, NULL), 1);
    assert_int_equal(frame.id, SP_REQUEST_ID | 0x123456);
    assert_int_equal(frame.len, 300);
    assert_int_equal(frame.total, sizeof buf);
    assert_ptr_equal(frame.payload, buf + SP_HEADER);
    sp_put_header(buf, SP_REQUEST_ID, 0); // an empty payload
    assert_int_equal(sp_take(buf, sizeof buf, 300, &frame, NULL), 1);
    assert_int_equal(frame.total, SP_HEADER);
}

static void a_bad_frame_is_refused_at_its_head(void **state) {
    (void)state;
    uint8_t buf[SP_HEADER];
    struct sp_frame frame;
    struct err err;
    sp_put_header(buf, SP_REQUEST_ID, 301);
    assert_int_equal(sp_take(buf, sizeof buf, 300, &frame, &err), KVPOOL_E_PROTO);
    memset(buf + 1, 0xFF, 8); // the longest length
    assert_int_equal(sp_take(buf, sizeof buf, 300, &frame, &err), KVPOOL_E_PROTO);
    memset(buf + 1, 0, 8); // shorter than the id that it counts
    buf[8] = 3;
    assert_int_equal(sp_take(buf, sizeof buf, 300, &frame, &err), KVPOOL_E_PROTO);
    sp_put_header(buf, SP_REQUEST_ID, 10);
    buf[0] = 0;
    assert_int_equal(sp_take(buf, sizeof buf, 300, &frame, &err), KVPOOL_E_PROTO);
}

static uint32_t next_random(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

// Against a plain array; ids chosen so that they collide and wrap round the table's end.
static void the_step_table_agrees_with_a_list(void **state) {
    (void)state;
    enum { IDS = 200 };
    static kvpool_step ids[IDS];
    static kvpool_pool expected[IDS];
    for (unsigned i = 0; i < IDS; i++)
        ids[i] = i % 3 == 0 ? 60 + i : i % 3 == 1 ? (uint64_t)i << 9 | 63 : (uint64_t)(i + 1) << 32;
    struct steptab t = {0};
    assert_int_equal(steptab_find(&t, 1), 0);
    steptab_remove(&t, 1);
    uint32_t seed = 7;
    unsigned count = 0;
    for (unsigned round = 0; round < 20000; round++) {
        unsigned i = next_random(&seed) % IDS;
        if (next_random(&seed) % 2 == 0) {
            bool added;
            assert_true(steptab_add(&t, ids[i], round + 1, &added));
            assert_int_equal(added, expected[i] == 0);
            if (added) { // an entry that is there stays as it is
                expected[i] = round + 1;
                count++;
            }
        } else {
            steptab_remove(&t, ids[i]);
            count -= expected[i] != 0;
            expected[i] = 0;
        }
        assert_int_equal(t.count, count);
        if (round % 50 == 0)
            for (unsigned k = 0; k < IDS; k++)
                assert_int_equal(steptab_find(&t, ids[k]), expected[k]);
    }
    assert_int_equal(steptab_find(&t, 0), 0);
    steptab_clear(&t);
    for (unsigned k = 0; k < IDS; k++)
        assert_int_equal(steptab_find(&t, ids[k]), 0);
    assert_int_equal(t.count, 0);
    steptab_fini(&t);
}

static void messages_of_several_clients_are_kept_apart(void **state) {
    (void)state;
    struct err err = {0};
    for (uint64_t id = 0; id <= 4; id++) {
        snprintf(err.text, sizeof err.text, "of %llu", (unsigned long long)id);
        last_error_keep(id, KVPOOL_E_INVAL, &err);
    }
    assert_string_equal(last_error_text(0), "of 0");
    assert_string_equal(last_error_text(1), "of 1");
    assert_string_equal(last_error_text(4), "of 4");
    assert_string_equal(last_error_text(5), "");
    last_error_keep(5, KVPOOL_E_INVAL, &err); // the oldest gives way
    assert_string_equal(last_error_text(1), "");
    assert_string_equal(last_error_text(0), "of 0");
    err.text[0] = '\0';
    last_error_keep(5, KVPOOL_E_AGAIN, &err);
    assert_string_equal(last_error_text(5), "not possible now, try again");
    assert_int_equal(last_error_retry_ns(5), LAST_ERROR_RETRY_NS);
    assert_int_equal(last_error_retry_ns(0), 0);
    assert_int_equal(last_error_retry_ns(1), 0); // forgotten
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frame_is_taken_when_it_is_whole),
        cmocka_unit_test(a_bad_frame_is_refused_at_its_head),
        cmocka_unit_test(the_step_table_agrees_with_a_list),
        cmocka_unit_test(messages_of_several_clients_are_kept_apart),
    };
    return cmocka_run_group_tests_name("client parts", tests, NULL, NULL);
}
