// SPDX-License-Identifier: Apache-2.0
// tsan_nng.c: linked into tests that publish. Debian's libnng is not instrumented: ThreadSanitizer
// does not see the counter by which a message that several pipes share is freed by the last one.
// What runs without a frame of libnng (the ring, the feed's own threads) is still watched.

__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void);

__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void) {
    return "race:libnng.so\n";
}
