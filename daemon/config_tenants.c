// SPDX-License-Identifier: Apache-2.0
// config_tenants.c: see config_tenants.h.
#include "daemon/config_tenants.h"

#include "daemon/credentials.h"

#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>

enum { ACCOUNT_BYTES = 65536, WORD_BYTES = 64, VALUE_BYTES = 192, IDS_A_LINE = 12 };
enum { IDENTITIES_A_LINE = 4 };
enum { SEEN_SHARE = 1, SEEN_RESERVE = 2, SEEN_LIMIT = 4, SEEN_WEIGHT = 8 };

static const char *const policies[CORE_POLICIES] = {[CORE_LRU] = "lru", [CORE_S3FIFO] = "s3fifo"};

bool config_policy_parse(const char *text, uint32_t *ret) {
    for (uint32_t i = 0; i < CORE_POLICIES; i++) {
        if (strcmp(policies[i], text) == 0) {
            *ret = i;
            return true;
        }
    }
    return false;
}

const char *config_policy_name(uint32_t policy) {
    return policy < CORE_POLICIES ? policies[policy] : "?";
}

// --- lists ---

static bool number(const char *text, uint64_t max, uint64_t *ret) {
    char *end;
    unsigned long long value;
    if (!isdigit((unsigned char)text[0])) {
        return false;
    }
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || value > max) {
        return false;
    }
    *ret = value;
    return true;
}

static bool account(const char *word, bool group, uint32_t *ret) {
    static char buffer[ACCOUNT_BYTES];
    struct passwd user, *found_user = NULL;
    struct group other, *found_group = NULL;
    uint64_t id;
    if (isdigit((unsigned char)word[0])) {
        if (!number(word, UINT32_MAX - 1, &id)) { // (uid_t)-1 is nobody
            return false;
        }
        *ret = (uint32_t)id;
        return true;
    }
    if (group) {
        if (getgrnam_r(word, &other, buffer, sizeof buffer, &found_group) != 0 ||
            found_group == NULL) {
            return false;
        }
        *ret = (uint32_t)other.gr_gid;
        return true;
    }
    if (getpwnam_r(word, &user, buffer, sizeof buffer, &found_user) != 0 || found_user == NULL) {
        return false;
    }
    *ret = (uint32_t)user.pw_uid;
    return true;
}

static int add_account(const char *key, const char *word, bool group, uint32_t *ids, uint32_t *n,
                       struct err *err) {
    uint32_t id;
    if (!account(word, group, &id)) {
        return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is no %s of this machine, nor a number",
                       key, word, group ? "group" : "user");
    }
    for (uint32_t i = 0; i < *n; i++) {
        if (ids[i] == id) {
            return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' (%" PRIu32 ") is given twice", key,
                           word, id);
        }
    }
    if (*n == ACCESS_MAX_IDS) {
        return err_set(err, KVPOOL_E_INVAL, "%s: more than %d", key, ACCESS_MAX_IDS);
    }
    ids[(*n)++] = id;
    return 0;
}

static int add_identity(const char *key, const char *word, struct access_list *list,
                        struct err *err) {
    if (!credentials_name_ok(word, strlen(word))) {
        return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not 1 to %d bytes of [A-Za-z0-9_.-]",
                       key, word, CORE_NAME_SIZE - 1);
    }
    for (uint32_t i = 0; i < list->num_identities; i++) {
        if (strcmp(list->identities[i], word) == 0) {
            return err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is given twice", key, word);
        }
    }
    if (list->num_identities == ACCESS_MAX_IDENTITIES) {
        return err_set(err, KVPOOL_E_INVAL, "%s: more than %d", key, ACCESS_MAX_IDENTITIES);
    }
    memset(list->identities[list->num_identities], 0, CORE_NAME_SIZE);
    memcpy(list->identities[list->num_identities++], word, strlen(word));
    return 0;
}

static int add_words(const char *key, const char *kind, const char *text, struct access_list *list,
                     struct err *err) {
    int rc = 0;
    for (bool more = true; more && rc == 0;) {
        const size_t len = strcspn(text, ",");
        char word[WORD_BYTES];
        size_t n = 0;
        more = text[len] == ',';
        for (size_t i = 0; i < len && n < sizeof word - 1; i++) { // blanks at the ends go
            if (!isblank((unsigned char)text[i]) || (n > 0 && strspn(text + i, " \t") < len - i)) {
                word[n++] = text[i];
            }
        }
        word[n] = '\0';
        if (n == 0) {
            return err_set(err, KVPOOL_E_INVAL, "%s: an empty place in the list", key);
        }
        if (strcmp(kind, "identities") == 0) {
            rc = add_identity(key, word, list, err);
        } else if (strcmp(kind, "gids") == 0) {
            rc = add_account(key, word, true, list->gids, &list->num_gids, err);
        } else {
            rc = add_account(key, word, false, list->uids, &list->num_uids, err);
        }
        text += len + more;
    }
    return rc;
}

bool config_list_value(const char *prefix, const char *key, const char *text,
                       struct access_list *list, int *ret_rc, struct err *err) {
    const size_t len = strlen(prefix);
    const char *kind = key + len;
    if (strncmp(key, prefix, len) != 0 || (strcmp(kind, "uids") != 0 && strcmp(kind, "gids") != 0 &&
                                           strcmp(kind, "identities") != 0)) {
        return false;
    }
    *ret_rc = add_words(key, kind, text, list, err);
    return true;
}

// --- sections ---

int config_pool_access(struct access_rules *rules, const char *pool, struct err *err) {
    if (rules->num_pools == ACCESS_MAX_POOLS) {
        return err_set(err, KVPOOL_E_INVAL, "more than %d pools", ACCESS_MAX_POOLS);
    }
    memset(&rules->pools[rules->num_pools], 0, sizeof rules->pools[0]);
    snprintf(rules->pools[rules->num_pools++].name, CORE_NAME_SIZE, "%s", pool);
    return 0;
}

int config_ns_begin(struct access_rules *rules, const char *name, size_t len, struct err *err) {
    const char *slash = memchr(name, '/', len);
    const size_t pool_len = slash != NULL ? (size_t)(slash - name) : len;
    const size_t name_len = slash != NULL ? len - pool_len - 1 : 0;
    struct access_ns *ns;
    if (!credentials_name_ok(name, pool_len) ||
        !credentials_name_ok(name + pool_len + 1, name_len)) {
        return err_set(err, KVPOOL_E_INVAL,
                       "expected [namespace POOL/NAME], each 1 to %d bytes of [A-Za-z0-9_.-]",
                       CORE_NAME_SIZE - 1);
    }
    if (rules->num_namespaces == ACCESS_MAX_NAMESPACES) {
        return err_set(err, KVPOOL_E_INVAL, "more than %d namespaces", ACCESS_MAX_NAMESPACES);
    }
    ns = &rules->namespaces[rules->num_namespaces];
    memset(ns, 0, sizeof *ns);
    memcpy(ns->pool, name, pool_len);
    memcpy(ns->name, name + pool_len + 1, name_len);
    ns->weight = 1;
    for (uint32_t i = 0, same_pool = 1; i < rules->num_namespaces; i++) {
        const struct access_ns *other = &rules->namespaces[i];
        if (strcmp(other->pool, ns->pool) != 0) {
            continue;
        }
        if (strcmp(other->name, ns->name) == 0) {
            return err_set(err, KVPOOL_E_INVAL, "namespace %s/%s: there are two of this name",
                           ns->pool, ns->name);
        }
        if (++same_pool > CORE_MAX_NAMESPACES - 1) { // "default" is there without a section
            return err_set(err, KVPOOL_E_INVAL, "pool %s: more than %d namespaces", ns->pool,
                           CORE_MAX_NAMESPACES - 1);
        }
    }
    rules->num_namespaces++;
    return 0;
}

static int amount_value(const char *key, const char *text, bool zero_ok, struct access_amount *ret,
                        struct err *err) {
    char digits[VALUE_BYTES];
    const size_t len = strlen(text);
    const bool percent = len > 0 && text[len - 1] == '%';
    uint64_t value = 0;
    snprintf(digits, sizeof digits, "%.*s", (int)(percent ? len - 1 : len), text);
    if (!number(digits, percent ? 100 : UINT32_MAX, &value) || (value == 0 && !zero_ok)) {
        return err_set(err, KVPOOL_E_INVAL,
                       "%s: '%.40s' is neither a number of pages nor %d%% to 100%%", key, text,
                       zero_ok ? 0 : 1);
    }
    *ret = (struct access_amount){.value = (uint32_t)value, .percent = percent};
    return 0;
}

static int once(const char *key, uint32_t *seen, uint32_t bit, struct err *err) {
    if ((*seen & bit) != 0) {
        return err_set(err, KVPOOL_E_INVAL, "%s: given twice", key);
    }
    *seen |= bit;
    return 0;
}

int config_ns_value(struct access_rules *rules, const char *key, const char *text, uint32_t *seen,
                    struct err *err) {
    struct access_ns *ns = &rules->namespaces[rules->num_namespaces - 1];
    uint64_t value = 0;
    int rc;
    if (config_list_value("", key, text, &ns->members, &rc, err)) {
        return rc;
    }
    if (strcmp(key, "share") == 0) {
        rc = once(key, seen, SEEN_SHARE, err);
        if (rc == 0 && !credentials_name_ok(text, strlen(text))) {
            rc = err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not 1 to %d bytes of [A-Za-z0-9_.-]",
                         key, text, CORE_NAME_SIZE - 1);
        }
        if (rc == 0) {
            snprintf(ns->group, sizeof ns->group, "%s", text);
        }
        return rc;
    }
    if (strcmp(key, "reserve") == 0) {
        rc = once(key, seen, SEEN_RESERVE, err);
        return rc != 0 ? rc : amount_value(key, text, true, &ns->reserve, err);
    }
    if (strcmp(key, "limit") == 0) {
        rc = once(key, seen, SEEN_LIMIT, err);
        return rc != 0 ? rc : amount_value(key, text, false, &ns->limit, err);
    }
    if (strcmp(key, "weight") == 0) {
        rc = once(key, seen, SEEN_WEIGHT, err);
        if (rc == 0 && (!number(text, CONFIG_MAX_WEIGHT, &value) || value == 0)) {
            rc = err_set(err, KVPOOL_E_INVAL, "%s: '%.40s' is not a number from 1 to %d", key, text,
                         CONFIG_MAX_WEIGHT);
        }
        if (rc == 0) {
            ns->weight = (uint32_t)value;
        }
        return rc;
    }
    return err_set(err, KVPOOL_E_INVAL, "%.40s: unknown key of a namespace", key);
}

int config_ns_end(const struct access_rules *rules, struct err *err) {
    const struct access_ns *ns = &rules->namespaces[rules->num_namespaces - 1];
    if (access_list_empty(&ns->members) && strcmp(ns->name, "default") != 0) {
        return err_set(err, KVPOOL_E_INVAL,
                       "namespace %s/%s: uids, gids or identities are missing: nobody could use it",
                       ns->pool, ns->name);
    }
    return 0;
}

// --- what belongs together ---

// The member that both have, as text; "" if there is none.
static void common(const struct access_list *a, const struct access_list *b, char *ret,
                   size_t size) {
    ret[0] = '\0';
    for (uint32_t i = 0; i < a->num_uids * b->num_uids; i++) {
        if (a->uids[i / b->num_uids] == b->uids[i % b->num_uids]) {
            snprintf(ret, size, "uids: %" PRIu32, a->uids[i / b->num_uids]);
        }
    }
    for (uint32_t i = 0; i < a->num_gids * b->num_gids; i++) {
        if (a->gids[i / b->num_gids] == b->gids[i % b->num_gids]) {
            snprintf(ret, size, "gids: %" PRIu32, a->gids[i / b->num_gids]);
        }
    }
    for (uint32_t i = 0; i < a->num_identities * b->num_identities; i++) {
        const char *identity = a->identities[i / b->num_identities];
        if (strcmp(identity, b->identities[i % b->num_identities]) == 0) {
            snprintf(ret, size, "identities: %s", identity);
        }
    }
}

int config_ns_check(const struct config *config, uint32_t i, struct err *err) {
    const struct access_rules *rules = &config->access;
    const struct access_ns *ns = &rules->namespaces[i];
    // A pool that clients make may have any number of pages: percentages can be compared then.
    uint32_t num_pages = 0;
    uint64_t reserves = 0;
    const bool comparable = ns->reserve.percent == ns->limit.percent;
    char member[64];
    for (uint32_t p = 0; p < config->num_pools; p++) {
        if (strcmp(config->pools[p].name, ns->pool) == 0) {
            num_pages = config->pools[p].num_pages;
        }
    }
    if (ns->limit.value != 0 &&
        (num_pages != 0
             ? access_pages(&ns->reserve, num_pages) > access_pages(&ns->limit, num_pages)
             : comparable && ns->reserve.value > ns->limit.value)) {
        return err_set(err, KVPOOL_E_INVAL, "namespace %s/%s: reserve is more than limit", ns->pool,
                       ns->name);
    }
    for (uint32_t k = 0; k <= i; k++) {
        const struct access_ns *other = &rules->namespaces[k];
        if (strcmp(other->pool, ns->pool) != 0) {
            continue;
        }
        if (num_pages != 0 || other->reserve.percent != 0) {
            reserves += access_pages(&other->reserve, num_pages != 0 ? num_pages : 100);
        }
        if (k == i) {
            break;
        }
        common(&other->members, &ns->members, member, sizeof member);
        if (member[0] != '\0') {
            return err_set(err, KVPOOL_E_INVAL,
                           "namespace %s/%s: %s is also in namespace %s of this pool", ns->pool,
                           ns->name, member, other->name);
        }
    }
    if (reserves > (num_pages != 0 ? num_pages : 100)) {
        return err_set(err, KVPOOL_E_INVAL,
                       "namespace %s/%s: reserve: with it %" PRIu64 "%s are reserved, the pool has "
                       "%" PRIu32 "%s",
                       ns->pool, ns->name, reserves, num_pages != 0 ? " pages" : "%",
                       num_pages != 0 ? num_pages : 100, num_pages != 0 ? "" : "%");
    }
    return 0;
}

// --- text ---

static void print_ids(const char *prefix, const char *kind, const uint32_t *ids, uint32_t n,
                      void (*line)(const char *key, const char *value)) {
    char key[32], value[VALUE_BYTES];
    snprintf(key, sizeof key, "%s%s", prefix, kind);
    for (uint32_t i = 0; i < n; i += IDS_A_LINE) {
        size_t at = 0;
        for (uint32_t k = i; k < n && k < i + IDS_A_LINE; k++) {
            at += (size_t)snprintf(value + at, sizeof value - at, "%s%" PRIu32, k > i ? ", " : "",
                                   ids[k]);
        }
        line(key, value);
    }
}

void config_list_print(const char *prefix, const struct access_list *list,
                       void (*line)(const char *key, const char *value)) {
    char key[32], value[VALUE_BYTES];
    print_ids(prefix, "uids", list->uids, list->num_uids, line);
    print_ids(prefix, "gids", list->gids, list->num_gids, line);
    snprintf(key, sizeof key, "%sidentities", prefix);
    for (uint32_t i = 0; i < list->num_identities; i += IDENTITIES_A_LINE) {
        size_t at = 0;
        for (uint32_t k = i; k < list->num_identities && k < i + IDENTITIES_A_LINE; k++) {
            at += (size_t)snprintf(value + at, sizeof value - at, "%s%s", k > i ? ", " : "",
                                   list->identities[k]);
        }
        line(key, value);
    }
}

static void print_amount(const char *key, const struct access_amount *amount,
                         void (*line)(const char *key, const char *value)) {
    char value[16];
    snprintf(value, sizeof value, "%" PRIu32 "%s", amount->value, amount->percent != 0 ? "%" : "");
    line(key, value);
}

void config_ns_print(const struct access_ns *ns, void (*line)(const char *key, const char *value)) {
    char weight[16];
    config_list_print("", &ns->members, line);
    if (ns->group[0] != '\0') {
        line("share", ns->group);
    }
    print_amount("reserve", &ns->reserve, line);
    if (ns->limit.value != 0) {
        print_amount("limit", &ns->limit, line);
    }
    snprintf(weight, sizeof weight, "%" PRIu32, ns->weight);
    line("weight", weight);
}
