// SPDX-License-Identifier: Apache-2.0
// cmd_doctor.c: `kvpool doctor`, and how its lines look.
// Thread: main.
#include "client/cmd/cmd.h"
#include "client/cmd/doctor.h"
#include "client/cmd/format.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>

static const char *const result_text[] = {"ok  ", "warn", "FAIL"};
static const char *const result_json[] = {"ok", "warn", "fail"};

void doctor_report(struct doctor *d, enum doctor_result result, const char *check,
                   const char *advice, const char *fmt, ...) {
    char text[512];
    char plain[512];
    va_list ap;
    assert((advice == NULL) == (result == DOCTOR_OK));
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    d->counts[result]++;
    if (d->json != NULL) {
        json_object(d->json, NULL);
        json_str(d->json, "check", check);
        json_str(d->json, "result", result_json[result]);
        json_str(d->json, "text", text);
        json_str(d->json, "advice", advice);
        json_end(d->json);
        return;
    }
    fprintf(d->out, "%s  %s: %s%s%s\n", result_text[result], check,
            format_plain(text, plain, sizeof(plain)), advice == NULL ? "" : " — ",
            advice == NULL ? "" : advice);
}

int cmd_doctor(int argc, char **argv, struct cmd_globals *globals) {
    static const char doc[] =
        "Checks what commonly goes wrong, one line each: ok, warn or FAIL, what was found, and "
        "what to do about it. It works without a running daemon. Exit status 0 when nothing "
        "FAILs.\vExamples:\n"
        "  kvpool doctor\n"
        "  kvpool --dir /run/kvpool/1 doctor --json";
    struct doctor doctor = {.out = stdout};
    struct json json = json_start(stdout);
    cmd_parse_plain(doc, argc, argv, globals);
    if (globals->json) {
        doctor.json = &json;
        json_object(&json, NULL);
        json_str(&json, "dir", cmd_dir(globals));
        json_array(&json, "checks");
    }
    doctor_machine(&doctor);
    doctor_daemon(&doctor, cmd_dir(globals), globals->timeout_ms == 0 ? 3000 : globals->timeout_ms);
    if (globals->json) {
        json_end(&json);
        json_u64(&json, "warnings", doctor.counts[DOCTOR_WARN]);
        json_u64(&json, "failures", doctor.counts[DOCTOR_FAIL]);
        json_end(&json);
        json_finish(&json);
    } else {
        printf("%u ok, %u warnings, %u failures\n", doctor.counts[DOCTOR_OK],
               doctor.counts[DOCTOR_WARN], doctor.counts[DOCTOR_FAIL]);
    }
    return doctor.counts[DOCTOR_FAIL] == 0 ? 0 : 1;
}
