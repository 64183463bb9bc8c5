// SPDX-License-Identifier: Apache-2.0
// test_http.c: /healthz and /metrics over real sockets, while the loop or the device thread advances
// or is stopped. The loop has a thread of its own, the test asks from outside.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/engine.h"
#include "daemon/http.h"
#include "tests/unit/daemon/httpget.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEADLINE_MS = 600, BEAT_MS = 50 };

// --- a backend whose submit waits --------------------------------------------------------------

struct backend {
    int unused;
};
struct backend_stream {
    int unused;
};
static struct backend backend;
static struct backend_stream stream;
static atomic_bool hold_device;
static sem_t device_go;

static int fake_open(const struct backend_config *config, struct backend **ret, struct err *err) {
    (void)config;
    (void)err;
    *ret = &backend;
    return 0;
}

static void fake_close(struct backend *b) {
    (void)b;
}

static int fake_submit(struct backend *b, struct backend_stream *s,
                       const struct backend_program *program, backend_done_fn done, void *arg,
                       struct err *err) {
    (void)b;
    (void)s;
    (void)program;
    (void)err;
    if (atomic_load(&hold_device)) {
        sem_wait(&device_go);
    }
    done(arg, 0);
    return 0;
}

static const struct backend_ops fake = {.name = "fake",
                                        .api_version = BACKEND_API_VERSION,
                                        .open = fake_open,
                                        .close = fake_close,
                                        .submit = fake_submit};

// --- the loop and its thread -------------------------------------------------------------------

enum command { BLOCK, SUBMIT, END };

static struct {
    uv_loop_t loop;
    uv_timer_t beat;
    uv_async_t async;
    pthread_t thread;
    struct engine *engine;
    struct health health;
    struct http *http;
    uint16_t port;
    atomic_int command;
    sem_t taken;     // a command was
    sem_t loop_go;   // ends BLOCK
    atomic_int jobs; // done
    bool closed;     // http_close came to its end
    bool big;        // metrics of a megabyte
    bool fail;       // metrics run out of memory
    atomic_int scrapes;
    struct engine_client *client;
    struct engine_job job[3];
    struct slice slices[3];
} t;

static void on_beat(uv_timer_t *timer) {
    (void)timer;
    health_beat(&t.health);
}

static void on_job(struct engine_job *job, int status) {
    (void)job;
    assert_int_equal(0, status);
    atomic_fetch_add(&t.jobs, 1);
}

static void metrics(void *arg, struct text *text) {
    assert_ptr_equal(arg, &t);
    atomic_fetch_add(&t.scrapes, 1);
    text_add(text, "kvpool_test %d\n", atomic_load(&t.scrapes));
    while (t.big && text->len < 1 << 20) {
        text_add(text, "kvpool_test{n=\"%zu\"} 1\n", text->len);
    }
    text->failed = text->failed || t.fail;
}

static void on_async(uv_async_t *async) {
    (void)async;
    switch ((enum command)atomic_load(&t.command)) {
    case BLOCK:
        sem_post(&t.taken);
        sem_wait(&t.loop_go);
        return;
    case SUBMIT:
        for (int i = 0; i < 3; i++) {
            t.slices[i] = (struct slice){.program = {.n = 1}, .estimate_ns = 1000};
            t.job[i] = (struct engine_job){.client = t.client,
                                           .stream = &stream,
                                           .slices = &t.slices[i],
                                           .num_slices = 1,
                                           .done = on_job};
            engine_submit(t.engine, &t.job[i]);
        }
        break;
    case END:
        t.closed = http_close(t.http);
        engine_stop(t.engine);
        engine_client_close(t.client);
        engine_close(t.engine);
        uv_close((uv_handle_t *)&t.beat, NULL);
        uv_close((uv_handle_t *)&t.async, NULL);
        break;
    }
    sem_post(&t.taken);
}

static void command(enum command what) {
    atomic_store(&t.command, what);
    uv_async_send(&t.async);
    sem_wait(&t.taken);
}

static uint64_t device(const void *arg) {
    struct engine_progress p;
    engine_progress(arg, &p);
    return p.busy ? (p.last_ns > p.busy_since_ns ? p.last_ns : p.busy_since_ns) : 0;
}

static uint64_t no_device(const void *arg) {
    (void)arg;
    return 0;
}

static void *run_loop(void *arg) {
    uv_run(arg, UV_RUN_DEFAULT);
    return NULL;
}

static int setup(void **state) {
    const struct backend_config config = {0};
    struct err err = {0};
    (void)state;
    memset(&t, 0, sizeof t);
    atomic_store(&hold_device, false);
    sem_init(&device_go, 0, 0);
    sem_init(&t.taken, 0, 0);
    sem_init(&t.loop_go, 0, 0);
    uv_loop_init(&t.loop);
    uv_timer_init(&t.loop, &t.beat);
    uv_async_init(&t.loop, &t.async, on_async);
    assert_int_equal(0, engine_open(&t.loop, &fake, &config, &t.engine, &err));
    assert_int_equal(0, engine_client_open(t.engine, 1, &t.client, &err));
    health_init(&t.health, DEADLINE_MS, device, t.engine);
    if (http_open(&t.loop, "127.0.0.1:0", false, &t.health, metrics, &t, &t.http, &err) != 0) {
        fail_msg("http_open: %s", err.text);
    }
    t.port = http_port(t.http);
    assert_int_not_equal(0, t.port);
    uv_timer_start(&t.beat, on_beat, 0, BEAT_MS);
    return pthread_create(&t.thread, NULL, run_loop, &t.loop);
}

static int teardown(void **state) {
    (void)state;
    command(END);
    pthread_join(t.thread, NULL);
    assert_int_equal(0, uv_loop_close(&t.loop));
    return t.closed ? 0 : -1;
}

// Asks /healthz until it answers `status`, for up to `ms`; the last body.
static const char *wait_health(int status, unsigned ms) {
    static char body[HEALTH_REASON];
    struct http_reply reply;
    for (unsigned waited = 0;; waited += 20) {
        http_request(t.port, "GET", "/healthz", &reply);
        snprintf(body, sizeof body, "%s", reply.body != NULL ? reply.body : "");
        free(reply.body);
        if (reply.status == status) {
            assert_true(reply.took_s < 1.0);
            return body;
        }
        if (waited >= ms) {
            fail_msg("/healthz is still %d after %u ms: %s", reply.status, ms, body);
        }
        usleep(20000);
    }
}

// --- tests -------------------------------------------------------------------------------------

static void an_idle_daemon_is_healthy(void **state) {
    (void)state;
    usleep(2 * DEADLINE_MS * 1000);
    assert_string_equal("ok\n", wait_health(200, 0));
}

static void a_loop_that_stands_still_is_red_until_it_goes_on(void **state) {
    (void)state;
    assert_int_equal(200, http_get(t.port, "/healthz"));
    command(BLOCK);
    assert_int_equal(200, http_get(t.port, "/healthz")); // not yet
    assert_non_null(strstr(wait_health(503, 5 * DEADLINE_MS), "the loop has not advanced"));
    sem_post(&t.loop_go);
    assert_string_equal("ok\n", wait_health(200, 5 * DEADLINE_MS));
}

static void a_device_that_stands_still_is_red_until_it_goes_on(void **state) {
    (void)state;
    atomic_store(&hold_device, true);
    command(SUBMIT);
    assert_int_equal(200, http_get(t.port, "/healthz"));
    assert_non_null(
        strstr(wait_health(503, 5 * DEADLINE_MS), "the device thread has not advanced"));
    assert_int_equal(200, http_get(t.port, "/metrics")); // the loop goes on
    sem_post(&device_go);                                // one of three: progress
    assert_string_equal("ok\n", wait_health(200, DEADLINE_MS));
    wait_health(503, 5 * DEADLINE_MS); // and none again
    sem_post(&device_go);
    sem_post(&device_go);
    assert_string_equal("ok\n", wait_health(200, DEADLINE_MS));
    for (int i = 0; i < 100 && atomic_load(&t.jobs) < 3; i++) {
        usleep(10000);
    }
    assert_int_equal(3, atomic_load(&t.jobs));
}

static void metrics_come_from_the_loop(void **state) {
    struct http_reply reply;
    (void)state;
    http_request(t.port, "GET", "/metrics", &reply);
    assert_int_equal(200, reply.status);
    assert_string_equal("kvpool_test 1\n", reply.body);
    assert_int_equal(14, reply.length);
    assert_non_null(strstr(reply.head, "Content-Type: " HTTP_TYPE_METRICS));
    free(reply.body);
    for (int i = 2; i < 30; i++) { // more than there are scrapes: each is given back
        assert_int_equal(200, http_get(t.port, "/metrics"));
        assert_int_equal(i, atomic_load(&t.scrapes));
    }
}

static void a_megabyte_of_metrics_arrives_whole(void **state) {
    struct http_reply reply;
    (void)state;
    t.big = true;
    http_request(t.port, "GET", "/metrics", &reply);
    assert_int_equal(200, reply.status);
    assert_in_range(reply.len, 1 << 20, (1 << 20) + 100);
    assert_int_equal(reply.len, reply.length);
    free(reply.body);
}

static void metrics_without_memory_are_unavailable(void **state) {
    struct http_reply reply;
    (void)state;
    t.fail = true;
    http_request(t.port, "GET", "/metrics", &reply);
    assert_int_equal(503, reply.status);
    assert_string_equal("out of memory\n", reply.body);
    free(reply.body);
}

static void head_has_no_body_and_other_methods_and_paths_are_refused(void **state) {
    static const char *const methods[] = {"POST", "PUT", "DELETE"};
    static const char *const paths[] = {"/", "/metrics/x", "/healthzz", "/../etc/passwd"};
    struct http_reply reply;
    (void)state;
    http_request(t.port, "HEAD", "/metrics", &reply);
    assert_int_equal(200, reply.status);
    assert_int_equal(0, reply.len);
    assert_int_equal(14, reply.length);
    free(reply.body);
    http_request(t.port, "HEAD", "/healthz", &reply);
    assert_int_equal(200, reply.status);
    assert_int_equal(0, reply.len);
    free(reply.body);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        http_request(t.port, methods[i], "/metrics", &reply);
        assert_int_equal(405, reply.status);
        free(reply.body);
    }
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        assert_int_equal(404, http_get(t.port, paths[i]));
    }
    assert_int_equal(1, atomic_load(&t.scrapes));
}

static void *scrape(void *arg) {
    http_request(t.port, "GET", "/metrics", arg);
    return NULL;
}

static void scrapes_of_a_loop_that_stands_still_end_with_503(void **state) {
    struct http_reply replies[12];
    pthread_t threads[12];
    int late = 0, at_once = 0;
    (void)state;
    command(BLOCK);
    for (int i = 0; i < 12; i++) {
        pthread_create(&threads[i], NULL, scrape, &replies[i]);
    }
    for (int i = 0; i < 12; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(503, replies[i].status);
        if (strcmp(replies[i].body, "the loop does not answer\n") == 0) {
            assert_true(replies[i].took_s > 1.5 && replies[i].took_s < 6.0);
            late++;
        } else {
            assert_string_equal("too many requests at once\n", replies[i].body);
            assert_true(replies[i].took_s < 1.5);
            at_once++;
        }
        free(replies[i].body);
    }
    assert_int_equal(8, late);
    assert_int_equal(4, at_once);
    sem_post(&t.loop_go);
    wait_health(200, 5 * DEADLINE_MS);
    assert_int_equal(200, http_get(t.port, "/metrics")); // the late ones are given back
    assert_int_equal(1, atomic_load(&t.scrapes));        // and were not formatted
}

static void the_end_answers_who_waits(void **state) {
    struct http_reply reply;
    pthread_t thread;
    (void)state;
    command(BLOCK);
    pthread_create(&thread, NULL, scrape, &reply);
    usleep(300000);
    atomic_store(&t.command, END);
    uv_async_send(&t.async);
    sem_post(&t.loop_go); // the loop goes on: the inbox, or the end first
    sem_wait(&t.taken);
    pthread_join(thread, NULL);
    free(reply.body);
    pthread_join(t.thread, NULL);
    assert_true(t.closed);
    assert_int_equal(0, uv_loop_close(&t.loop));
    assert_int_equal(0, http_get(t.port, "/healthz")); // nobody listens
}

static void only_loopback_is_listened_at_unless_the_world_may_look(void **state) {
    static const char *const loopback[] = {"", "127.0.0.1:9470", "127.1.2.3:0", "[::1]:9470"};
    static const char *const public[] = {"0.0.0.0:9470", "192.0.2.1:80", "[::]:9470",
                                         "[2001:db8::1]:1"};
    static const char *const bad[] = {"9470",       "localhost:9470", "127.0.0.1",
                                      "127.0.0.1:", "127.0.0.1:x",    "127.0.0.1:65536",
                                      "::1:9470",   "[::1]",          "127.0.0.1:1 ",
                                      ":9470",      "[127.0.0.1]:1"};
    struct err err;
    (void)state;
    for (size_t i = 0; i < sizeof loopback / sizeof *loopback; i++) {
        assert_int_equal(0, http_address_check(loopback[i], false, &err));
    }
    for (size_t i = 0; i < sizeof public / sizeof *public; i++) {
        assert_int_equal(KVPOOL_E_PERM, http_address_check(public[i], false, &err));
        assert_non_null(strstr(err.text, "http_public"));
        assert_int_equal(0, http_address_check(public[i], true, &err));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(KVPOOL_E_INVAL, http_address_check(bad[i], true, &err));
    }
}

static void an_address_in_use_is_an_error(void **state) {
    struct sockaddr_in addr = {.sin_family = AF_INET};
    socklen_t len = sizeof addr;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct http *http = NULL;
    struct health health;
    struct err err;
    char address[32];
    uv_loop_t loop;
    (void)state;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(0, bind(fd, (struct sockaddr *)&addr, len));
    assert_int_equal(0, listen(fd, 1));
    assert_int_equal(0, getsockname(fd, (struct sockaddr *)&addr, &len));
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(addr.sin_port));
    health_init(&health, DEADLINE_MS, no_device, NULL);
    uv_loop_init(&loop);
    assert_int_equal(KVPOOL_E_SYSTEM,
                     http_open(&loop, address, false, &health, metrics, &t, &http, &err));
    assert_non_null(strstr(err.text, address));
    assert_int_equal(KVPOOL_E_PERM,
                     http_open(&loop, "0.0.0.0:0", false, &health, metrics, &t, &http, &err));
    assert_null(http);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(0, uv_loop_close(&loop));
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_idle_daemon_is_healthy, setup, teardown),
        cmocka_unit_test_setup_teardown(a_loop_that_stands_still_is_red_until_it_goes_on, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_device_that_stands_still_is_red_until_it_goes_on, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(metrics_come_from_the_loop, setup, teardown),
        cmocka_unit_test_setup_teardown(a_megabyte_of_metrics_arrives_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(metrics_without_memory_are_unavailable, setup, teardown),
        cmocka_unit_test_setup_teardown(head_has_no_body_and_other_methods_and_paths_are_refused,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(scrapes_of_a_loop_that_stands_still_end_with_503, setup,
                                        teardown),
        cmocka_unit_test_setup(the_end_answers_who_waits, setup),
        cmocka_unit_test(only_loopback_is_listened_at_unless_the_world_may_look),
        cmocka_unit_test(an_address_in_use_is_an_error),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
