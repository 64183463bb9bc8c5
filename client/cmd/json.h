// SPDX-License-Identifier: Apache-2.0
// json.h: writes JSON to a stream, as it goes, without building a tree.
//
//     struct json j = json_start(stdout);
//     json_object(&j, NULL);
//     json_str(&j, "name", "kv");
//     json_end(&j);
//     json_finish(&j);            -> {"name":"kv"} and a newline
//
// Invariants
//  1. What was written is valid JSON (RFC 8259) on one line once json_finish returned.
//  2. Inside an object every value has a key, inside an array none (key NULL).
//  3. Strings are escaped; bytes that are not UTF-8 become U+FFFD.
//  4. A number that JSON has no word for (NaN, infinity) is written as null.
// Handles and epochs are 64-bit: they are written as strings ("0x..."), since many readers keep
// numbers as doubles.
// Thread: a struct json belongs to one thread.
#ifndef KVPOOL_CMD_JSON_H
#define KVPOOL_CMD_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define JSON_MAX_DEPTH 8

struct json {
    FILE *out;
    int depth;                  // open objects and arrays
    char close[JSON_MAX_DEPTH]; // what closes each: '}' or ']'
    bool some[JSON_MAX_DEPTH];  // it has a member already
};

struct json json_start(FILE *out);
void json_finish(struct json *j); // everything must be closed; ends the line

void json_object(struct json *j, const char *key);
void json_array(struct json *j, const char *key);
void json_end(struct json *j); // the innermost object or array

void json_str(struct json *j, const char *key, const char *value); // NULL: null
void json_u64(struct json *j, const char *key, uint64_t value);
void json_i64(struct json *j, const char *key, int64_t value);
void json_num(struct json *j, const char *key, double value);
void json_bool(struct json *j, const char *key, bool value);
void json_hex(struct json *j, const char *key, uint64_t value); // "0x..."

#endif
