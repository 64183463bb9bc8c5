// SPDX-License-Identifier: Apache-2.0
// doctor_daemon.c: what `kvpool doctor` checks of the daemon: its directory, lock and sockets, the
// connection, versions, health.
// Thread: main.
#include "client/cmd/doctor.h"
#include "client/cmd/format.h"
#include "proto/proto.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LOCK_FILE "kvpoold.lock"
#define ADVICE_MAX 512

static const char start_advice[] =
    "start one: kvpoold --dir DIR, or systemctl start kvpoold@0; or name the right directory with "
    "--dir or KVPOOL_DIR";

struct names { // of a user and a group, numbers where there is no name
    char user[FORMAT_SIZE], group[FORMAT_SIZE];
};

static struct names names_of(uid_t uid, gid_t gid) {
    struct names n;
    const struct passwd *pw = getpwuid(uid); // NOLINT(concurrency-mt-unsafe): one thread
    const struct group *gr = getgrgid(gid);  // NOLINT(concurrency-mt-unsafe): one thread
    if (pw != NULL) {
        snprintf(n.user, sizeof(n.user), "%.31s", pw->pw_name);
    } else {
        snprintf(n.user, sizeof(n.user), "%u", uid);
    }
    if (gr != NULL) {
        snprintf(n.group, sizeof(n.group), "%.31s", gr->gr_name);
    } else {
        snprintf(n.group, sizeof(n.group), "%u", gid);
    }
    return n;
}

// The group's database entry lists this user, although the process does not have the group.
static bool member_since_login(gid_t gid) {
    const struct names me = names_of(geteuid(), getegid());
    const struct group *gr = getgrgid(gid); // NOLINT(concurrency-mt-unsafe): one thread
    for (char **member = gr == NULL ? NULL : gr->gr_mem; member != NULL && *member != NULL;
         member++) {
        if (strcmp(*member, me.user) == 0) {
            return true;
        }
    }
    return false;
}

static void report_no_access(struct doctor *d, const char *check, const char *path,
                             const struct stat *st) {
    const struct names owner = names_of(st->st_uid, st->st_gid);
    const struct names me = names_of(geteuid(), getegid());
    char advice[ADVICE_MAX];
    if (member_since_login(st->st_gid)) {
        snprintf(advice, sizeof(advice),
                 "%s is in group %s, but not yet in this login: log in again, or newgrp %s",
                 me.user, owner.group, owner.group);
    } else {
        snprintf(advice, sizeof(advice),
                 "join its group: sudo usermod -aG %s %s, then log in again", owner.group, me.user);
    }
    doctor_report(d, DOCTOR_FAIL, check, advice, "%s has mode %04o %s:%s, which keeps user %s out",
                  path, st->st_mode & 07777u, owner.user, owner.group, me.user);
}

bool doctor_directory(struct doctor *d, const char *dir) {
    const size_t room = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;
    const size_t need = strlen(dir) + 1 + strlen(PROTO_CONTROL_SOCKET);
    struct stat st;
    if (need > room) {
        doctor_report(d, DOCTOR_FAIL, "directory", "choose a shorter one",
                      "the socket's path would have %zu bytes, %zu is the most a socket can have",
                      need, room);
        return false;
    }
    if (stat(dir, &st) != 0) {
        doctor_report(d, DOCTOR_FAIL, "directory",
                      errno == EACCES ? "a parent directory keeps this user out: see namei -l DIR"
                                      : start_advice,
                      "%s: %s", dir, strerror(errno));
        return false;
    }
    if (!S_ISDIR(st.st_mode)) {
        doctor_report(d, DOCTOR_FAIL, "directory", "--dir wants the directory of the sockets",
                      "%s is not a directory", dir);
        return false;
    }
    if (faccessat(AT_FDCWD, dir, X_OK, AT_EACCESS) != 0) {
        report_no_access(d, "directory", dir, &st);
        return false;
    }
    const struct names owner = names_of(st.st_uid, st.st_gid);
    if ((st.st_mode & (S_IWOTH | S_IXOTH)) != 0) {
        doctor_report(d, DOCTOR_WARN, "directory",
                      "strangers can reach the sockets: chmod 0750, with a group for its users",
                      "%s has mode %04o %s:%s", dir, st.st_mode & 07777u, owner.user, owner.group);
        return true;
    }
    doctor_report(d, DOCTOR_OK, "directory", NULL, "%s, mode %04o %s:%s", dir, st.st_mode & 07777u,
                  owner.user, owner.group);
    return true;
}

// Process that holds a flock on the file of this inode, 0: none. Reading /proc/locks takes no lock,
// so a daemon that starts at this moment is not kept out.
static long flock_holder(ino_t inode, bool *ret_known) {
    char line[256];
    long holder = 0;
    FILE *f = fopen("/proc/locks", "re");
    *ret_known = f != NULL;
    while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
        char kind[16];
        unsigned long long found = 0;
        long pid = 0;
        // 1: FLOCK  ADVISORY  WRITE 1234 00:2d:56789 0 EOF    ("->" marks one that waits)
        // NOLINTNEXTLINE(cert-err34-c): the kernel's numbers are in range
        int got = sscanf(line, "%*d: %15s %*s %*s %ld %*x:%*x:%llu", kind, &pid, &found);
        if (got == 3 && strstr(line, "->") == NULL && strcmp(kind, "FLOCK") == 0 &&
            found == (unsigned long long)inode) {
            holder = pid == 0 ? -1 : pid; // 0: a process outside this PID namespace
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return holder;
}

bool doctor_lock(struct doctor *d, const char *dir) {
    char path[ADVICE_MAX];
    struct stat st;
    bool known = false;
    snprintf(path, sizeof(path), "%s/%s", dir, LOCK_FILE);
    if (stat(path, &st) != 0) {
        doctor_report(d, DOCTOR_FAIL, "daemon", start_advice, "none has ever run in %s (no %s)",
                      dir, LOCK_FILE);
        return false;
    }
    long holder = flock_holder(st.st_ino, &known);
    if (!known) {
        doctor_report(d, DOCTOR_WARN, "daemon", "mount /proc to see it",
                      "cannot tell whether %s is held", path);
        return true;
    }
    if (holder == 0) {
        doctor_report(d, DOCTOR_FAIL, "daemon", start_advice, "none runs in %s (nobody holds %s)",
                      dir, LOCK_FILE);
        return false;
    }
    if (holder < 0) {
        doctor_report(d, DOCTOR_WARN, "daemon",
                      "workers and daemon must see each other's processes: share the PID namespace "
                      "(--pid=host), else a dead worker's pages come back late",
                      "it runs outside this PID namespace (a container?)");
        return true;
    }
    doctor_report(d, DOCTOR_OK, "daemon", NULL, "process %ld runs in %s", holder, dir);
    return true;
}

// One socket's file: there, a socket, and open to this user.
static bool check_socket_file(struct doctor *d, const char *dir, const char *name) {
    char path[ADVICE_MAX];
    struct stat st;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (stat(path, &st) != 0) {
        doctor_report(d, DOCTOR_FAIL, "socket",
                      "a daemon is starting or was stopped half-way: look at its log, restart it",
                      "%s: %s", path, strerror(errno));
        return false;
    }
    if (!S_ISSOCK(st.st_mode)) {
        doctor_report(d, DOCTOR_FAIL, "socket", "remove it and restart the daemon",
                      "%s is not a socket", path);
        return false;
    }
    if (faccessat(AT_FDCWD, path, R_OK | W_OK, AT_EACCESS) != 0) {
        report_no_access(d, "socket", path, &st);
        return false;
    }
    doctor_report(d, DOCTOR_OK, "socket", NULL, "%s, mode %04o", path, st.st_mode & 07777u);
    return true;
}

// The seqpacket socket takes a connection. (The NNG one is tried through the library.)
static bool check_accepts(struct doctor *d, const char *dir) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    bool good = false;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(address.sun_path, sizeof(address.sun_path), "%.*s/%s",
             (int)(sizeof(address.sun_path) - sizeof(PROTO_FD_SOCKET) - 1), dir, PROTO_FD_SOCKET);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0) {
        good = true;
        doctor_report(d, DOCTOR_OK, "connection", NULL, "%s accepts", address.sun_path);
    } else if (errno == EAGAIN) {
        doctor_report(d, DOCTOR_FAIL, "connection",
                      "the daemon does not accept: look at its log, restart it when it is stuck",
                      "%s: its queue of connections is full", address.sun_path);
    } else {
        doctor_report(d, DOCTOR_FAIL, "connection",
                      errno == ECONNREFUSED ? start_advice : "look at the daemon's log", "%s: %s",
                      address.sun_path, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    return good;
}

bool doctor_sockets(struct doctor *d, const char *dir) {
    bool good = check_socket_file(d, dir, PROTO_CONTROL_SOCKET);
    good = check_socket_file(d, dir, PROTO_FD_SOCKET) && good;
    return good && check_accepts(d, dir);
}

// The first two numbers of "major.minor.patch".
static bool version_parse(const char *text, unsigned long ret[2]) {
    char *end = NULL;
    ret[0] = strtoul(text, &end, 10);
    if (end == text || *end != '.') {
        return false;
    }
    text = end + 1;
    ret[1] = strtoul(text, &end, 10);
    return end != text;
}

void doctor_versions(struct doctor *d, const char *library, const char *daemon) {
    unsigned long ours[2] = {0};
    unsigned long theirs[2] = {0};
    if (!version_parse(library, ours) || !version_parse(daemon, theirs)) {
        doctor_report(d, DOCTOR_WARN, "versions", "install library and daemon of one version",
                      "cannot compare library '%s' and daemon '%s'", library, daemon);
    } else if (ours[0] != theirs[0] || ours[1] != theirs[1]) {
        doctor_report(d, DOCTOR_WARN, "versions", "install library and daemon of one version",
                      "library %s, daemon %s", library, daemon);
    } else {
        doctor_report(d, DOCTOR_OK, "versions", NULL, "library %s, daemon %s", library, daemon);
    }
}

static void check_user(struct doctor *d, uint32_t daemon_pid) {
    char path[64];
    struct stat st;
    const struct names me = names_of(geteuid(), getegid());
    snprintf(path, sizeof(path), "/proc/%" PRIu32, daemon_pid);
    if (stat(path, &st) != 0) {
        doctor_report(d, DOCTOR_WARN, "user",
                      "workers and daemon must see each other's processes: share the PID namespace "
                      "(--pid=host)",
                      "the daemon's process %" PRIu32 " is not visible here", daemon_pid);
        return;
    }
    const struct names daemon = names_of(st.st_uid, st.st_gid);
    doctor_report(d, DOCTOR_OK, "user", NULL, "%s:%s here, the daemon %s:%s%s", me.user, me.group,
                  daemon.user, daemon.group,
                  st.st_uid == geteuid() ? "" : " (under CUDA MPS both must be one user)");
}

static void check_latency(struct doctor *d, kvpool_client *client) {
    double us[50];
    char text[2][FORMAT_SIZE];
    size_t n = 0;
    for (; n < sizeof(us) / sizeof(us[0]); n++) {
        uint64_t ns = 0;
        if (kvpool_ping(client, &ns) != KVPOOL_OK) {
            char message[256];
            doctor_report(d, DOCTOR_FAIL, "ping", "look at the daemon's log",
                          "the daemon does not answer: %s",
                          kvpool_last_error(client, message, sizeof(message)));
            return;
        }
        us[n] = (double)ns / 1e3;
    }
    const struct summary s = summarize(us, n);
    if (s.p50 > 5000) {
        doctor_report(d, DOCTOR_WARN, "ping", "the machine is overloaded, or the daemon's loop is",
                      "median %s, worst %s", format_us(s.p50, text[0]), format_us(s.max, text[1]));
    } else {
        doctor_report(d, DOCTOR_OK, "ping", NULL, "median %s, worst %s", format_us(s.p50, text[0]),
                      format_us(s.max, text[1]));
    }
}

static void check_health(struct doctor *d, kvpool_client *client) {
    kvpool_stats s = {.size = sizeof(s)};
    char message[256];
    if (kvpool_get_stats(client, &s) != KVPOOL_OK) {
        doctor_report(d, DOCTOR_FAIL, "health", "look at the daemon's log", "no figures: %s",
                      kvpool_last_error(client, message, sizeof(message)));
        return;
    }
    if (s.leaked_pipes != 0 || s.relistens != 0) {
        doctor_report(d, DOCTOR_WARN, "health",
                      "known of NNG before 1.10, which the daemon survives; use 1.10 or newer",
                      "%" PRIu64 " connections leaked, listener re-created %" PRIu64 " times",
                      s.leaked_pipes, s.relistens);
    } else {
        doctor_report(d, DOCTOR_OK, "health", NULL,
                      "%" PRIu32 " clients, %" PRIu64 " requests, %" PRIu64 " errors", s.clients,
                      s.requests, s.errors);
    }
    if (s.pools == 0) {
        doctor_report(d, DOCTOR_WARN, "pools",
                      "a worker creates its own with kvpool_pool_create; or: kvpool pool create",
                      "there is none yet");
    } else {
        doctor_report(d, DOCTOR_OK, "pools", NULL, "%" PRIu32, s.pools);
    }
}

// How tensors get from a worker to the daemon: host memory both map, or device memory by descriptor.
static void check_regions(struct doctor *d, kvpool_client *client, const char *backend) {
    kvpool_region_args args = KVPOOL_REGION_ARGS_INIT;
    kvpool_region_handle handle = {.size = sizeof(handle)};
    kvpool_region *region = NULL;
    char message[256];
    void *ptr = NULL;
    args.bytes = 1;
    kvpool_status status = kvpool_region_alloc(client, &args, &region);
    if (status == KVPOOL_OK) {
        status = kvpool_region_export(region, &handle);
    }
    if (status != KVPOOL_OK) {
        doctor_report(d, DOCTOR_WARN, "regions", "install library and daemon of one version",
                      "no device memory of backend %s: %s", backend,
                      kvpool_last_error(client, message, sizeof(message)));
    } else if (handle.place == KVPOOL_PLACE_HOST) {
        doctor_report(d, DOCTOR_OK, "regions", NULL,
                      "backend %s computes in host memory: regions are mapped by descriptor",
                      backend);
    } else if (kvpool_region_device_ptr(region, &ptr) == KVPOOL_E_UNSUPPORTED) {
        doctor_report(d, DOCTOR_WARN, "regions",
                      "install the CUDA driver where workers run, or use host regions",
                      "backend %s has device memory, but here: %s", backend,
                      kvpool_last_error(client, message, sizeof(message)));
    } else { // without a context this process cannot map it, and need not
        doctor_report(d, DOCTOR_OK, "regions", NULL,
                      "backend %s: device memory by descriptor (fd) or CUDA IPC handle, a worker's "
                      "own by IPC handle",
                      backend);
    }
    kvpool_region_free(region);
}

static const char *connect_advice(kvpool_status status) {
    switch (status) {
    case KVPOOL_E_VERSION:
        return "install library and daemon of one version";
    case KVPOOL_E_TIMEOUT:
        return "the daemon accepts and does not answer: look at its log, restart it";
    case KVPOOL_E_LIMIT:
    case KVPOOL_E_AGAIN:
        return "too many clients: end some (kvpool clients), or raise the daemon's limits";
    case KVPOOL_E_SHUTDOWN:
        return "it is being stopped: try again";
    default:
        return "look at the daemon's log (journalctl -u kvpoold@0)";
    }
}

static bool check_session(struct doctor *d, const char *dir, uint32_t timeout_ms) {
    kvpool_connect_args args = KVPOOL_CONNECT_ARGS_INIT;
    kvpool_daemon_info info = {.size = sizeof(info)};
    kvpool_client *client = NULL;
    char message[256];
    args.dir = dir;
    args.name = "kvpool-doctor";
    args.timeout_ms = timeout_ms;
    kvpool_status status = kvpool_connect(&args, &client);
    if (status != KVPOOL_OK) {
        doctor_report(d, DOCTOR_FAIL, "session", connect_advice(status), "%s: %s",
                      kvpool_strerror(status), kvpool_last_error(NULL, message, sizeof(message)));
        return false;
    }
    status = kvpool_daemon(client, &info);
    if (status != KVPOOL_OK) {
        doctor_report(d, DOCTOR_FAIL, "session", connect_advice(status), "%s",
                      kvpool_last_error(client, message, sizeof(message)));
    } else {
        doctor_report(d, DOCTOR_OK, "session", NULL,
                      "backend %s, protocol %" PRIu32 ", at most %" PRIu32
                      " sequences a batch, %" PRIu32 " requests in flight",
                      info.backend, info.protocol, info.max_batch, info.max_inflight);
        doctor_versions(d, kvpool_version(), info.version);
        check_regions(d, client, info.backend);
        check_user(d, info.pid);
        check_latency(d, client);
        check_health(d, client);
    }
    kvpool_close(client);
    return status == KVPOOL_OK;
}

bool doctor_daemon(struct doctor *d, const char *dir, uint32_t timeout_ms) {
    return doctor_directory(d, dir) && doctor_lock(d, dir) && doctor_sockets(d, dir) &&
           check_session(d, dir, timeout_ms);
}
