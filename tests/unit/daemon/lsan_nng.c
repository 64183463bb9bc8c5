// SPDX-License-Identifier: Apache-2.0
// lsan_nng.c: linked into tests that dial with NNG while connections break. NNG 1.5 now and then loses a
// dialer's connection that is closed in the middle of its handshake; LeakSanitizer would report it as the
// test's. What the daemon's listeners accept is still watched.

__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void);

__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void) {
    return "leak:nng_dial\n";
}
