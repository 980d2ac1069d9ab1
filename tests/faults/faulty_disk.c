/* Counts the operations that change files under one folder; makes the N-th fail, tear or end the process.

   Loaded with LD_PRELOAD, so that it sees Python, orbax and TensorStore alike. Does nothing until armed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL_ONCE, FAIL_FROM, TEAR, KILL_AFTER };

static char folder[PATH_MAX];
static size_t folder_length;
static atomic_long counted;
static long chosen;
static int mode = COUNT, error_number, log_file = -1;
static atomic_int armed;

/* From now on: operations under `path` count from 1; what `how` says happens to number `n`. log: names of all, or NULL. */
void faulty_disk_arm(const char *path, long n, int how, int error, const char *log) {
  snprintf(folder, sizeof folder, "%s", path);
  folder_length = strlen(folder);
  chosen = n;
  mode = how;
  error_number = error;
  if (log) log_file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  atomic_store(&counted, 0);
  atomic_store(&armed, 1);
}

long faulty_disk_count(void) { return atomic_load(&counted); }

#define REAL(type, name, ...)                                  \
  static type (*real)(__VA_ARGS__);                            \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int inside(const char *path) {
  return path && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static _Thread_local char path[PATH_MAX]; /* of the file that inside_fd was asked about last */

static int inside_fd(int fd) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return inside(path);
}

static int inside_at(int dir, const char *path) {
  if (!path) return 0;
  if (path[0] == '/' || dir == AT_FDCWD) return inside(path);
  return inside_fd(dir);
}

static const char *both(const char *from, const char *to) {
  static _Thread_local char text[2 * PATH_MAX];
  snprintf(text, sizeof text, "%s -> %s", from, to);
  return text;
}

/* 0: go on. -1: fail with errno set. 1: tear (write a part). Ends the process where that is asked for. */
static int step(const char *what, const char *where, int *after) {
  long n = atomic_fetch_add(&counted, 1) + 1;
  if (log_file >= 0) dprintf(log_file, "%ld %s %s\n", n, what, where);
  if (after) *after = 0;
  if (mode == FAIL_FROM && n >= chosen) {
    errno = error_number;
    return -1;
  }
  if (n != chosen) return 0;
  if (mode == KILL) _exit(9);
  if (mode == KILL_AFTER && after) *after = 1;
  if (mode == FAIL_ONCE) {
    errno = error_number;
    return -1;
  }
  return mode == TEAR;
}

#define PATH_OP(condition, what, where, failed, call)          \
  do {                                                         \
    int after = 0;                                             \
    if (atomic_load(&armed) && (condition)) {                  \
      if (step(what, where, &after) < 0) return failed;        \
    }                                                          \
    __typeof__(call) result = call;                            \
    if (after) _exit(9);                                       \
    return result;                                             \
  } while (0)

static int writes(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

#define OPEN(name)                                                                                   \
  int name(const char *path, int flags, ...) {                                                       \
    REAL(int, name, const char *, int, ...);                                                         \
    va_list list;                                                                                    \
    va_start(list, flags);                                                                           \
    mode_t bits = va_arg(list, mode_t);                                                              \
    va_end(list);                                                                                    \
    PATH_OP(writes(flags) && inside(path), "open", path, -1, real(path, flags, bits));               \
  }
#define OPENAT(name)                                                                                 \
  int name(int dir, const char *path, int flags, ...) {                                              \
    REAL(int, name, int, const char *, int, ...);                                                    \
    va_list list;                                                                                    \
    va_start(list, flags);                                                                           \
    mode_t bits = va_arg(list, mode_t);                                                              \
    va_end(list);                                                                                    \
    PATH_OP(writes(flags) && inside_at(dir, path), "open", path, -1, real(dir, path, flags, bits));  \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define WRITE(name, arguments, size, part, ...)                              \
  ssize_t name(int fd, __VA_ARGS__) {                                        \
    REAL(ssize_t, name, int, __VA_ARGS__);                                   \
    int after = 0;                                                           \
    if (atomic_load(&armed) && inside_fd(fd)) {                              \
      int verdict = step("write", path, &after);                             \
      if (verdict < 0) return -1;                                            \
      if (verdict > 0) {                                                     \
        part;                                                                \
        _exit(9);                                                            \
      }                                                                      \
    }                                                                        \
    ssize_t result = real arguments;                                         \
    if (after) _exit(9);                                                     \
    return result;                                                           \
  }
WRITE(write, (fd, data, size), size, (void)!real(fd, data, size / 2), const void *data, size_t size)
WRITE(pwrite, (fd, data, size, at), size, (void)!real(fd, data, size / 2, at), const void *data, size_t size, off_t at)
WRITE(pwrite64, (fd, data, size, at), size, (void)!real(fd, data, size / 2, at), const void *data, size_t size, off64_t at)
WRITE(writev, (fd, parts, count), count, (void)!real(fd, parts, count / 2), const struct iovec *parts, int count)

int fsync(int fd) {
  REAL(int, fsync, int);
  PATH_OP(inside_fd(fd), "fsync", path, -1, real(fd));
}
int fdatasync(int fd) {
  REAL(int, fdatasync, int);
  PATH_OP(inside_fd(fd), "fsync", path, -1, real(fd));
}
int ftruncate(int fd, off_t size) {
  REAL(int, ftruncate, int, off_t);
  PATH_OP(inside_fd(fd), "ftruncate", path, -1, real(fd, size));
}
int ftruncate64(int fd, off64_t size) {
  REAL(int, ftruncate64, int, off64_t);
  PATH_OP(inside_fd(fd), "ftruncate", path, -1, real(fd, size));
}
int rename(const char *from, const char *to) {
  REAL(int, rename, const char *, const char *);
  PATH_OP(inside(from) || inside(to), "rename", both(from, to), -1, real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(int, renameat, int, const char *, int, const char *);
  PATH_OP(inside_at(a, from) || inside_at(b, to), "rename", both(from, to), -1, real(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(int, renameat2, int, const char *, int, const char *, unsigned);
  PATH_OP(inside_at(a, from) || inside_at(b, to), "rename", both(from, to), -1, real(a, from, b, to, flags));
}
int link(const char *from, const char *to) {
  REAL(int, link, const char *, const char *);
  PATH_OP(inside(to), "link", to, -1, real(from, to));
}
int unlink(const char *path) {
  REAL(int, unlink, const char *);
  PATH_OP(inside(path), "unlink", path, -1, real(path));
}
int unlinkat(int dir, const char *path, int flags) {
  REAL(int, unlinkat, int, const char *, int);
  PATH_OP(inside_at(dir, path), "unlink", path, -1, real(dir, path, flags));
}
int rmdir(const char *path) {
  REAL(int, rmdir, const char *);
  PATH_OP(inside(path), "rmdir", path, -1, real(path));
}
int mkdir(const char *path, mode_t bits) {
  REAL(int, mkdir, const char *, mode_t);
  PATH_OP(inside(path), "mkdir", path, -1, real(path, bits));
}
int mkdirat(int dir, const char *path, mode_t bits) {
  REAL(int, mkdirat, int, const char *, mode_t);
  PATH_OP(inside_at(dir, path), "mkdir", path, -1, real(dir, path, bits));
}
