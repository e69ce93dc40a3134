// Preloaded into a process: counts the calls that change files below one folder. At a chosen call it kills the
// process, tears a write, sends a signal, or makes the call fail. harness.py compiles it. It covers the calls that
// Python, SQLite and NumPy make; the C library's internal calls (stdio) are not intercepted.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, SIGNAL, FAIL, FULL }; // FAIL: one call; FULL: every call from there on that needs space
enum { SMALL, GROWS, WRITES };                  // kind of call: needs no space, needs space, is a write

static struct { long at, action, error, log, *count, jump; char root[PATH_MAX]; } armed;
static struct { char *start; size_t length; off_t offset; char path[PATH_MAX]; } maps[256];

// Start counting; count is in memory that the processes of one trial share.
void faults_arm(const char *root, long at, long action, long error, long log, long *count, long jump) {
  armed.jump = jump;
  strncpy(armed.root, root, PATH_MAX - 1);
  armed.at = at, armed.action = action, armed.error = error, armed.log = log, armed.count = count;
}

static int below(const char *path) {
  size_t length = strlen(armed.root);
  return length && !strncmp(path, armed.root, length) && (path[length] == '/' || !path[length]);
}

static const char *full(int folder, const char *name, char *out) {
  char link[64];
  if (name && *name == '/') return name;
  ssize_t length = 0;
  if (folder == AT_FDCWD) length = getcwd(out, PATH_MAX) ? (ssize_t)strlen(out) : 0;
  else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    length = readlink(link, out, PATH_MAX - 1);
  }
  if (length <= 0) return "";
  out[length] = 0;
  if (name) snprintf(out + length, PATH_MAX - length, "/%s", name);
  return out;
}

// 0: go on; -1: fail with errno; 1: write half, then die.
static int moment(const char *path, int kind) {
  if (!armed.count || !below(path)) return 0;
  long now = __atomic_add_fetch(armed.count, 1, __ATOMIC_SEQ_CST);
  if (armed.action == FULL ? now < armed.at || kind == SMALL : now != armed.at) return 0;
  if (armed.action == TEAR && kind == WRITES) return 1;
  if (armed.action == KILL || armed.action == TEAR) kill(getpid(), SIGKILL), pause();
  if (armed.action == SIGNAL) kill(getpid(), (int)armed.error);
  if (armed.action != FAIL && armed.action != FULL) return 0;
  errno = (int)armed.error;
  return -1;
}

// One record: letter, lengths of both paths, offset, length of the data; then both paths and the data.
static void record(char what, const char *path, const char *other, int64_t offset, const void *data, int64_t size) {
  if (!armed.count || !armed.log || !below(path)) return;
  int saved_errno = errno;
  struct __attribute__((packed)) { char what; int32_t path, other; int64_t offset, size; } head = {
    what, (int32_t)strlen(path), (int32_t)strlen(other), offset, data ? size : 0};
  struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other},
                          {(void *)data, (size_t)head.size}};
  syscall(SYS_writev, (int)armed.log, parts, 4);
  errno = saved_errno;
}

// Log an acknowledgement to the user, in order with the calls.
void faults_acknowledge(const char *text) {
  record('A', armed.root, text, 0, NULL, 0);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int64_t position(int fd) {
  struct stat facts;
  if (fcntl(fd, F_GETFL) & O_APPEND) return fstat(fd, &facts) ? 0 : facts.st_size;
  return lseek(fd, 0, SEEK_CUR);
}

#define WRITE(name, at, more, ...)                                                                                  \
  char buffer[PATH_MAX];                                                                                            \
  REAL(name);                                                                                                       \
  const char *path = armed.count ? full(fd, NULL, buffer) : "";                                                     \
  if (!below(path)) return real(fd, data, size __VA_ARGS__);                                                        \
  int what = moment(path, WRITES);                                                                                  \
  if (what < 0) return -1;                                                                                          \
  int64_t offset = at;                                                                                              \
  if (what) real(fd, data, size / 2 __VA_ARGS__), kill(getpid(), SIGKILL), pause();                                 \
  ssize_t done = real(fd, data, size __VA_ARGS__);                                                                  \
  if (done > 0) record('w', path, "", offset, data, done);                                                          \
  return done;

ssize_t write(int fd, const void *data, size_t size) { WRITE(write, position(fd), ) }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t to) { WRITE(pwrite64, to, , , to) }
ssize_t pwrite(int fd, const void *data, size_t size, off_t to) { WRITE(pwrite, to, , , to) }

#define SYNC(name)                                                                                                  \
  char buffer[PATH_MAX];                                                                                            \
  REAL(name);                                                                                                       \
  const char *path = armed.count ? full(fd, NULL, buffer) : "";                                                     \
  if (moment(path, GROWS)) return -1;                                                                               \
  int done = real(fd);                                                                                              \
  if (!done) record('s', path, "", 0, NULL, 0);                                                                     \
  return done;

int fsync(int fd) { SYNC(fsync) }
int fdatasync(int fd) { SYNC(fdatasync) }

#define RESIZE(name, grown, ...)                                                                                    \
  char buffer[PATH_MAX];                                                                                            \
  REAL(name);                                                                                                       \
  const char *path = armed.count ? full(fd, NULL, buffer) : "";                                                     \
  if (moment(path, grown)) return grown == GROWS ? (int)armed.error : -1;                                           \
  int done = real(fd, __VA_ARGS__);                                                                                 \
  if (!done) record(grown == GROWS ? 'g' : 't', path, "", to, NULL, 0);                                             \
  return done;

int ftruncate(int fd, off_t to) { RESIZE(ftruncate, SMALL, to) }
int ftruncate64(int fd, off_t to) { RESIZE(ftruncate64, SMALL, to) }
int posix_fallocate(int fd, off_t from, off_t to) { RESIZE(posix_fallocate, GROWS, from, to) }
int posix_fallocate64(int fd, off_t from, off_t to) { RESIZE(posix_fallocate64, GROWS, from, to) }

#define OPEN(name, folder, ...)                                                                                     \
  char buffer[PATH_MAX];                                                                                            \
  REAL(name);                                                                                                       \
  mode_t mode = 0;                                                                                                  \
  if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {                                                                                            \
    va_list list;                                                                                                   \
    va_start(list, flags), mode = va_arg(list, mode_t), va_end(list);                                               \
  }                                                                                                                 \
  const char *path = armed.count && flags & (O_CREAT | O_TRUNC) ? full(folder, name_, buffer) : "";                 \
  int there = *path && !access(path, F_OK);                                                                         \
  int changes = *path && (!there || flags & O_TRUNC);                                                               \
  if (changes && moment(path, there ? SMALL : GROWS)) return -1;                                                    \
  int fd = real(__VA_ARGS__, flags, mode);                                                                          \
  if (changes && fd >= 0) record(there ? 't' : 'c', path, "", 0, NULL, 0);                                          \
  return fd;

int open(const char *name_, int flags, ...) { OPEN(open, AT_FDCWD, name_) }
int open64(const char *name_, int flags, ...) { OPEN(open64, AT_FDCWD, name_) }
int openat(int at, const char *name_, int flags, ...) { OPEN(openat, at, at, name_) }
int openat64(int at, const char *name_, int flags, ...) { OPEN(openat64, at, at, name_) }

#define NAME(name, letter, grown, folder, path_, ...)                                                               \
  char buffer[PATH_MAX];                                                                                            \
  REAL(name);                                                                                                       \
  const char *path = armed.count ? full(folder, path_, buffer) : "";                                                \
  if (moment(path, grown)) return -1;                                                                               \
  int done = real(__VA_ARGS__);                                                                                     \
  if (!done) record(letter, path, "", 0, NULL, 0);                                                                  \
  return done;

int unlink(const char *name_) { NAME(unlink, 'u', SMALL, AT_FDCWD, name_, name_) }
int rmdir(const char *name_) { NAME(rmdir, 'u', SMALL, AT_FDCWD, name_, name_) }
int unlinkat(int at, const char *name_, int flags) { NAME(unlinkat, 'u', SMALL, at, name_, at, name_, flags) }
int mkdir(const char *name_, mode_t mode) { NAME(mkdir, 'd', GROWS, AT_FDCWD, name_, name_, mode) }
int mkdirat(int at, const char *name_, mode_t mode) { NAME(mkdirat, 'd', GROWS, at, name_, at, name_, mode) }

int rename(const char *from, const char *to) {
  char buffer[PATH_MAX], target[PATH_MAX];
  REAL(rename);
  const char *path = armed.count ? full(AT_FDCWD, from, buffer) : "";
  if (moment(path, SMALL)) return -1;
  int done = real(from, to);
  if (!done) record('r', path, full(AT_FDCWD, to, target), 0, NULL, 0);
  return done;
}

#define MAP(name)                                                                                                   \
  REAL(name);                                                                                                       \
  char *start = real(hint, length, prot, flags, fd, offset);                                                        \
  if (armed.count && fd >= 0 && start != MAP_FAILED && flags & MAP_SHARED && prot & PROT_WRITE)                     \
    for (int i = 0; i < 256; i++)                                                                                   \
      if (!maps[i].start || maps[i].start == start) {                                                               \
        char buffer[PATH_MAX];                                                                                      \
        strncpy(maps[i].path, full(fd, NULL, buffer), PATH_MAX - 1);                                                \
        maps[i].start = start, maps[i].length = length, maps[i].offset = offset;                                    \
        break;                                                                                                      \
      }                                                                                                             \
  return start;

void *mmap(void *hint, size_t length, int prot, int flags, int fd, off_t offset) { MAP(mmap) }
void *mmap64(void *hint, size_t length, int prot, int flags, int fd, off_t offset) { MAP(mmap64) }

// A jumping clock: readings are alternately `jump` seconds ahead and behind.
int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  static long readings;
  int done = real(clock, now);
  if (armed.jump && clock == CLOCK_REALTIME)
    now->tv_sec += __atomic_add_fetch(&readings, 1, __ATOMIC_SEQ_CST) % 2 ? armed.jump : -armed.jump;
  return done;
}

int msync(void *start, size_t length, int flags) {
  REAL(msync);
  for (int i = 0; armed.count && i < 256; i++)
    if (maps[i].start && (char *)start >= maps[i].start && (char *)start < maps[i].start + maps[i].length) {
      if (moment(maps[i].path, GROWS)) return -1;
      int done = real(start, length, flags);
      int64_t at = maps[i].offset + ((char *)start - maps[i].start);
      size_t end = maps[i].length - ((char *)start - maps[i].start);
      record('w', maps[i].path, "", at, start, (int64_t)(length < end ? length : end));
      record('s', maps[i].path, "", 0, NULL, 0);
      return done;
    }
  return real(start, length, flags);
}
