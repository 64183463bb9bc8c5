// SPDX-License-Identifier: Apache-2.0
// test_config.c: one precedence, errors that name file, line and key, and a print that reads back.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/config.h"
#include "tests/unit/daemon/tmpdir.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MANY_UIDS                                                                     \
    "uids = 4000000001, 4000000002, 4000000003, 4000000004, 4000000005, 4000000006\n" \
    "uids = 4000000007, 4000000008, 4000000009, 4000000010, 4000000011, 4000000012\n" \
    "uids = 4000000013\n"
#define MANY_IDENTITIES                                                               \
    "identities = a2345678901234567890123456789.1, b2345678901234567890123456789_1\n" \
    "identities = c234567890123456789012345678901, d234567890123456789012345678901, e\n"
#define POOL \
    "layers = 2\nkv_heads = 2\nhead_dim = 64\npage_size = 16\ndtype = fp16\nnum_pages = 32\n"

static struct tmpdir dir;
static char file[128];
static struct err err;

static int setup(void **state) {
    (void)state;
    for (char **e = environ; *e != NULL;) { // ours alone
        char name[64];
        if (strncmp(*e, "KVPOOLD_", 8) == 0) {
            snprintf(name, sizeof name, "%.*s", (int)strcspn(*e, "="), *e);
            unsetenv(name);
            e = environ;
        } else {
            e++;
        }
    }
    unsetenv("RUNTIME_DIRECTORY");
    memset(&err, 0, sizeof err);
    return tmpdir_make(&dir) && tmpdir_write(&dir, "conf", "", file, sizeof file) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    tmpdir_remove(&dir);
    return 0;
}

static void write_conf(const char *text) {
    assert_true(tmpdir_write(&dir, "conf", text, file, sizeof file));
}

struct args {
    int argc;
    char *argv[16];
};

// kvpoold --config FILE and the given words (NULL ends them).
static struct args make_args(const char *a, const char *b, const char *c, const char *d) {
    const char *words[] = {"kvpoold", "--config", file, a, b, c, d};
    struct args args = {0};
    for (size_t i = 0; i < sizeof words / sizeof *words && words[i] != NULL; i++) {
        args.argv[args.argc++] = (char *)words[i];
    }
    return args;
}

static int load(struct config *ret, const char *a, const char *b, const char *c, const char *d) {
    struct args args = make_args(a, b, c, d);
    return config_load(args.argc, args.argv, ret, &err);
}

static void assert_error(const char *part) {
    assert_int_not_equal(0, err.status);
    if (strstr(err.text, part) == NULL) {
        fail_msg("\"%s\" is not in \"%s\"", part, err.text);
    }
}

// The file's text and the given flags are refused with a message that has `part`.
static void assert_refused(const char *text, const char *flag, const char *part) {
    struct config c;
    write_conf(text);
    memset(&err, 0, sizeof err);
    assert_int_not_equal(0, load(&c, flag, NULL, NULL, NULL));
    assert_error(part);
}

static void without_any_source_every_setting_has_its_default(void **state) {
    struct config c;
    (void)state;
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_string_equal("/run/kvpool/0", c.dir);
    assert_string_equal("auto", c.backend);
    assert_int_equal(256, c.slots);
    assert_int_equal(64, c.max_inflight);
    assert_int_equal(64, c.max_regions);
    assert_int_equal(4ull << 30, c.max_region_bytes);
    assert_int_equal(5000, c.drain_timeout_ms);
    assert_int_equal(5000, c.probe_interval_ms);
    assert_int_equal(256, c.leak_limit);
    assert_int_equal(0660, c.socket_mode);
    assert_int_equal(0750, c.dir_mode);
    assert_int_equal(LOG_INFO, c.log_level);
    assert_string_equal("", c.log_file);
    assert_string_equal("", c.credentials);
    assert_int_equal(30000, c.session_grace_ms);
    assert_int_equal(CORE_LRU, c.policy);
    assert_int_equal(0, c.num_pools);
    assert_int_equal(0, c.access.num_pools + c.access.num_namespaces);
    assert_memory_equal(&core_limits_default, &c.limits, sizeof c.limits);
    assert_false(c.print_config || c.check_config);
}

static void systemds_first_runtime_directory_is_the_default_dir(void **state) {
    struct config c;
    (void)state;
    setenv("RUNTIME_DIRECTORY", "/run/kvpool/3:/run/other", 1);
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_string_equal("/run/kvpool/3", c.dir);
    assert_int_equal(0, load(&c, "--dir", "/x", NULL, NULL));
    assert_string_equal("/x", c.dir);
    unsetenv("RUNTIME_DIRECTORY");
}

static void flag_beats_environment_beats_file_beats_default(void **state) {
    struct config c;
    (void)state;
    write_conf("[kvpoold]\nslots = 100\nmax_inflight = 10\ndrain_timeout = 7s\n");
    setenv("KVPOOLD_SLOTS", "101", 1);
    setenv("KVPOOLD_MAX_INFLIGHT", "11", 1);
    assert_int_equal(0, load(&c, "--slots", "102", NULL, NULL));
    assert_int_equal(102, c.slots);
    assert_int_equal(11, c.max_inflight);
    assert_int_equal(7000, c.drain_timeout_ms);
    assert_int_equal(64, c.max_regions);
    unsetenv("KVPOOLD_SLOTS");
    unsetenv("KVPOOLD_MAX_INFLIGHT");
}

static void the_file_is_named_by_flag_before_environment(void **state) {
    struct config c;
    char other[128];
    char *argv[] = {(char *)"kvpoold"};
    (void)state;
    assert_true(tmpdir_write(&dir, "other", "[kvpoold]\nslots = 99\n", other, sizeof other));
    setenv("KVPOOLD_CONFIG", other, 1);
    assert_int_equal(0, config_load(1, argv, &c, &err));
    assert_string_equal(other, c.file);
    assert_int_equal(99, c.slots);
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_string_equal(file, c.file);
    assert_int_equal(256, c.slots);
    unsetenv("KVPOOLD_CONFIG");
}

static void sizes_times_and_modes_have_units(void **state) {
    struct config c;
    (void)state;
    write_conf("[kvpoold]\nmax_region_bytes = 512M\nmax_pool_bytes = 1T\nprobe_interval = 250ms\n"
               "drain_timeout = 2m\nsocket_mode = 600\ndir_mode = 0700\nlog_level = debug\n");
    assert_int_equal(0, load(&c, "--max-region-bytes=8GiB", NULL, NULL, NULL));
    assert_int_equal(8ull << 30, c.max_region_bytes);
    assert_int_equal(1ull << 40, c.max_pool_bytes);
    assert_int_equal(250, c.probe_interval_ms);
    assert_int_equal(120000, c.drain_timeout_ms);
    assert_int_equal(0600, c.socket_mode);
    assert_int_equal(0700, c.dir_mode);
    assert_int_equal(LOG_DEBUG, c.log_level);
}

static void bad_values_name_the_place_and_the_bounds(void **state) {
    (void)state;
    assert_refused("[kvpoold]\n\nslots = 0\n", NULL, "conf:3: slots: 0 is not between 1 and 4096");
    assert_refused("[kvpoold]\nslots = 12x\n", NULL, "conf:2: slots: '12x' is not a number");
    assert_refused("[kvpoold]\nslots = -1\n", NULL, "'-1' is not a number");
    assert_refused("[kvpoold]\nslots = 99999999999999999999\n", NULL, "is not a number");
    assert_refused("[kvpoold]\nslots =\n", NULL, "conf:2: slots: '' is not a number");
    assert_refused("[kvpoold]\nmax_region_bytes = 4X\n", NULL, "'4X' is not a size");
    assert_refused("[kvpoold]\nmax_region_bytes = 99999999999T\n", NULL, "is not a size");
    assert_refused("[kvpoold]\nmax_region_bytes = 1\n", NULL, "is not between 4K and");
    assert_refused("[kvpoold]\ndrain_timeout = 5\n", NULL, "'5' is not a time");
    assert_refused("[kvpoold]\ndrain_timeout = 11m\n", NULL, "is not between 0ms and 600000ms");
    assert_refused("[kvpoold]\nsocket_mode = 0999\n", NULL, "is not an octal mode");
    assert_refused("[kvpoold]\nsocket_mode = 0060\n", NULL, "is not between 0600 and 0777");
    assert_refused("[kvpoold]\nlog_level = loud\n", NULL, "'loud' is not one of error, warn");
    assert_refused("[kvpoold]\nbackend = rocm\n", NULL, "'rocm' is not one of auto, cpu, cuda");
    assert_refused("[kvpoold]\ndir =\n", NULL, "dir: text of 0 bytes");
    assert_refused("", "--slots=0", "--slots: 0 is not between");
    assert_refused("", "--log-file=a\nb", "--log-file: control characters");
    assert_refused("", "--log-file=a;b", "--log-file: control characters and ';'");
    assert_refused("", "--log-file= a", "--log-file: text begins or ends with a blank");
}

static void bad_environment_is_named(void **state) {
    (void)state;
    setenv("KVPOOLD_SLOTS", "many", 1);
    assert_refused("", NULL, "environment KVPOOLD_SLOTS: 'many' is not a number");
    unsetenv("KVPOOLD_SLOTS");
    setenv("KVPOOLD_SLOT", "1", 1);
    assert_refused("", NULL, "environment KVPOOLD_SLOT: unknown setting");
    unsetenv("KVPOOLD_SLOT");
}

static void a_bad_command_line_is_named(void **state) {
    struct config c;
    (void)state;
    assert_refused("", "--speed=1", "--speed=1: unknown flag");
    assert_refused("", "--slots", "--slots: unknown flag, or one without its value");
    assert_refused("", "stray", "unexpected argument 'stray'");
    assert_int_equal(0, load(&c, "--check-config", "--print-config", NULL, NULL));
    assert_true(c.print_config && c.check_config);
}

static void a_malformed_file_is_refused_by_line(void **state) {
    char text[400];
    (void)state;
    assert_refused("slots = 1\n", NULL, "conf:1: slots: before any section");
    assert_refused("[kvpoold]\nslot = 1\n", NULL, "conf:2: slot: unknown setting");
    assert_refused("[kvpoold]\nslots = 70\nslots = 80\n", NULL, "conf:3: slots: given twice");
    assert_refused("[kvpoold]\nslots = 70\n[pool a]\n" POOL "[kvpoold]\nslots = 80\n", NULL,
                   "conf:11: slots: given twice");
    assert_refused("[kvpool]\n", NULL, "conf:1: unknown section [kvpool]");
    assert_refused("[kvpoold\nslots = 1\n", NULL, "conf:1: section without ']'");
    assert_refused("[\n", NULL, "conf:1: section without ']'");
    assert_refused("[kvpoold]\nslots\n", NULL, "conf:2: expected [section] or key = value");
    snprintf(text, sizeof text, "[kvpoold]\n\nlog_file = %0300d\n", 0);
    assert_refused(text, NULL, "conf:3: line of 311 bytes");
}

static void a_file_with_zero_bytes_is_refused(void **state) {
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    struct config c;
    (void)state;
    assert_int_equal(19, write(fd, "[kvpoold]\nslots\0=1\n", 19));
    close(fd);
    assert_int_not_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_error("conf:2: the file has a zero byte");
}

static void an_unreadable_file_is_refused_by_name(void **state) {
    struct config c;
    char *argv[] = {(char *)"kvpoold", (char *)"--config", (char *)"/nonexistent/conf"};
    char longest[600];
    (void)state;
    assert_int_equal(KVPOOL_E_SYSTEM, config_load(3, argv, &c, &err));
    assert_error("cannot read /nonexistent/conf: No such file or directory");
    argv[2] = dir.path;
    assert_int_equal(KVPOOL_E_SYSTEM, config_load(3, argv, &c, &err));
    assert_error("Is a directory");
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    argv[2] = longest;
    assert_int_equal(KVPOOL_E_INVAL, config_load(3, argv, &c, &err));
    assert_error("599 bytes, the limit is 255");
    if (geteuid() != 0) { // root reads everything
        assert_int_equal(0, chmod(file, 0));
        assert_int_equal(KVPOOL_E_SYSTEM, load(&c, NULL, NULL, NULL, NULL));
        assert_error("Permission denied");
    }
}

static void comments_blanks_and_a_byte_order_mark_are_allowed(void **state) {
    struct config c;
    (void)state;
    write_conf("\xEF\xBB\xBF# head\n; head\n  [kvpoold]  ; section\n\n   slots=77;\n"
               "\tmax_inflight :\t7 ; seven\r\nlog_file = /a#b\n");
    assert_int_not_equal(0, load(&c, NULL, NULL, NULL, NULL)); // "77;" has no blank before ';'
    assert_error("conf:5: slots: '77;'");
    write_conf("\xEF\xBB\xBF# head\n; head\n  [kvpoold]  ; section\n\n   slots=77\n"
               "\tmax_inflight :\t7 ; seven\r\nlog_file = /a#b\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_int_equal(77, c.slots);
    assert_int_equal(7, c.max_inflight);
    assert_string_equal("/a#b", c.log_file);
}

static void pools_are_read_from_their_sections(void **state) {
    struct config c;
    (void)state;
    write_conf("[pool main]\n" POOL "max_seqs = 10\nmax_seq_len = 64\n"
               "[pool  b ]\nlayers=1\nkv_heads=1\nhead_dim=8\npage_size=8\ndtype=fp32\nsize=1K\n");
    assert_int_not_equal(0, load(&c, NULL, NULL, NULL, NULL)); // "[pool  b ]": name ends in a blank
    write_conf("[pool main]\n" POOL "max_seqs = 10\nmax_seq_len = 64\n"
               "[pool  b]\nlayers=1\nkv_heads=1\nhead_dim=8\npage_size=8\ndtype=fp32\nsize=1025\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_int_equal(2, c.num_pools);
    assert_string_equal("main", c.pools[0].name);
    assert_int_equal(2, c.pools[0].layers);
    assert_int_equal(64, c.pools[0].head_dim);
    assert_int_equal(KVPOOL_FP16, c.pools[0].dtype);
    assert_int_equal(32, c.pools[0].num_pages);
    assert_int_equal(10, c.pools[0].max_seqs);
    assert_string_equal("b", c.pools[1].name);
    assert_int_equal(KVPOOL_FP32, c.pools[1].dtype);
    assert_int_equal(2, c.pools[1].num_pages); // pages of 2*8*8*4 = 512 bytes
    assert_true(c.pools[1].max_seqs > 0 && c.pools[1].max_seq_len == 16);
}

static void bad_pools_are_refused_by_name_and_line(void **state) {
    char text[2048] = "";
    (void)state;
    assert_refused("[pool a]\n" POOL "[pool a]\n" POOL, NULL,
                   "conf:8: pool a: there are two pools of this name");
    assert_refused("[pool a]\n" POOL "size = 1M\n", NULL,
                   "conf:1: pool a: num_pages 32 contradicts size, which makes 64 pages");
    assert_refused("[pool a]\nlayers=1\nkv_heads=1\nhead_dim=8\npage_size=8\ndtype=fp32\nsize=1\n",
                   NULL, "make 0 pages of 512 bytes");
    assert_refused("[pool a]\nlayers=1\nkv_heads=1\nhead_dim=8\npage_size=8\ndtype=fp32\n", NULL,
                   "conf:1: pool a: num_pages or size is missing");
    assert_refused("[pool a]\n", NULL, "conf:1: pool a: layers is missing");
    assert_refused("[pool a]\n" POOL "[pool b]\n", NULL, "conf:8: pool b: layers is missing");
    assert_refused("[pool a]\nlayer = 1\n", NULL, "conf:2: layer: unknown key of a pool");
    assert_refused("[pool a]\nlayers=1\nlayers=1\n", NULL, "conf:3: layers: given twice");
    assert_refused("[pool a]\nlayers = many\n", NULL, "conf:2: layers: 'many' is not a number");
    assert_refused("[pool a]\nlayers = 0\n", NULL, "layers: '0' is not a number from 1");
    assert_refused("[pool a]\nlayers = 4294967296\n", NULL, "is not a number from 1");
    assert_refused("[pool a]\nsize = big\n", NULL, "conf:2: size: 'big' is not a size");
    assert_refused("[pool a]\ndtype = int8\n", NULL, "dtype: 'int8' is not one of fp16, bf16");
    assert_refused("[pool ]\n", NULL, "unknown section");
    assert_refused("[pool aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]\n", NULL,
                   "a pool's name has 1 to 31 bytes");
    assert_refused("[pool a]\nlayers=1\nkv_heads=1\nhead_dim=7\npage_size=8\ndtype=fp32\n"
                   "num_pages=1\n",
                   NULL, "conf:1: pool a: head_dim");
    for (int i = 0; i <= CONFIG_MAX_POOLS; i++) {
        const size_t at = strlen(text);
        snprintf(text + at, sizeof text - at, "[pool p%d]\n" POOL, i);
    }
    assert_refused(text, NULL, "more than 16 pools");
}

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

static void contradictions_are_refused(void **state) {
    char dir_flag[160];
    struct config c;
    (void)state;
    assert_refused("[kvpoold]\nslots = 8\n", "--max-inflight=9",
                   "max_inflight (9, flag) is more than slots (8, file)");
    assert_refused("[kvpoold]\nslots = 8\n", NULL,
                   "max_inflight (64, default) is more than slots (8, file)");
    assert_refused("[kvpoold]\nbackend = cpu\ndevice = 0\n", NULL,
                   "device (file) contradicts backend cpu (file)");
    assert_refused("[kvpoold]\nbackend = cpu\n", "--device=1",
                   "device (flag) contradicts backend cpu (file)");
    // 2 * 2 * 2 * 16 * 64 * 2 * 32 pages = 524288 bytes each
    assert_refused("[kvpoold]\nmax_pool_bytes = 1M\n[pool a]\n" POOL "[pool b]\n" POOL
                   "[pool c]\n" POOL,
                   NULL, "pool c: needs 524288 bytes, which makes 1572864 of all pools");
    assert_refused("[pool a]\nlayers=512\nkv_heads=256\nhead_dim=576\npage_size=256\ndtype=fp32\n"
                   "num_pages=4294967295\n",
                   NULL, "pool a: ");
    snprintf(dir_flag, sizeof dir_flag, "--dir=/%0100d", 0);
    assert_refused("", dir_flag, "/kvpool.sock is 113 bytes, the limit is 107");
    snprintf(dir_flag, sizeof dir_flag, "--dir=/%094d", 0); // 95 + 12 = 107 fits
    write_conf("");
    assert_int_equal(0, load(&c, dir_flag, NULL, NULL, NULL));
    snprintf(dir_flag, sizeof dir_flag, "--dir=/%095d", 0);
    assert_refused("", dir_flag, "is 108 bytes, the limit is 107");
}

static void a_failed_load_writes_nothing(void **state) {
    struct config c, before;
    (void)state;
    memset(&c, 0x5a, sizeof c);
    memcpy(&before, &c, sizeof c);
    assert_int_not_equal(0, load(&c, "--slots=0", NULL, NULL, NULL));
    assert_memory_equal(&before, &c, sizeof c);
}

// Runs config_print or config_load in a child and returns what it wrote to stdout.
static void child_output(const struct config *print, const char *flag, char *ret, size_t size,
                         int *ret_status) {
    size_t n = 0;
    ssize_t got;
    int pipes[2];
    pid_t pid;
    assert_int_equal(0, pipe(pipes));
    fflush(stdout);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct config c;
        dup2(pipes[1], STDOUT_FILENO);
        close(pipes[0]);
        close(pipes[1]);
        if (print != NULL) {
            config_print(print);
        } else {
            load(&c, flag, NULL, NULL, NULL);
        }
        fflush(stdout);
        _exit(print != NULL ? 0 : 9);
    }
    close(pipes[1]);
    while (n + 1 < size && (got = read(pipes[0], ret + n, size - 1 - n)) > 0) {
        n += (size_t)got;
    }
    ret[n] = '\0';
    close(pipes[0]);
    assert_int_equal(pid, waitpid(pid, ret_status, 0));
}

static void what_is_printed_reads_back_to_the_same_settings(void **state) {
    static char text[16384], again[16384];
    struct config c, d;
    int status;
    (void)state;
    write_conf("[kvpoold]\nbackend = cpu\nslots = 128\nmax_region_bytes = 1536M\n"
               "socket_mode = 0600\nsession_grace = 2m\npolicy = s3fifo\nmax_pins = 7\n"
               "max_pages = 1000\nmax_page_tokens = 99999\ncredentials = /x\n"
               "[pool a]\n" POOL "[pool b]\n" POOL "policy = lru\nallow_uids = root, 7\n"
               "allow_uids = 8\nallow_gids = 9\nallow_identities = x, y,z\n"
               "[namespace a/one]\nuids = 1\nshare = team\nreserve = 10%\nlimit = 31\n"
               "weight = 1000\n[namespace other/two]\nidentities = q\ngids = root\nlimit = 5%\n"
               "[namespace a/default]\nreserve = 3\n"
               "[namespace a/many]\n" MANY_UIDS MANY_IDENTITIES);
    setenv("KVPOOLD_DRAIN_TIMEOUT", "1500ms", 1);
    assert_int_equal(0, load(&c, "--log-level=debug", "--dir", dir.path, "--print-config"));
    c.print_config = false;
    unsetenv("KVPOOLD_DRAIN_TIMEOUT");
    child_output(&c, NULL, text, sizeof text, &status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_non_null(strstr(text, "slots = 128                              ; file\n"));
    assert_non_null(strstr(text, "drain_timeout = 1500ms                   ; environment\n"));
    assert_non_null(strstr(text, "log_level = debug                        ; flag\n"));
    assert_non_null(strstr(text, "max_regions = 64                         ; default\n"));
    assert_non_null(strstr(text, "[pool a]\nlayers = 2 "));
    assert_non_null(strstr(text, "allow_uids = 0, 7, 8 "));
    assert_non_null(strstr(text, "\n[namespace a/one]\nuids = 1 "));
    assert_non_null(strstr(text, "\nreserve = 10% "));

    write_conf(text);
    assert_int_equal(0, load(&d, "--print-config", NULL, NULL, NULL));
    d.print_config = false;
    memcpy(d.source, c.source, sizeof d.source); // everything is "file" now
    assert_memory_equal(&c, &d, sizeof c);
    child_output(&d, NULL, again, sizeof again, &status);
    assert_string_equal(text, again);
}

static void every_printed_line_names_its_source(void **state) {
    static char text[16384];
    struct config c;
    char *line, *rest = text;
    int status, settings = 0;
    (void)state;
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    child_output(&c, NULL, text, sizeof text, &status);
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (strchr(line, '=') != NULL) {
            assert_non_null(strstr(line, " ; default"));
            settings++;
        }
    }
    assert_true(settings >= 20);
}

static void help_and_version_print_and_exit_0(void **state) {
    static char text[16384];
    int status;
    (void)state;
    child_output(NULL, "--help", text, sizeof text, &status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_non_null(strstr(text, "--drain-timeout=TIME"));
    assert_non_null(strstr(text, "(default 256)"));
    assert_non_null(strstr(text, "--check-config"));
    assert_non_null(strstr(text, "KVPOOLD_<NAME>"));
    child_output(NULL, "--version", text, sizeof text, &status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_string_equal("kvpoold 0.1.0\n", text);
}

static int reload(struct config *live, char *report, size_t size, const char *flag) {
    struct args args = make_args(flag, NULL, NULL, NULL);
    return config_reload(live, args.argc, args.argv, report, size, &err);
}

static void reload_applies_what_may_change_and_reports_the_rest(void **state) {
    struct config c;
    char report[1024];
    (void)state;
    write_conf("[kvpoold]\nslots = 100\nlog_level = info\n[pool a]\n" POOL
               "[namespace x/y]\nuids = 1\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    write_conf("[kvpoold]\nslots = 200\nlog_level = debug\nmax_inflight = 32\nmax_regions = 3\n"
               "max_region_bytes = 1M\ndrain_timeout = 1s\nprobe_interval = 0\nlog_file = /x\n"
               "session_grace = 0\npolicy = s3fifo\n"
               "[pool b]\n" POOL "[namespace x/y]\nuids = 2\n");
    assert_int_equal(0, reload(&c, report, sizeof report, NULL));
    assert_string_equal("slots: 100 -> 200 needs a restart\n"
                        "max_inflight: 64 -> 32\n"
                        "max_regions: 64 -> 3\n"
                        "max_region_bytes: 4G -> 1M\n"
                        "drain_timeout: 5000ms -> 1000ms\n"
                        "probe_interval: 5000ms -> 0ms\n"
                        "session_grace: 30000ms -> 0ms\n"
                        "policy: lru -> s3fifo needs a restart\n"
                        "log_level: info -> debug\n"
                        "log_file:  -> /x needs a restart\n"
                        "pools: other [pool] sections -> needs a restart\n"
                        "access: other access lists or [namespace] sections -> needs a restart\n",
                        report);
    assert_int_equal(0, c.session_grace_ms);
    assert_int_equal(CORE_LRU, c.policy);
    assert_int_equal(1, c.access.namespaces[0].members.uids[0]);
    assert_int_equal(100, c.slots);
    assert_int_equal(32, c.max_inflight);
    assert_int_equal(3, c.max_regions);
    assert_int_equal(1 << 20, c.max_region_bytes);
    assert_int_equal(1000, c.drain_timeout_ms);
    assert_int_equal(0, c.probe_interval_ms);
    assert_int_equal(LOG_DEBUG, c.log_level);
    assert_string_equal("", c.log_file);
    assert_string_equal("a", c.pools[0].name);
}

static void reload_without_a_change_reports_nothing(void **state) {
    struct config c;
    char report[256] = "x";
    (void)state;
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_int_equal(0, reload(&c, report, sizeof report, NULL));
    assert_string_equal("", report);
}

static void another_policy_of_a_pool_needs_a_restart(void **state) {
    struct config c;
    char report[256];
    (void)state;
    write_conf("[pool a]\n" POOL);
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    write_conf("[pool a]\n" POOL "policy = s3fifo\n");
    assert_int_equal(0, reload(&c, report, sizeof report, NULL));
    assert_string_equal("pools: other [pool] sections -> needs a restart\n", report);
    assert_int_equal(CORE_LRU, c.pools[0].policy);
}

static void a_flag_still_beats_the_file_on_reload(void **state) {
    struct config c;
    char report[256];
    (void)state;
    assert_int_equal(0, load(&c, "--max-inflight=5", NULL, NULL, NULL));
    write_conf("[kvpoold]\nmax_inflight = 6\n");
    assert_int_equal(0, reload(&c, report, sizeof report, "--max-inflight=5"));
    assert_string_equal("", report);
    assert_int_equal(5, c.max_inflight);
}

static void a_reload_that_fails_changes_nothing(void **state) {
    struct config c, before;
    char report[256];
    (void)state;
    write_conf("[kvpoold]\nslots = 100\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    before = c;
    write_conf("[kvpoold]\nmax_inflight = 3\nbogus = 1\n");
    assert_int_not_equal(0, reload(&c, report, sizeof report, NULL));
    assert_error("conf:3: bogus: unknown setting");
    assert_memory_equal(&before, &c, sizeof c);
    // Fine by itself, but not beside the slots that stay as they are.
    write_conf("[kvpoold]\nslots = 200\nmax_inflight = 150\n");
    assert_int_not_equal(0, reload(&c, report, sizeof report, NULL));
    assert_error("max_inflight (150, file) is more than slots (100, file)");
    assert_memory_equal(&before, &c, sizeof c);
}

static void a_short_report_has_whole_lines_only(void **state) {
    struct config c;
    char report[30];
    (void)state;
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    write_conf("[kvpoold]\nmax_inflight = 32\nmax_regions = 3\n");
    assert_int_equal(0, reload(&c, report, sizeof report, NULL));
    assert_string_equal("max_inflight: 64 -> 32\n", report);
    assert_int_equal(3, c.max_regions);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(without_any_source_every_setting_has_its_default),
        TEST(systemds_first_runtime_directory_is_the_default_dir),
        TEST(flag_beats_environment_beats_file_beats_default),
        TEST(the_file_is_named_by_flag_before_environment),
        TEST(sizes_times_and_modes_have_units),
        TEST(bad_values_name_the_place_and_the_bounds),
        TEST(bad_environment_is_named),
        TEST(a_bad_command_line_is_named),
        TEST(a_malformed_file_is_refused_by_line),
        TEST(a_file_with_zero_bytes_is_refused),
        TEST(an_unreadable_file_is_refused_by_name),
        TEST(comments_blanks_and_a_byte_order_mark_are_allowed),
        TEST(pools_are_read_from_their_sections),
        TEST(bad_pools_are_refused_by_name_and_line),
        TEST(policies_come_from_the_pool_then_the_setting),
        TEST(access_lists_and_namespaces_are_read),
        TEST(bad_access_lists_and_namespaces_are_refused),
        TEST(namespaces_that_contradict_each_other_are_refused),
        TEST(credentials_are_checked_with_the_configuration),
        TEST(contradictions_are_refused),
        TEST(a_failed_load_writes_nothing),
        TEST(what_is_printed_reads_back_to_the_same_settings),
        TEST(every_printed_line_names_its_source),
        TEST(help_and_version_print_and_exit_0),
        TEST(reload_applies_what_may_change_and_reports_the_rest),
        TEST(reload_without_a_change_reports_nothing),
        TEST(another_policy_of_a_pool_needs_a_restart),
        TEST(a_flag_still_beats_the_file_on_reload),
        TEST(a_reload_that_fails_changes_nothing),
        TEST(a_short_report_has_whole_lines_only),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
