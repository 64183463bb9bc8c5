// SPDX-License-Identifier: Apache-2.0
// test_access.c: which namespace a client gets, which file of secrets is taken.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/access.h"
#include "daemon/credentials.h"
#include "tests/unit/daemon/tmpdir.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct access_rules rules;
static struct tmpdir dir;
static struct err err;

static int setup(void **state) {
    (void)state;
    memset(&rules, 0, sizeof rules);
    memset(&err, 0, sizeof err);
    return tmpdir_make(&dir) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    tmpdir_remove(&dir);
    return 0;
}

static void add_identity(struct access_list *list, const char *name) {
    snprintf(list->identities[list->num_identities++], CORE_NAME_SIZE, "%s", name);
}

static struct access_list *pool_list(const char *name) {
    snprintf(rules.pools[rules.num_pools].name, CORE_NAME_SIZE, "%s", name);
    return &rules.pools[rules.num_pools++].allow;
}

static struct access_list *ns_list(const char *pool, const char *name) {
    struct access_ns *ns = &rules.namespaces[rules.num_namespaces++];
    snprintf(ns->pool, sizeof ns->pool, "%s", pool);
    snprintf(ns->name, sizeof ns->name, "%s", name);
    return &ns->members;
}

// The namespace of a client, "" when it is refused.
static const char *resolve(const char *pool, uint32_t uid, uint32_t gid, uint32_t other_gid,
                           const char *identity) {
    const uint32_t gids[] = {gid, other_gid};
    const struct access_who who = {.uid = uid, .gids = gids, .num_gids = 2, .identity = identity};
    const char *ns = "untouched";
    const int rc = access_resolve(&rules, pool, &who, &ns, &err);
    if (rc != 0) {
        assert_int_equal(KVPOOL_E_PERM, rc);
        assert_string_equal("untouched", ns);
        return "";
    }
    return ns;
}

static void without_rules_everybody_is_in_default(void **state) {
    (void)state;
    assert_string_equal("default", resolve("p", 1, 2, 3, ""));
    assert_string_equal("default", resolve("p", 0, 0, 0, "x"));
    pool_list("p"); // a section without lists
    ns_list("p", "default");
    assert_string_equal("default", resolve("p", 1, 2, 3, ""));
}

static void an_access_list_lets_in_whom_it_names(void **state) {
    struct access_list *list = pool_list("p");
    (void)state;
    list->uids[list->num_uids++] = 10;
    list->gids[list->num_gids++] = 20;
    add_identity(list, "alice");
    assert_string_equal("default", resolve("p", 10, 1, 1, ""));
    assert_string_equal("default", resolve("p", 1, 20, 1, ""));
    assert_string_equal("default", resolve("p", 1, 1, 20, "")); // a supplementary group
    assert_string_equal("default", resolve("p", 1, 1, 1, "alice"));
    assert_string_equal("", resolve("p", 20, 10, 10, ""));
    assert_string_equal("", resolve("p", 0, 0, 0, "")); // root is like everybody
    assert_string_equal("", resolve("p", 1, 1, 1, "alic"));
    assert_string_equal("", resolve("p", 1, 1, 1, "alice2"));
    assert_string_equal("default", resolve("q", 1, 1, 1, "")); // another pool
}

static void a_refusal_says_which_pool_and_who(void **state) {
    (void)state;
    pool_list("main")->num_uids = 1;
    assert_string_equal("", resolve("main", 1234, 1, 1, ""));
    assert_non_null(strstr(err.text, "pool main"));
    assert_non_null(strstr(err.text, "uid 1234:"));
    assert_string_equal("", resolve("main", 1234, 1, 1, "bob"));
    assert_non_null(strstr(err.text, "uid 1234, identity bob:"));
}

static void an_identity_comes_before_a_uid_before_a_gid_before_the_access_list(void **state) {
    struct access_list *list = pool_list("p");
    (void)state;
    list->uids[list->num_uids++] = 9;
    list = ns_list("p", "by_gid");
    list->gids[list->num_gids++] = 20;
    list = ns_list("p", "by_uid");
    list->uids[list->num_uids++] = 10;
    list = ns_list("p", "by_identity");
    add_identity(list, "alice");
    list = ns_list("q", "elsewhere");
    list->uids[list->num_uids++] = 11;
    assert_string_equal("by_identity", resolve("p", 10, 20, 20, "alice"));
    assert_string_equal("by_uid", resolve("p", 10, 20, 20, "bob"));
    assert_string_equal("by_uid", resolve("p", 10, 20, 20, ""));
    assert_string_equal("by_gid", resolve("p", 9, 1, 20, ""));
    assert_string_equal("default", resolve("p", 9, 1, 1, ""));
    assert_string_equal("", resolve("p", 11, 1, 1, ""));
    assert_string_equal("elsewhere", resolve("q", 11, 1, 1, ""));
}

static void of_several_groups_the_first_namespace_counts(void **state) {
    struct access_list *list = ns_list("p", "one");
    (void)state;
    list->gids[list->num_gids++] = 1;
    list = ns_list("p", "two");
    list->gids[list->num_gids++] = 2;
    assert_string_equal("one", resolve("p", 9, 2, 1, ""));
    assert_string_equal("two", resolve("p", 9, 2, 3, ""));
}

static void a_pool_with_tenants_is_closed_to_others(void **state) {
    struct access_list *list = ns_list("p", "tenant");
    (void)state;
    list->uids[list->num_uids++] = 10;
    assert_string_equal("tenant", resolve("p", 10, 1, 1, ""));
    assert_string_equal("", resolve("p", 11, 1, 1, ""));
    assert_true(access_has_tenants(&rules, "p"));
    assert_false(access_has_tenants(&rules, "q"));
    list = pool_list("p"); // the list opens default to whom it names
    list->gids[list->num_gids++] = 7;
    assert_string_equal("default", resolve("p", 11, 7, 1, ""));
    assert_string_equal("", resolve("p", 11, 1, 1, ""));
    assert_string_equal("tenant", resolve("p", 10, 1, 1, "")); // who need not be on it
}

static void default_may_have_members_of_its_own(void **state) {
    struct access_list *list = ns_list("p", "default");
    (void)state;
    assert_false(access_has_tenants(&rules, "p"));
    list->uids[list->num_uids++] = 10;
    assert_true(access_has_tenants(&rules, "p"));
    assert_string_equal("default", resolve("p", 10, 1, 1, ""));
    assert_string_equal("", resolve("p", 11, 1, 1, ""));
}

static void an_empty_identity_matches_nothing(void **state) {
    struct access_list *list = ns_list("p", "t");
    (void)state;
    add_identity(list, "");
    assert_string_equal("", resolve("p", 10, 1, 1, ""));
}

static void amounts_are_pages_or_percent(void **state) {
    (void)state;
    assert_int_equal(70, access_pages(&(struct access_amount){70, 0}, 10));
    assert_int_equal(2, access_pages(&(struct access_amount){25, 1}, 10));
    assert_int_equal(0, access_pages(&(struct access_amount){0, 1}, 10));
    assert_int_equal(1, access_pages(&(struct access_amount){1, 1}, 10)); // not 0: "no limit"
    assert_int_equal(UINT32_MAX, access_pages(&(struct access_amount){100, 1}, UINT32_MAX));
}

static void secrets_are_compared_whole(void **state) {
    uint8_t a[16] = {0}, b[16] = {0};
    (void)state;
    assert_true(access_equal(a, b, sizeof a));
    for (size_t i = 0; i < sizeof a; i++) {
        b[i] = 0x80;
        assert_false(access_equal(a, b, sizeof a));
        b[i] = 0;
    }
}

// --- the file of credentials --------------------------------------------------------------------

static char path[128];

static int load(const char *text, mode_t mode, struct credentials **ret) {
    assert_true(tmpdir_write(&dir, "secrets", text, path, sizeof path));
    assert_int_equal(0, chmod(path, mode));
    return credentials_load(path, ret, &err);
}

static const char *find(const struct credentials *c, const char *secret) {
    char credential[PROTO_CREDENTIAL_SIZE] = "";
    snprintf(credential, sizeof credential, "%s", secret);
    return credentials_find(c, credential);
}

static void a_secret_proves_its_identity(void **state) {
    struct credentials *c = NULL;
    char longest[PROTO_CREDENTIAL_SIZE], text[512];
    (void)state;
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    snprintf(text, sizeof text,
             "# comment\n\n  alice\tse;cret#1  \r\nbob s2\nalice new\n \t \nlast.one_of-31-bytes-"
             "xxxxxxxxxx %s",
             longest);
    assert_int_equal(0, load(text, 0600, &c));
    assert_int_equal(4, credentials_count(c));
    assert_string_equal("alice", find(c, "se;cret#1"));
    assert_string_equal("bob", find(c, "s2"));
    assert_string_equal("alice", find(c, "new"));
    assert_string_equal("last.one_of-31-bytes-xxxxxxxxxx", find(c, longest));
    assert_null(find(c, ""));
    assert_null(find(c, "s"));
    assert_null(find(c, "s22"));
    assert_null(find(c, "alice"));
    longest[94] = 'y';
    assert_null(find(c, longest));
    credentials_free(c);
}

static void assert_no_load(const char *text, mode_t mode, int status, const char *part) {
    struct credentials *c = NULL;
    assert_int_equal(status, load(text, mode, &c));
    assert_null(c);
    if (strstr(err.text, part) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", part, err.text);
    }
}

static void a_bad_line_is_named_without_its_secret(void **state) {
    char text[256];
    (void)state;
    assert_no_load("a s\nalice\n", 0600, KVPOOL_E_INVAL, "secrets:2: expected IDENTITY SECRET");
    assert_no_load("alice my secret\n", 0600, KVPOOL_E_INVAL,
                   "secrets:1: expected IDENTITY SECRET");
    assert_null(strstr(err.text, "my"));
    assert_no_load("al/ice s\n", 0600, KVPOOL_E_INVAL, "secrets:1: an identity has 1 to 31 bytes");
    assert_no_load("a2345678901234567890123456789012 s\n", 0600, KVPOOL_E_INVAL, "an identity has");
    assert_no_load("a s\nb s\n", 0600, KVPOOL_E_INVAL, "secrets:2: this secret was given before");
    snprintf(text, sizeof text, "a %0*d\n", PROTO_CREDENTIAL_SIZE, 0);
    assert_no_load(text, 0600, KVPOOL_E_INVAL, "secrets:1: a secret has at most 95 bytes");
}

static void a_file_with_zero_bytes_or_too_much_is_refused(void **state) {
    struct credentials *c = NULL;
    (void)state;
    assert_true(tmpdir_write(&dir, "secrets", "", path, sizeof path));
    assert_int_equal(0, chmod(path, 0600));
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(6, fwrite("a s\0t\n", 1, 6, f));
    fclose(f);
    assert_int_equal(KVPOOL_E_INVAL, credentials_load(path, &c, &err));
    assert_non_null(strstr(err.text, "zero byte"));
    f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i <= CREDENTIALS_MAX; i++) {
        fprintf(f, "id%d secret%d\n", i, i);
    }
    fclose(f);
    assert_int_equal(KVPOOL_E_INVAL, credentials_load(path, &c, &err));
    assert_non_null(strstr(err.text, ":1025: more than 1024 secrets"));
    f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 70000; i++) {
        fputs("# 3456\n\n", f);
    }
    fclose(f);
    assert_int_equal(KVPOOL_E_INVAL, credentials_load(path, &c, &err));
    assert_non_null(strstr(err.text, "more than 524288 bytes"));
    assert_null(c);
}

static void a_file_that_others_can_touch_is_refused(void **state) {
    static const mode_t bad[] = {0640, 0620, 0604, 0602, 0666};
    struct credentials *c = NULL;
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char part[32];
        snprintf(part, sizeof part, "has mode %04o", (unsigned)bad[i]);
        assert_no_load("a s\n", bad[i], KVPOOL_E_PERM, part);
    }
    assert_int_equal(0, load("a s\n", 0400, &c));
    credentials_free(c);
    c = NULL;
    assert_int_equal(KVPOOL_E_PERM, credentials_load(dir.path, &c, &err));
    assert_non_null(strstr(err.text, "not a regular file"));
    assert_int_equal(KVPOOL_E_SYSTEM, credentials_load("/nonexistent/x", &c, &err));
    assert_non_null(strstr(err.text, "/nonexistent/x: No such file"));
    if (geteuid() == 0) {
        assert_true(tmpdir_write(&dir, "secrets", "a s\n", path, sizeof path));
        assert_int_equal(0, chmod(path, 0600));
        assert_int_equal(0, chown(path, 65534, (gid_t)-1));
        assert_int_equal(KVPOOL_E_PERM, credentials_load(path, &c, &err));
        assert_non_null(strstr(err.text, "belongs to uid 65534"));
    }
    assert_null(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(without_rules_everybody_is_in_default),
        TEST(an_access_list_lets_in_whom_it_names),
        TEST(a_refusal_says_which_pool_and_who),
        TEST(an_identity_comes_before_a_uid_before_a_gid_before_the_access_list),
        TEST(of_several_groups_the_first_namespace_counts),
        TEST(a_pool_with_tenants_is_closed_to_others),
        TEST(default_may_have_members_of_its_own),
        TEST(an_empty_identity_matches_nothing),
        TEST(amounts_are_pages_or_percent),
        TEST(secrets_are_compared_whole),
        TEST(a_secret_proves_its_identity),
        TEST(a_bad_line_is_named_without_its_secret),
        TEST(a_file_with_zero_bytes_or_too_much_is_refused),
        TEST(a_file_that_others_can_touch_is_refused),
    };
    return cmocka_run_group_tests_name("access", tests, NULL, NULL);
}
