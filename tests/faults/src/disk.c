/* Preloaded into a process, makes the disk under one directory slow or full while a test says so.
 *
 * E2LLM_DISK: the directory. E2LLM_DISK_FAULTS: where the test says so: a file `slow` holds the milliseconds that each
 * write and fsync takes, a file `full` makes writes fail with ENOSPC. Each fault adds a byte to `slowed` or `refused`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

static int is_ours(int fd) {
    const char *root = getenv("E2LLM_DISK");
    char link[64], path[PATH_MAX];
    if (root == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = '\0';
    return strncmp(path, root, strlen(root)) == 0;
}

static int open_control(const char *name, int flags) {
    char path[PATH_MAX];
    const char *directory = getenv("E2LLM_DISK_FAULTS");
    if (directory == NULL) return -1;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return open(path, flags | O_CLOEXEC, 0600);
}

static void count(const char *name) {
    int fd = open_control(name, O_WRONLY | O_APPEND | O_CREAT);
    if (fd < 0) return;
    if (REAL(write)(fd, "1", 1) < 0) abort();
    close(fd);
}

static void wait_if_slow(void) {
    char text[32] = {0};
    int fd = open_control("slow", O_RDONLY);
    if (fd < 0) return;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    long millis = length > 0 ? atol(text) : 0;
    if (millis <= 0) return;
    count("slowed");
    struct timespec pause = {millis / 1000, millis % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

static int is_full(void) {
    int fd = open_control("full", O_RDONLY);
    if (fd < 0) return 0;
    close(fd);
    count("refused");
    return 1;
}

/* What happens before a write: nonzero if it is to fail. */
static int refuses(int fd) {
    int before = errno;
    if (!is_ours(fd)) {
        errno = before;
        return 0;
    }
    wait_if_slow();
    if (is_full()) {
        errno = ENOSPC;
        return 1;
    }
    errno = before;
    return 0;
}

static void before_sync(int fd) {
    int before = errno;
    if (is_ours(fd)) wait_if_slow();
    errno = before;
}

ssize_t write(int fd, const void *bytes, size_t size) {
    return refuses(fd) ? -1 : REAL(write)(fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *pieces, int number) {
    return refuses(fd) ? -1 : REAL(writev)(fd, pieces, number);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) {
    return refuses(fd) ? -1 : REAL(pwrite)(fd, bytes, size, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t offset) {
    return refuses(fd) ? -1 : REAL(pwrite64)(fd, bytes, size, offset);
}

int fsync(int fd) {
    before_sync(fd);
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    before_sync(fd);
    return REAL(fdatasync)(fd);
}
