// SPDX-License-Identifier: Apache-2.0
// test_tenants.c: what clients of several users and identities may use, and what they see of each
// other, through the whole dispatch.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "resume.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ALICE = 2001, BOB = 2002, EVE = 2003, NOBODY = 65534, TEAM = 3001 };

static struct fixture fx;
static struct client alice, bob, carol, team, eve, root;
enum { NUM_TENANTS = 4, NUM_CLIENTS = 6 }; // tenants first
static struct client *const all[NUM_CLIENTS] = {&alice, &bob, &carol, &team, &eve, &root};
static uint64_t tenants, open_pool; // pools
static char secrets[64];

static struct access_ns *add_ns(const char *pool, const char *name) {
    struct access_ns *ns = &fx.config.access.namespaces[fx.config.access.num_namespaces++];
    snprintf(ns->pool, sizeof ns->pool, "%s", pool);
    snprintf(ns->name, sizeof ns->name, "%s", name);
    ns->weight = 1;
    return ns;
}

static void add_uid(struct access_list *list, uint32_t uid) {
    list->uids[list->num_uids++] = uid;
}

static void add_identity(struct access_list *list, const char *identity) {
    snprintf(list->identities[list->num_identities++], CORE_NAME_SIZE, "%s", identity);
}

static void config_pool(const char *name) {
    fx.config.pools[fx.config.num_pools++] = (struct core_pool_config){.layers = 2,
                                                                       .kv_heads = 2,
                                                                       .head_dim = 8,
                                                                       .page_size = 8,
                                                                       .dtype = KVPOOL_FP32,
                                                                       .num_pages = 64,
                                                                       .max_seqs = 16};
    snprintf(fx.config.pools[fx.config.num_pools - 1].name, CORE_NAME_SIZE, "%s", name);
}

// Pool "tenants": namespaces a (alice), b (bob), c (identity carol), t (group team); "listed": an
// access list with alice alone; "open": everybody's.
static int setup(void **state) {
    (void)state;
    fixture_init(&fx);
    allow_everybody(&fx);
    snprintf(secrets, sizeof secrets, "/tmp/kvpool-secrets-%d", getpid());
    FILE *f = fopen(secrets, "w");
    assert_non_null(f);
    fputs("carol secret-of-carol\ndave secret-of-dave\n", f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(secrets, 0600), 0);
    snprintf(fx.config.credentials, sizeof fx.config.credentials, "%s", secrets);
    config_pool("tenants");
    config_pool("open");
    add_uid(&add_ns("tenants", "a")->members, ALICE);
    struct access_ns *b = add_ns("tenants", "b");
    add_uid(&b->members, BOB);
    b->reserve = (struct access_amount){25, 1};
    b->limit = (struct access_amount){32, 0};
    b->weight = 3;
    snprintf(b->group, sizeof b->group, "share");
    add_identity(&add_ns("tenants", "c")->members, "carol");
    struct access_ns *t = add_ns("tenants", "t");
    t->members.gids[t->members.num_gids++] = TEAM;
    snprintf(fx.config.access.pools[0].name, CORE_NAME_SIZE, "listed");
    add_uid(&fx.config.access.pools[0].allow, ALICE);
    fx.config.access.num_pools = 1;
    fixture_start(&fx);
    client_open_as(&fx, &alice, 1, ALICE, NOBODY, NOBODY, "");
    client_open_as(&fx, &bob, 2, BOB, NOBODY, NOBODY, "");
    client_open_as(&fx, &carol, 3, EVE, NOBODY, NOBODY, "secret-of-carol");
    client_open_as(&fx, &team, 4, EVE, NOBODY, TEAM, ""); // by a supplementary group
    client_open_as(&fx, &eve, 5, EVE, NOBODY, NOBODY, "");
    client_open(&fx, &root, 6);
    assert_int_equal(core_pool_find(fx.d->core, "tenants", &tenants, NULL), 0);
    assert_int_equal(core_pool_find(fx.d->core, "open", &open_pool, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (size_t i = 0; i < NUM_CLIENTS; i++)
        close(all[i]->fd);
    fixture_stop(&fx);
    return unlink(secrets);
}

static struct session *session_of(const struct client *c) {
    struct session *s = session_find(fx.d, c->session);
    assert_non_null(s);
    return s;
}

static int seq_create(struct client *c, uint64_t pool, struct err *err) {
    struct proto_seq_create create = {.pool = pool, .n = 1};
    return call(&fx, c, PROTO_SEQ_CREATE, &create, sizeof create, NULL, 0, NULL, err);
}

static int pool_open(struct client *c, const char *name, struct err *err) {
    struct proto_name body = {.name = ""};
    snprintf(body.name, sizeof body.name, "%s", name);
    return call(&fx, c, PROTO_POOL_OPEN, &body, sizeof body, NULL, 0, NULL, err);
}

static int pool_create(struct client *c, const char *name, uint32_t pages, struct err *err) {
    struct proto_pool_create create = {.layers = 2,
                                       .kv_heads = 2,
                                       .head_dim = 8,
                                       .page_size = 8,
                                       .dtype = KVPOOL_FP32,
                                       .num_pages = pages,
                                       .max_seqs = 16};
    snprintf(create.name, sizeof create.name, "%s", name);
    return call(&fx, c, PROTO_POOL_CREATE, &create, sizeof create, NULL, 0, NULL, err);
}

// The name of the namespace that the client has in the pool, "" when it is refused.
static const char *ns_name(struct client *c, uint64_t pool) {
    static struct core_ns_info info;
    uint32_t ns = 77, again = 78, cursor = 0;
    struct err err = {0};
    int status = session_pool_ns(session_of(c), pool, &ns, &err);
    if (status != 0) {
        assert_int_equal(status, KVPOOL_E_PERM);
        assert_int_equal(ns, 77);
        return "";
    }
    assert_int_equal(session_pool_ns(session_of(c), pool, &again, &err), 0); // from the cache
    assert_int_equal(ns, again);
    while (core_ns_next(fx.d->core, pool, &cursor, &info) && info.ns != ns)
        ;
    assert_int_equal(info.ns, ns);
    return info.config.name;
}

// --- use --------------------------------------------------------------------------------------

static void each_client_has_the_namespace_of_its_user_group_or_identity(void **state) {
    (void)state;
    assert_string_equal(ns_name(&alice, tenants), "a");
    assert_string_equal(ns_name(&bob, tenants), "b");
    assert_string_equal(ns_name(&carol, tenants), "c");
    assert_string_equal(ns_name(&team, tenants), "t");
    assert_string_equal(ns_name(&eve, tenants), "");
    assert_string_equal(ns_name(&root, tenants), ""); // an admin is not a tenant
    for (size_t i = 0; i < NUM_CLIENTS; i++)
        assert_string_equal(ns_name(all[i], open_pool), "default");
    uint32_t ns;
    assert_int_equal(session_pool_ns(session_of(&root), open_pool + 1, &ns, NULL), KVPOOL_E_STALE);
    assert_int_equal(session_pool_ns(session_of(&root), 0, &ns, NULL), KVPOOL_E_STALE);
}

static void a_new_sequence_belongs_to_its_clients_namespace(void **state) {
    (void)state;
    for (size_t i = 0; i < NUM_TENANTS; i++) {
        uint64_t seq;
        uint32_t ns;
        struct core_seq_info info;
        make_seqs(&fx, all[i], tenants, 1, &seq);
        assert_int_equal(session_pool_ns(session_of(all[i]), tenants, &ns, NULL), 0);
        assert_int_equal(core_seq_stat(fx.d->core, 0, seq, &info, NULL), 0);
        assert_int_equal(info.ns, ns);
        assert_true(ns != 0);
    }
}

static void the_namespaces_have_the_numbers_of_the_configuration(void **state) {
    (void)state;
    struct core_ns_info info;
    uint32_t cursor = 0, found = 0;
    while (core_ns_next(fx.d->core, tenants, &cursor, &info)) {
        found++;
        if (strcmp(info.config.name, "b") != 0)
            continue;
        assert_int_equal(info.config.reserve, 16); // 25 % of 64
        assert_int_equal(info.config.limit, 32);
        assert_int_equal(info.config.weight, 3);
        assert_string_equal(info.config.group, "share");
    }
    assert_int_equal(found, 5);
}

static void a_pool_that_a_client_makes_gets_its_namespaces(void **state) {
    (void)state;
    add_uid(&add_ns("later", "mine")->members, BOB);
    struct access_ns *ns = add_ns("toosmall", "mine");
    add_uid(&ns->members, BOB);
    ns->reserve = (struct access_amount){2000000, 0};
    struct err err;
    uint64_t pool;
    assert_int_equal(pool_create(&alice, "later", 16, &err), KVPOOL_E_PERM);
    assert_int_equal(core_pool_find(fx.d->core, "later", &pool, NULL), KVPOOL_E_NOTFOUND);
    assert_int_equal(pool_create(&bob, "later", 16, &err), 0);
    assert_int_equal(core_pool_find(fx.d->core, "later", &pool, NULL), 0);
    assert_string_equal(ns_name(&bob, pool), "mine");
    assert_int_equal(pool_create(&bob, "later", 16, &err), 0); // again: the same
    // More is reserved than the pool has: nothing is made.
    assert_int_equal(pool_create(&bob, "toosmall", 16, &err), KVPOOL_E_INVAL);
    assert_non_null(strstr(err.text, "namespace toosmall/mine"));
    assert_int_equal(core_pool_find(fx.d->core, "toosmall", &pool, NULL), KVPOOL_E_NOTFOUND);
    fx.config.access.num_namespaces -= 2;
}

static void a_new_pool_has_the_configured_policy(void **state) {
    (void)state;
    struct err err;
    uint64_t pool;
    struct core_pool_info info;
    fx.config.policy = CORE_S3FIFO;
    assert_int_equal(pool_create(&eve, "scan", 16, &err), 0);
    assert_int_equal(core_pool_find(fx.d->core, "scan", &pool, NULL), 0);
    assert_int_equal(core_pool_stat(fx.d->core, pool, &info, NULL), 0);
    assert_int_equal(info.config.policy, CORE_S3FIFO);
}

static void a_stranger_gets_nothing_of_a_pool(void **state) {
    (void)state;
    struct err err;
    struct proto_batch_item item = {.seq = 1, .tokens = 1};
    struct proto_attn attn = {.pool = tenants, .count = 1, .qo_heads = 4, .window_left = -1};
    assert_int_equal(pool_open(&eve, "tenants", &err), KVPOOL_E_PERM);
    assert_non_null(strstr(err.text, "pool tenants"));
    assert_non_null(strstr(err.text, "uid 2003"));
    assert_int_equal(pool_create(&eve, "tenants", 64, &err), KVPOOL_E_PERM);
    assert_int_equal(by_handle(&fx, &eve, PROTO_POOL_STAT, tenants, &err), KVPOOL_E_PERM);
    assert_int_equal(by_handle(&fx, &eve, PROTO_POOL_DESTROY, tenants, &err), KVPOOL_E_PERM);
    assert_int_equal(seq_create(&eve, tenants, &err), KVPOOL_E_PERM);
    assert_int_equal(begin(&fx, &eve, 1, tenants, 1, &item.seq, 1, &err), KVPOOL_E_PERM);
    assert_int_equal(
        call(&fx, &eve, PROTO_DECODE, &attn, sizeof attn, &item, sizeof item, NULL, &err),
        KVPOOL_E_PERM);
    assert_non_null(strstr(err.text, "pool tenants"));
    // The answer does not tell whether the pool exists.
    assert_int_equal(pool_open(&eve, "listed", &err), KVPOOL_E_PERM);
    assert_int_equal(pool_open(&alice, "listed", &err), KVPOOL_E_NOTFOUND);
    assert_int_equal(pool_open(&eve, "open", &err), 0);
    assert_int_equal(seq_create(&eve, open_pool, &err), 0);
}

static void an_access_list_lets_in_whom_it_names(void **state) {
    (void)state;
    struct err err;
    uint64_t pool;
    assert_int_equal(pool_create(&bob, "listed", 16, &err), KVPOOL_E_PERM);
    assert_int_equal(pool_create(&alice, "listed", 16, &err), 0);
    assert_int_equal(core_pool_find(fx.d->core, "listed", &pool, NULL), 0);
    assert_int_equal(seq_create(&alice, pool, &err), 0);
    assert_int_equal(pool_open(&bob, "listed", &err), KVPOOL_E_PERM);
    assert_int_equal(seq_create(&bob, pool, &err), KVPOOL_E_PERM);
}

static void only_an_admin_destroys_a_pool_of_tenants(void **state) {
    (void)state;
    struct err err;
    assert_int_equal(by_handle(&fx, &alice, PROTO_POOL_DESTROY, tenants, &err), KVPOOL_E_PERM);
    assert_non_null(strstr(err.text, "several tenants"));
    assert_int_equal(by_handle(&fx, &root, PROTO_POOL_DESTROY, tenants, &err), 0);
    assert_int_equal(by_handle(&fx, &alice, PROTO_POOL_DESTROY, open_pool, &err), 0);
    assert_int_equal(by_handle(&fx, &alice, PROTO_POOL_DESTROY, open_pool, &err), KVPOOL_E_STALE);
}

static void an_admin_sees_what_it_may_not_use(void **state) {
    (void)state;
    struct err err;
    assert_int_equal(pool_open(&root, "tenants", &err), 0);
    assert_int_equal(by_handle(&fx, &root, PROTO_POOL_STAT, tenants, &err), 0);
    assert_int_equal(seq_create(&root, tenants, &err), KVPOOL_E_PERM);
    assert_non_null(strstr(err.text, "uid 0"));
}

// --- sight ------------------------------------------------------------------------------------

static uint32_t list(struct client *c, uint16_t op, uint32_t max, struct proto_msg *ret) {
    struct proto_list body = {.max = max};
    assert_int_equal(call(&fx, c, op, &body, sizeof body, NULL, 0, ret, NULL), 0);
    return ret->count;
}

static void pools_are_listed_for_those_who_may_use_them(void **state) {
    (void)state;
    struct proto_msg msg = {0};
    struct proto_pool_info info;
    assert_int_equal(list(&alice, PROTO_POOL_LIST, 9, &msg), 2);
    assert_int_equal(list(&root, PROTO_POOL_LIST, 9, &msg), 2);
    assert_int_equal(list(&eve, PROTO_POOL_LIST, 1, &msg), 1); // the hidden one takes no place
    proto_record(&msg, 0, &info);
    assert_string_equal(info.name, "open");
}

static void sequences_of_other_tenants_are_not_listed(void **state) {
    (void)state;
    struct proto_msg msg = {0};
    struct proto_seq_info info;
    uint64_t a[2], b, c, e;
    struct client alice_too;
    make_seqs(&fx, &alice, tenants, 2, a);
    make_seqs(&fx, &bob, tenants, 1, &b);
    make_seqs(&fx, &carol, open_pool, 1, &c);
    make_seqs(&fx, &eve, open_pool, 1, &e);
    client_open_as(&fx, &alice_too, 9, ALICE, NOBODY, NOBODY, "");
    assert_int_equal(list(&alice_too, PROTO_SEQ_LIST, 9, &msg), 2); // the same user's
    assert_int_equal(list(&bob, PROTO_SEQ_LIST, 1, &msg), 1);
    proto_record(&msg, 0, &info);
    assert_true(info.seq == b);
    // Of one uid, but carol has an identity of its own.
    assert_int_equal(list(&carol, PROTO_SEQ_LIST, 9, &msg), 1);
    proto_record(&msg, 0, &info);
    assert_true(info.seq == c);
    assert_int_equal(list(&eve, PROTO_SEQ_LIST, 9, &msg), 1);
    proto_record(&msg, 0, &info);
    assert_true(info.seq == e);
    assert_int_equal(list(&root, PROTO_SEQ_LIST, 9, &msg), 5);
    assert_int_equal(by_handle(&fx, &bob, PROTO_SEQ_STAT, a[0], NULL), KVPOOL_E_PERM);
    client_bye(&fx, &alice_too);
}

static void clients_of_other_tenants_are_not_listed(void **state) {
    (void)state;
    struct proto_msg msg = {0};
    struct proto_client_info info;
    struct client carol_elsewhere;
    client_open_as(&fx, &carol_elsewhere, 9, BOB, NOBODY, NOBODY, "secret-of-carol");
    assert_int_equal(list(&alice, PROTO_CLIENT_LIST, 9, &msg), 1);
    proto_record(&msg, 0, &info);
    assert_int_equal(info.uid, ALICE);
    assert_int_equal(list(&bob, PROTO_CLIENT_LIST, 9, &msg), 1);
    assert_int_equal(list(&carol, PROTO_CLIENT_LIST, 9, &msg), 2); // one identity, two users
    assert_int_equal(list(&eve, PROTO_CLIENT_LIST, 9, &msg), 2);   // and team, of the same uid
    assert_int_equal(list(&root, PROTO_CLIENT_LIST, 9, &msg), 7);
    client_bye(&fx, &carol_elsewhere);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(each_client_has_the_namespace_of_its_user_group_or_identity),
        TEST(a_new_sequence_belongs_to_its_clients_namespace),
        TEST(the_namespaces_have_the_numbers_of_the_configuration),
        TEST(a_pool_that_a_client_makes_gets_its_namespaces),
        TEST(a_new_pool_has_the_configured_policy),
        TEST(a_stranger_gets_nothing_of_a_pool),
        TEST(an_access_list_lets_in_whom_it_names),
        TEST(only_an_admin_destroys_a_pool_of_tenants),
        TEST(an_admin_sees_what_it_may_not_use),
        TEST(pools_are_listed_for_those_who_may_use_them),
        TEST(sequences_of_other_tenants_are_not_listed),
        TEST(clients_of_other_tenants_are_not_listed),
    };
    if (geteuid() != 0) // it plays several users
        return 77;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
