// SPDX-License-Identifier: Apache-2.0
// credentials.c: see credentials.h.
#include "daemon/credentials.h"

#include "daemon/access.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES = 512 * 1024 };

struct entry {
    char identity[CORE_NAME_SIZE];
    char secret[PROTO_CREDENTIAL_SIZE]; // zero-padded
};

struct credentials {
    uint32_t n;
    struct entry entries[CREDENTIALS_MAX];
};

bool credentials_name_ok(const char *name, size_t len) {
    if (len == 0 || len >= CORE_NAME_SIZE) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        const unsigned char b = (unsigned char)name[i];
        if (b >= 0x80 || (!isalnum(b) && b != '_' && b != '.' && b != '-')) {
            return false;
        }
    }
    return true;
}

static int check_file(const char *path, int fd, struct err *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot read %.120s: %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, KVPOOL_E_PERM, "%.120s is not a regular file", path);
    }
    if (st.st_uid != 0 && st.st_uid != geteuid()) {
        return err_set(err, KVPOOL_E_PERM,
                       "%.100s belongs to uid %u: it must be root's or the daemon's own", path,
                       (unsigned)st.st_uid);
    }
    if ((st.st_mode & 066) != 0) {
        return err_set(err, KVPOOL_E_PERM,
                       "%.100s has mode %04o: group and others must not read or write it", path,
                       (unsigned)st.st_mode & 07777u);
    }
    return 0;
}

// One line without its end: "IDENTITY SECRET", a comment, or nothing.
static int read_line(struct credentials *c, const char *path, unsigned number, const char *line,
                     struct err *err) {
    static const char blanks[] = " \t\r";
    struct entry *entry = &c->entries[c->n];
    const char *identity = line + strspn(line, blanks);
    const size_t identity_len = strcspn(identity, blanks);
    const char *secret = identity + identity_len + strspn(identity + identity_len, blanks);
    const size_t secret_len = strcspn(secret, blanks);
    const char *rest = secret + secret_len + strspn(secret + secret_len, blanks);
    if (identity[0] == '\0' || identity[0] == '#') {
        return 0;
    }
    if (!credentials_name_ok(identity, identity_len)) {
        return err_set(err, KVPOOL_E_INVAL,
                       "%.100s:%u: an identity has 1 to %d bytes of [A-Za-z0-9_.-]", path, number,
                       CORE_NAME_SIZE - 1);
    }
    if (secret_len == 0 || *rest != '\0') {
        return err_set(err, KVPOOL_E_INVAL,
                       "%.100s:%u: expected IDENTITY SECRET, without blanks inside", path, number);
    }
    if (secret_len >= sizeof entry->secret) {
        return err_set(err, KVPOOL_E_INVAL, "%.100s:%u: a secret has at most %zu bytes", path,
                       number, sizeof entry->secret - 1);
    }
    if (c->n == CREDENTIALS_MAX) {
        return err_set(err, KVPOOL_E_INVAL, "%.100s:%u: more than %d secrets", path, number,
                       CREDENTIALS_MAX);
    }
    memset(entry, 0, sizeof *entry);
    memcpy(entry->identity, identity, identity_len);
    memcpy(entry->secret, secret, secret_len);
    for (uint32_t i = 0; i < c->n; i++) {
        if (memcmp(c->entries[i].secret, entry->secret, sizeof entry->secret) == 0) {
            return err_set(err, KVPOOL_E_INVAL, "%.100s:%u: this secret was given before", path,
                           number);
        }
    }
    c->n++;
    return 0;
}

static int read_lines(struct credentials *c, const char *path, char *text, size_t size,
                      struct err *err) {
    char *rest = text, *line;
    unsigned number = 0;
    int rc = 0;
    if (memchr(text, '\0', size) != NULL) {
        return err_set(err, KVPOOL_E_INVAL, "%.100s: the file has a zero byte", path);
    }
    while (rc == 0 && (line = strsep(&rest, "\n")) != NULL) {
        rc = read_line(c, path, ++number, line, err);
    }
    return rc;
}

// Reads up to FILE_BYTES into text.
static int read_all(const char *path, int fd, char *text, size_t *ret_size, struct err *err) {
    size_t size = 0;
    ssize_t n = 1;
    while (n > 0 && size <= FILE_BYTES) {
        n = read(fd, text + size, FILE_BYTES + 1 - size);
        if (n < 0 && errno == EINTR) {
            n = 1;
            continue;
        }
        size += n > 0 ? (size_t)n : 0;
    }
    if (n < 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot read %.120s: %s", path, strerror(errno));
    }
    if (size > FILE_BYTES) {
        return err_set(err, KVPOOL_E_INVAL, "%.100s: more than %d bytes", path, FILE_BYTES);
    }
    *ret_size = size;
    return 0;
}

int credentials_load(const char *path, struct credentials **ret, struct err *err) {
    // NONBLOCK: a FIFO must not hold up the loop; it is refused below.
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct credentials *c = NULL;
    char *text = NULL;
    size_t size = 0;
    int rc;
    if (fd < 0) {
        return err_set(err, KVPOOL_E_SYSTEM, "cannot read %.120s: %s", path, strerror(errno));
    }
    rc = check_file(path, fd, err);
    if (rc != 0) {
        goto close_file;
    }
    c = calloc(1, sizeof *c);
    text = calloc(1, FILE_BYTES + 2); // terminated
    if (c == NULL || text == NULL) {
        rc = err_set(err, KVPOOL_E_NOMEM, "cannot read %.120s: out of memory", path);
        goto free_all;
    }
    rc = read_all(path, fd, text, &size, err);
    if (rc == 0) {
        rc = read_lines(c, path, text, size, err);
    }
    if (rc == 0) {
        *ret = c;
        c = NULL;
    }
free_all:
    if (text != NULL) {
        explicit_bzero(text, FILE_BYTES + 2);
        free(text);
    }
    credentials_free(c);
close_file:
    close(fd);
    return rc;
}

void credentials_free(struct credentials *c) {
    if (c != NULL) {
        explicit_bzero(c, sizeof *c);
        free(c);
    }
}

const char *credentials_find(const struct credentials *c,
                             const char credential[PROTO_CREDENTIAL_SIZE]) {
    const char *found = NULL;
    for (uint32_t i = 0; i < c->n; i++) { // all of them, whichever it is
        if (access_equal(c->entries[i].secret, credential, PROTO_CREDENTIAL_SIZE)) {
            found = c->entries[i].identity;
        }
    }
    return found;
}

uint32_t credentials_count(const struct credentials *c) {
    return c->n;
}
