// SPDX-License-Identifier: Apache-2.0
// test_config_tenants.c: policies, access lists, namespaces and credentials in the configuration.
#include "tests/unit/daemon/config_rig.h"

static void policies_come_from_the_pool_then_the_setting(void **state) {
    struct config c;
    (void)state;
    write_conf("[pool a]\n" POOL "policy = s3fifo\n[pool b]\n" POOL "[kvpoold]\npolicy = lru\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_int_equal(CORE_S3FIFO, c.pools[0].policy);
    assert_int_equal(CORE_LRU, c.pools[1].policy);
    assert_int_equal(0, load(&c, "--policy=s3fifo", NULL, NULL, NULL)); // known after the file
    assert_int_equal(CORE_S3FIFO, c.pools[1].policy);
    assert_int_equal(CORE_S3FIFO, c.policy);
    write_conf("[pool a]\n" POOL "policy = lru\n");
    assert_int_equal(0, load(&c, "--policy=s3fifo", NULL, NULL, NULL));
    assert_int_equal(CORE_LRU, c.pools[0].policy);
    assert_refused("[kvpoold]\npolicy = fifo\n", NULL,
                   "conf:2: policy: 'fifo' is not one of lru, s3fifo");
    assert_refused("[pool a]\npolicy = fifo\n", NULL,
                   "conf:2: policy: 'fifo' is not one of lru, s3fifo");
    assert_refused("[pool a]\npolicy = lru\npolicy = lru\n", NULL, "conf:3: policy: given twice");
}

static void access_lists_and_namespaces_are_read(void **state) {
    struct config c;
    (void)state;
    write_conf("[pool main]\n" POOL "allow_uids = root , 1001,7\nallow_gids = root\n"
               "allow_identities = a.b-c_D\n"
               "[kvpoold]\ncredentials = /none\n"
               "[namespace main/search]\nuids = 5, 6\nuids = 7\ngids = 8\nidentities = x,y\n"
               "share = team\nreserve = 25%\nlimit = 16\nweight = 3\n"
               "[namespace later/one]\ngids = 8\nreserve = 100000\n"
               "[namespace main/default]\nlimit = 100%\n");
    assert_int_equal(0, load(&c, "--print-config", NULL, NULL, NULL)); // needs no credentials
    const struct access_list *allow = &c.access.pools[0].allow;
    assert_int_equal(1, c.access.num_pools);
    assert_string_equal("main", c.access.pools[0].name);
    assert_int_equal(3, allow->num_uids);
    assert_int_equal(0, allow->uids[0]);
    assert_int_equal(1001, allow->uids[1]);
    assert_int_equal(7, allow->uids[2]);
    assert_int_equal(1, allow->num_gids);
    assert_int_equal(0, allow->gids[0]);
    assert_string_equal("a.b-c_D", allow->identities[0]);
    assert_int_equal(3, c.access.num_namespaces);
    const struct access_ns *ns = &c.access.namespaces[0];
    assert_string_equal("main", ns->pool);
    assert_string_equal("search", ns->name);
    assert_string_equal("team", ns->group);
    assert_int_equal(3, ns->members.num_uids);
    assert_int_equal(7, ns->members.uids[2]);
    assert_int_equal(8, ns->members.gids[0]);
    assert_int_equal(2, ns->members.num_identities);
    assert_string_equal("y", ns->members.identities[1]);
    assert_true(ns->reserve.percent == 1 && ns->reserve.value == 25);
    assert_true(ns->limit.percent == 0 && ns->limit.value == 16);
    assert_int_equal(3, ns->weight);
    assert_string_equal("later", ns[1].pool);
    assert_int_equal(1, ns[1].weight);
    assert_int_equal(0, ns[1].limit.value);
    assert_int_equal(100, ns[2].limit.value);
}

static void bad_access_lists_and_namespaces_are_refused(void **state) {
    char text[8192];
    (void)state;
    assert_refused("[pool a]\nallow_uids = nobody-of-that-name\n", NULL,
                   "conf:2: allow_uids: 'nobody-of-that-name' is no user of this machine");
    assert_refused("[pool a]\nallow_gids = nobody-of-that-name\n", NULL,
                   "conf:2: allow_gids: 'nobody-of-that-name' is no group of this machine");
    assert_refused("[pool a]\nallow_uids = 12x\n", NULL, "allow_uids: '12x' is no user");
    assert_refused("[pool a]\nallow_uids = 4294967295\n", NULL, "'4294967295' is no user");
    assert_refused("[pool a]\nallow_uids =\n", NULL, "conf:2: allow_uids: an empty place");
    assert_refused("[pool a]\nallow_uids = 1,,2\n", NULL, "allow_uids: an empty place");
    assert_refused("[pool a]\nallow_uids = 1,\n", NULL, "allow_uids: an empty place");
    assert_refused("[pool a]\nallow_uids = 0\nallow_uids = root\n", NULL,
                   "conf:3: allow_uids: 'root' (0) is given twice");
    assert_refused("[pool a]\nallow_identities = a b\n", NULL, "allow_identities: 'a b' is not");
    assert_refused("[pool a]\nallow_identities = a, a\n", NULL, "'a' is given twice");
    assert_refused("[pool a]\nallow_users = 1\n", NULL, "conf:2: allow_users: unknown key");
    assert_refused("[pool a]\nuids = 1\n", NULL, "conf:2: uids: unknown key of a pool");
    assert_refused("[pool a]\n" POOL "allow_identities = a\n", NULL,
                   "pool a: allow_identities needs the setting credentials");

    assert_refused("[namespace a]\n", NULL, "conf:1: expected [namespace POOL/NAME]");
    assert_refused("[namespace a/]\n", NULL, "conf:1: expected [namespace POOL/NAME]");
    assert_refused("[namespace /a]\n", NULL, "conf:1: expected [namespace POOL/NAME]");
    assert_refused("[namespace a/b/c]\n", NULL, "conf:1: expected [namespace POOL/NAME]");
    assert_refused("[namespace a/b c]\n", NULL, "conf:1: expected [namespace POOL/NAME]");
    assert_refused("[namespace]\n", NULL, "conf:1: unknown section [namespace]");
    assert_refused("\n[namespace a/b]\nweight = 1\n", NULL,
                   "conf:2: namespace a/b: uids, gids or identities are missing");
    assert_refused("[namespace a/b]\n[namespace a/c]\nuids = 1\n", NULL,
                   "conf:1: namespace a/b: uids, gids or identities are missing");
    assert_refused("[namespace a/b]\nuids=1\n[namespace a/b]\nuids=2\n", NULL,
                   "conf:3: namespace a/b: there are two of this name");
    assert_refused("[namespace a/b]\nallow_uids = 1\n", NULL,
                   "conf:2: allow_uids: unknown key of a namespace");
    assert_refused("[namespace a/b]\nidentities = x\n", NULL,
                   "namespace a/b: identities needs the setting credentials");
    const char *const keys[] = {"share = a b", "share =",       "reserve = 101%", "reserve = x",
                                "limit = 0",   "limit = 0%",    "limit = 5.5%",   "weight = 0",
                                "limit =",     "weight = 1001", "reserve = %",    "limit = -1"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char part[64];
        snprintf(text, sizeof text, "[namespace a/b]\nuids = 1\n%s\n", keys[i]);
        snprintf(part, sizeof part, "conf:3: %.*s: '", (int)strcspn(keys[i], " "), keys[i]);
        assert_refused(text, NULL, part);
    }
    const char *const twice[] = {"share = a", "reserve = 1", "limit = 2", "weight = 1"};
    for (size_t i = 0; i < sizeof twice / sizeof *twice; i++) {
        char part[64];
        snprintf(text, sizeof text, "[namespace a/b]\n%s\n%s\n", twice[i], twice[i]);
        snprintf(part, sizeof part, "conf:3: %.*s: given twice", (int)strcspn(twice[i], " "),
                 twice[i]);
        assert_refused(text, NULL, part);
    }
    text[0] = '\0';
    for (int i = 0; i < CORE_MAX_NAMESPACES; i++) {
        const size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "[namespace a/n%d]\nuids = %d\n", i, i + 1);
    }
    assert_refused(text, NULL, "conf:127: pool a: more than 63 namespaces");
    text[0] = '\0';
    for (int i = 0; i <= ACCESS_MAX_NAMESPACES; i++) {
        const size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "[namespace p%d/n]\nuids = 1\n", i);
    }
    assert_refused(text, NULL, "conf:257: more than 128 namespaces");
    snprintf(text, sizeof text, "[namespace a/b]\n");
    for (int i = 0; i <= ACCESS_MAX_IDS; i++) {
        const size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "gids = %d\n", i);
    }
    assert_refused(text, NULL, "conf:66: gids: more than 64");
    snprintf(text, sizeof text, "[namespace a/b]\n");
    for (int i = 0; i <= ACCESS_MAX_IDENTITIES; i++) {
        const size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "identities = i%d\n", i);
    }
    assert_refused(text, NULL, "conf:18: identities: more than 16");
}

static void namespaces_that_contradict_each_other_are_refused(void **state) {
    struct config c;
    (void)state;
    assert_refused("[namespace a/b]\nuids = 1, 2\n[namespace a/c]\nuids = 3,2\n", NULL,
                   "conf:3: namespace a/c: uids: 2 is also in namespace b of this pool");
    assert_refused("[namespace a/b]\ngids = 1, 2\n[namespace a/c]\ngids = 3,2\n", NULL,
                   "gids: 2 is also in namespace b");
    assert_refused("[namespace a/b]\nidentities = x\n[namespace a/c]\nidentities = y,x\n", NULL,
                   "identities: x is also in namespace b");
    write_conf("[namespace a/b]\nuids = 1\n[namespace b/b]\nuids = 1\n[namespace a/c]\ngids=1\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_refused("[namespace a/b]\nuids = 1\nreserve = 3\nlimit = 2\n", NULL,
                   "conf:1: namespace a/b: reserve is more than limit");
    assert_refused("[namespace a/b]\nuids = 1\nreserve = 3%\nlimit = 2%\n", NULL,
                   "namespace a/b: reserve is more than limit");
    // 32 pages: 50 % is 16. The section of the pool may come later.
    assert_refused("[namespace a/b]\nuids = 1\nreserve = 50%\nlimit = 15\n[pool a]\n" POOL, NULL,
                   "conf:1: namespace a/b: reserve is more than limit");
    write_conf("[namespace a/b]\nuids = 1\nreserve = 50%\nlimit = 16\n[pool a]\n" POOL);
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_refused(
        "[namespace a/b]\nuids = 1\nreserve = 50%\n[namespace a/c]\nuids = 2\n"
        "reserve = 17\n[pool a]\n" POOL,
        NULL, "conf:4: namespace a/c: reserve: with it 33 pages are reserved, the pool has 32");
    assert_refused("[namespace a/b]\nuids = 1\nreserve = 50%\n[namespace a/c]\nuids = 2\n"
                   "reserve = 51%\n",
                   NULL, "conf:4: namespace a/c: reserve: with it 101% are reserved");
}

static void credentials_are_checked_with_the_configuration(void **state) {
    struct config c;
    char path[128], text[400], report[1024];
    (void)state;
    assert_true(tmpdir_write(&dir, "secrets", "# who\na secret-of-a\n", path, sizeof path));
    assert_int_equal(0, chmod(path, 0600));
    snprintf(text, sizeof text, "[kvpoold]\ncredentials = %s\n[namespace p/n]\nidentities = a\n",
             path);
    write_conf(text);
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_string_equal(path, c.credentials);
    const struct config before = c;
    assert_int_equal(0, chmod(path, 0640));
    assert_refused(text, NULL, "credentials (file): ");
    assert_error("has mode 0640: group and others must not read or write it");
    assert_int_equal(KVPOOL_E_PERM, err.status);
    assert_int_equal(
        KVPOOL_E_PERM, // a reload with them is refused as a whole
        config_reload(&c, 3, make_args(NULL, NULL, NULL, NULL).argv, report, sizeof report, &err));
    assert_memory_equal(&before, &c, sizeof c);
    assert_refused("[kvpoold]\ncredentials = /nonexistent\n", NULL,
                   "credentials (file): cannot read /nonexistent: No such file");
    assert_int_equal(0, load(&c, "--print-config", NULL, NULL, NULL));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, config_setup, config_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(policies_come_from_the_pool_then_the_setting),
        TEST(access_lists_and_namespaces_are_read),
        TEST(bad_access_lists_and_namespaces_are_refused),
        TEST(namespaces_that_contradict_each_other_are_refused),
        TEST(credentials_are_checked_with_the_configuration),
    };
    return cmocka_run_group_tests_name("config tenants", tests, NULL, NULL);
}
