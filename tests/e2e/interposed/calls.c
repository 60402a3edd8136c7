// Stands between a program and the C library (LD_PRELOAD), for what no test can do to a disk or to a clock.
//
// Changes below the folder DISK_FOLDER are numbered from 1: opens that write, writes, syncs, cuts, renames, new folders, removals.
//   DISK_TRACE  a file that gets a line for each: number, call, path below the folder
//   DISK_FROM   from this number on they meet DISK_FAULT:
//     full       what needs room fails with ENOSPC; a write first takes half of its bytes
//     read-only  everything fails with EROFS
//     kill       the process is killed; a write first takes half of its bytes
// CLOCK_JUMPS  a file that gets a byte for each look at the time of day, which then jumps by days and years, also to before 1970.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

enum { PATH = 4096 };
static atomic_long changes;

static void note(const char *file, const char *text, size_t length) {
  long fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT, 0600);
  syscall(SYS_write, fd, text, length);
  syscall(SYS_close, fd);
}

// The part of a path below the folder; NULL outside of it.
static const char *below(const char *path) {
  const char *folder = getenv("DISK_FOLDER");
  size_t length = folder ? strlen(folder) : 0;
  if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/')) return NULL;
  return path[length] ? path + length + 1 : ".";
}

// The path behind an open file.
static const char *behind(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH - 1);
  path[length < 0 ? 0 : length] = 0;
  return path;
}

// The path of a name in an open folder.
static const char *inside(int folder, const char *name, char *path) {
  if (folder == AT_FDCWD || *name == '/') return name;
  behind(folder, path);
  size_t length = strlen(path);
  snprintf(path + length, PATH - length, "/%s", name);
  return path;
}

enum Met { NOTHING, FULL, READ_ONLY, KILL };

// Numbers a change, and says what it meets.
static enum Met meets(const char *call, const char *path) {
  const char *name = below(path), *trace = getenv("DISK_TRACE"), *from = getenv("DISK_FROM"), *fault = getenv("DISK_FAULT");
  if (!name) return NOTHING;
  long number = atomic_fetch_add(&changes, 1) + 1;
  if (trace) {
    char line[PATH + 64];
    note(trace, line, snprintf(line, sizeof line, "%ld %s %s\n", number, call, name));
  }
  if (!from || !fault || number < atol(from)) return NOTHING;
  return !strcmp(fault, "full") ? FULL : !strcmp(fault, "read-only") ? READ_ONLY : KILL;
}

// Whether a change that meets something fails; `room` says that it needs some.
static int fails(enum Met met, int room) {
  if (met == KILL) kill(getpid(), SIGKILL);
  if (met == READ_ONLY) errno = EROFS;
  else if (met == FULL && room) errno = ENOSPC;
  else return 0;
  return 1;
}

static int fails_open(const char *path, int flags) {
  if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT)) return 0;
  struct stat old;
  int room = (flags & O_CREAT) && fstatat(AT_FDCWD, path, &old, 0);
  return fails(meets("open", path), room);
}

int open64(const char *path, int flags, ...) {
  __builtin_va_list rest;
  __builtin_va_start(rest, flags);
  mode_t mode = __builtin_va_arg(rest, mode_t);
  __builtin_va_end(rest);
  return fails_open(path, flags) ? -1 : NEXT(int (*)(const char *, int, mode_t), "open64")(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  __builtin_va_list rest;
  __builtin_va_start(rest, flags);
  mode_t mode = __builtin_va_arg(rest, mode_t);
  __builtin_va_end(rest);
  return fails_open(path, flags) ? -1 : NEXT(int (*)(const char *, int, mode_t), "open")(path, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t count) {
  char path[PATH];
  enum Met met = meets("write", behind(fd, path));
  ssize_t (*next)(int, const void *, size_t) = NEXT(ssize_t (*)(int, const void *, size_t), "write");
  const char *from = getenv("DISK_FROM");
  int first = from && atomic_load(&changes) == atol(from);
  if (first && count > 1 && (met == FULL || met == KILL)) {
    ssize_t half = next(fd, bytes, count / 2);
    return met == FULL ? half : (fails(met, 1), half);
  }
  return fails(met, 1) ? -1 : next(fd, bytes, count);
}

static int fails_sync(const char *call, int fd) {
  char path[PATH];
  return fails(meets(call, behind(fd, path)), 1);
}
int fsync(int fd) { return fails_sync("sync", fd) ? -1 : NEXT(int (*)(int), "fsync")(fd); }
int fdatasync(int fd) { return fails_sync("sync", fd) ? -1 : NEXT(int (*)(int), "fdatasync")(fd); }

int ftruncate64(int fd, off64_t length) {
  char path[PATH];
  return fails(meets("cut", behind(fd, path)), 0) ? -1 : NEXT(int (*)(int, off64_t), "ftruncate64")(fd, length);
}

int rename(const char *from, const char *to) {
  return fails(meets("rename", to), 1) ? -1 : NEXT(int (*)(const char *, const char *), "rename")(from, to);
}
int mkdir(const char *path, mode_t mode) {
  return fails(meets("mkdir", path), 1) ? -1 : NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode);
}
int unlink(const char *path) { return fails(meets("remove", path), 0) ? -1 : NEXT(int (*)(const char *), "unlink")(path); }
int rmdir(const char *path) { return fails(meets("remove", path), 0) ? -1 : NEXT(int (*)(const char *), "rmdir")(path); }
int unlinkat(int folder, const char *name, int flags) {
  char path[PATH];
  if (fails(meets("remove", inside(folder, name, path)), 0)) return -1;
  return NEXT(int (*)(int, const char *, int), "unlinkat")(folder, name, flags);
}

// Seconds that the time of day is off, another at every look.
static time_t off(void) {
  static const time_t jumps[] = {0, 3 * 86400, -3 * 86400, 400L * 86400, -86400, 7, -60L * 365 * 86400};
  static atomic_long looks;
  const char *file = getenv("CLOCK_JUMPS");
  if (!file) return 0;
  note(file, ".", 1);
  return jumps[atomic_fetch_add(&looks, 1) % (sizeof jumps / sizeof *jumps)];
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int outcome = NEXT(int (*)(clockid_t, struct timespec *), "clock_gettime")(clock, now);
  if (!outcome && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
  return outcome;
}
int gettimeofday(struct timeval *now, void *zone) {
  int outcome = NEXT(int (*)(struct timeval *, void *), "gettimeofday")(now, zone);
  if (!outcome) now->tv_sec += off();
  return outcome;
}
time_t time(time_t *now) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  if (now) *now = t.tv_sec;
  return t.tv_sec;
}
