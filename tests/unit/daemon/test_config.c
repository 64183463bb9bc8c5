// SPDX-License-Identifier: Apache-2.0
// test_config.c: one precedence, errors that name file, line and key, and a print that reads back.
#include "tests/unit/daemon/config_rig.h"

#define MANY_UIDS                                                                     \
    "uids = 4000000001, 4000000002, 4000000003, 4000000004, 4000000005, 4000000006\n" \
    "uids = 4000000007, 4000000008, 4000000009, 4000000010, 4000000011, 4000000012\n" \
    "uids = 4000000013\n"
#define MANY_IDENTITIES                                                               \
    "identities = a2345678901234567890123456789.1, b2345678901234567890123456789_1\n" \
    "identities = c234567890123456789012345678901, d234567890123456789012345678901, e\n"

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

static void pages_may_be_stored_otherwise_and_shared_otherwise(void **state) {
    struct config c;
    (void)state;
    write_conf("[pool a]\n" POOL "kv_dtype = fp8_e4m3\nexport = ipc\n"
               "[pool b]\n" POOL "kv_dtype = fp16\nexport = fd\n"
               "[pool c]\nlayers=1\nkv_heads=1\nhead_dim=8\npage_size=8\ndtype=fp32\n"
               "kv_dtype=fp8_e4m3\nsize=1K\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_int_equal(KVPOOL_FP8_E4M3, c.pools[0].kv_dtype);
    assert_int_equal(KVPOOL_EXPORT_IPC, c.pools[0].export);
    assert_int_equal(0, c.pools[1].kv_dtype); // the dtype itself
    assert_int_equal(KVPOOL_EXPORT_FD, c.pools[1].export);
    assert_int_equal(8, c.pools[2].num_pages); // pages of 2*8*8*1 = 128 bytes
    assert_int_equal(KVPOOL_EXPORT_FD, c.pools[2].export);
    assert_refused("[pool a]\nkv_dtype = int8\n", NULL,
                   "conf:2: kv_dtype: 'int8' is neither fp8_e4m3 nor the dtype");
    assert_refused("[pool a]\n" POOL "kv_dtype = bf16\n", NULL, "conf:1: pool a: kv_dtype 2");
    assert_refused("[pool a]\ndtype = fp8_e4m3\n", NULL, "dtype: 'fp8_e4m3' is not one of");
    assert_refused("[pool a]\nexport = tcp\n", NULL, "export: 'tcp' is not one of fd, ipc");
    assert_refused("[pool a]\nexport = fd\nexport = fd\n", NULL, "export: given twice");
    // 32 pages of 2 layers of 8 KiB; of fp8 half as much.
    write_conf("[kvpoold]\nmax_pool_bytes = 256K\n[pool a]\n" POOL "kv_dtype = fp8_e4m3\n");
    assert_int_equal(0, load(&c, NULL, NULL, NULL, NULL));
    assert_refused("[kvpoold]\nmax_pool_bytes = 256K\n[pool a]\n" POOL, NULL, "max_pool_bytes");
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
    write_conf("[pool a]\n" POOL "kv_dtype = fp8_e4m3\n");
    assert_int_equal(0, reload(&c, report, sizeof report, NULL));
    assert_string_equal("pools: other [pool] sections -> needs a restart\n", report);
    write_conf("[pool a]\n" POOL "export = ipc\n");
    assert_int_equal(0, reload(&c, report, sizeof report, NULL));
    assert_string_equal("pools: other [pool] sections -> needs a restart\n", report);
    assert_int_equal(0, c.pools[0].kv_dtype);
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

#define TEST(name) cmocka_unit_test_setup_teardown(name, config_setup, config_teardown)

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
        TEST(contradictions_are_refused),
        TEST(a_failed_load_writes_nothing),
        TEST(what_is_printed_reads_back_to_the_same_settings),
        TEST(every_printed_line_names_its_source),
        TEST(help_and_version_print_and_exit_0),
        TEST(reload_applies_what_may_change_and_reports_the_rest),
        TEST(reload_without_a_change_reports_nothing),
        TEST(another_policy_of_a_pool_needs_a_restart),
        TEST(pages_may_be_stored_otherwise_and_shared_otherwise),
        TEST(a_flag_still_beats_the_file_on_reload),
        TEST(a_reload_that_fails_changes_nothing),
        TEST(a_short_report_has_whole_lines_only),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
