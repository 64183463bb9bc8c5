// SPDX-License-Identifier: Apache-2.0
// format.h: numbers as people read them and as they type them, and percentiles of samples.
//
// Invariants
//  1. A format_* function always terminates buf and returns it; a value never overflows
//     FORMAT_SIZE.
//  2. A parse_* function accepts the whole text or nothing, and writes *ret only on success.
// Thread: any; no state.
#ifndef KVPOOL_CMD_FORMAT_H
#define KVPOOL_CMD_FORMAT_H

#include <kvpool/kvpool.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FORMAT_SIZE 32

char *format_bytes(uint64_t bytes, char buf[FORMAT_SIZE]);  // "0 B", "1.5 KiB", "40 GiB"
char *format_count(uint64_t count, char buf[FORMAT_SIZE]);  // "999", "1.23M"
char *format_uptime(uint64_t ns, char buf[FORMAT_SIZE]);    // "4s", "3m 20s", "2d 3h"
char *format_us(double us, char buf[FORMAT_SIZE]);          // "12.3 us", "4.56 ms", "1.20 s"
char *format_u64(uint64_t value, char buf[FORMAT_SIZE]);    // "123456"
char *format_handle(uint64_t value, char buf[FORMAT_SIZE]); // "0x100000002"

// Copies text without anything that steers a terminal: such bytes become '?'.
char *format_plain(const char *text, char *buf, size_t size);

bool parse_u32(const char *text, uint32_t min, uint32_t max, uint32_t *ret);
bool parse_double(const char *text, double min, double max, double *ret);
// "2" and "2s" (seconds, also "0.5"), "500ms"; 1 ms to 24 h.
bool parse_duration_ms(const char *text, uint32_t *ret_ms);
// "4096" (bytes), "64K", "1.5M", "2GiB": powers of 1024.
bool parse_bytes(const char *text, uint64_t *ret);

const char *dtype_name(uint32_t dtype); // "fp16" ...; "?" when unknown
bool dtype_parse(const char *text, uint32_t *ret);
uint32_t dtype_bytes(uint32_t dtype); // of one element, 0 when unknown
// "bf16", or "bf16/fp8_e4m3" where the pages differ.
const char *pool_dtype_name(const kvpool_pool_info *pool, char ret[FORMAT_SIZE]);
const char *export_name(uint32_t how); // "fd", "ipc"; "?" when unknown
bool export_parse(const char *text, uint32_t *ret);

struct summary {
    size_t n;
    double min, p50, p99, max, mean;
};
// Sorts samples. All zero when n is 0.
struct summary summarize(double *samples, size_t n);

// realloc that ends the program with a message when memory runs out. size > 0.
void *cmd_realloc(void *p, size_t size);

#endif
