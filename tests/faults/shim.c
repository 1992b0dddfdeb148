// Faults below one directory, for LD_PRELOAD: counts the calls that change it, and at the n-th does what was asked.
//
// A file that MASKPIPE_FAULTS names is mapped by every process of the job, so that all of them count together; it holds
// one struct control, which harness.py writes. With `shadow`, the shim keeps there what a power loss would leave: the
// bytes of each file at its last fsync (f<inode>) and the entries of each directory at its last fsync (d<inode>).
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { COUNT, KILL, TORN, SHORT, NO_SPACE, IO_ERROR, STOP };
enum verdict { GO, HALF, HALF_THEN_DIE, GO_THEN_DIE, FAIL };

struct control {
  _Atomic int64_t calls;
  int64_t point;          // 1-based; 0: none
  int32_t kind;           // enum kind
  int32_t group;          // kill the whole process group, or the caller alone
  int32_t deaf;           // fsync does nothing: the control that must be caught
  _Atomic int32_t fired;  // 1: in the process that leads the group, 2: in another
  char directory[512];    // absolute, no link in it
  char shadow[512];       // empty: none
  char log[512];          // one line per call: number, process, call, path
};

static struct control* control;

static int ready(void) {
  static __thread int inside_ready;
  if (control != NULL) return 1;
  const char* path = getenv("MASKPIPE_FAULTS");
  if (path == NULL || inside_ready) return 0;
  inside_ready = 1;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
  if (fd >= 0) {
    void* map = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map != MAP_FAILED) control = map;
  }
  inside_ready = 0;
  return control != NULL;
}

static void die(void) {
  syscall(SYS_kill, control->group ? 0 : getpid(), SIGKILL);
  for (;;) pause();
}

static int below(const char* path) {
  size_t length = strlen(control->directory);
  return strncmp(path, control->directory, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int name_of(int fd, char out[PATH_MAX]) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
  if (n < 0) return 0;
  out[n] = 0;
  return below(out);
}

static int full(int dirfd, const char* path, char out[PATH_MAX]) {
  if (path == NULL) return 0;
  if (path[0] == '/') {
    snprintf(out, PATH_MAX, "%s", path);
    return below(out);
  }
  char base[PATH_MAX];
  char link[64] = "/proc/self/cwd";
  if (dirfd != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
  ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, base, PATH_MAX - 1);
  if (n < 0) return 0;
  base[n] = 0;
  if ((size_t)snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
  return below(out);
}

// What to do with this call. `allocates`: a full disk refuses it, then and later. `data`: it can be done by half.
static enum verdict next(const char* call, const char* path, int allocates, int data) {
  int64_t number = atomic_fetch_add(&control->calls, 1) + 1;
  if (control->log[0]) {
    char line[PATH_MAX + 64];
    int n = snprintf(line, sizeof line, "%lld\t%d\t%s\t%s\n", (long long)number, (int)getpid(), call, path);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, control->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0) {
      syscall(SYS_write, fd, line, (size_t)n);
      syscall(SYS_close, fd);
    }
  }
  if (control->kind == NO_SPACE && allocates && atomic_load(&control->fired)) {
    errno = ENOSPC;
    return FAIL;
  }
  if (number != control->point) return GO;
  if (control->kind == SHORT && !data) return GO;
  int leads = getpgrp() == getpid();  // the driver; a worker has another number than its group
  if (control->kind == STOP && leads) return GO;
  atomic_store(&control->fired, leads ? 1 : 2);
  switch (control->kind) {
    case KILL:
      die();
      return FAIL;
    case STOP:
      syscall(SYS_kill, getpid(), SIGSTOP);
      return GO;
    case TORN:
      return data ? HALF_THEN_DIE : GO_THEN_DIE;
    case SHORT:
      return HALF;
    case NO_SPACE:
      errno = ENOSPC;
      return FAIL;
    case IO_ERROR:
      errno = EIO;
      return FAIL;
    default:
      return GO;
  }
}

static void shadow_name(char out[PATH_MAX], char letter, ino_t inode, const char* more) {
  snprintf(out, PATH_MAX, "%s/%c%llu%s", control->shadow, letter, (unsigned long long)inode, more);
}

static void forget(char letter, ino_t inode) {
  char name[PATH_MAX];
  if (!control->shadow[0]) return;
  shadow_name(name, letter, inode, "");
  syscall(SYS_unlinkat, AT_FDCWD, name, 0);
}

// Keeps what is on the disk from now on, whatever happens to the power.
static void keep(int fd) {
  struct stat status;
  if (!control->shadow[0] || fstat(fd, &status) != 0) return;
  char name[PATH_MAX], temporary[PATH_MAX], letter = S_ISDIR(status.st_mode) ? 'd' : 'f', more[32];
  snprintf(more, sizeof more, ".%d", (int)getpid());
  shadow_name(name, letter, status.st_ino, "");
  shadow_name(temporary, letter, status.st_ino, more);
  int out = (int)syscall(SYS_openat, AT_FDCWD, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (out < 0) return;
  if (letter == 'f') {
    char block[1 << 16];
    off_t at = 0;
    ssize_t n;
    while ((n = syscall(SYS_pread64, fd, block, sizeof block, at)) > 0) {
      syscall(SYS_write, out, block, (size_t)n);
      at += n;
    }
    if (n < 0) {  // open for writing only
      char link[64];
      snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
      int in = (int)syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
      while (in >= 0 && (n = syscall(SYS_read, in, block, sizeof block)) > 0) syscall(SYS_write, out, block, (size_t)n);
      syscall(SYS_close, in);
    }
  } else {
    char link[64], line[NAME_MAX + 64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    DIR* directory = opendir(link);
    struct dirent* entry;
    while (directory != NULL && (entry = readdir(directory)) != NULL) {
      if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
      int n = snprintf(line, sizeof line, "%c%llu %s\n", entry->d_type == DT_DIR ? 'd' : 'f',
                       (unsigned long long)entry->d_ino, entry->d_name);
      syscall(SYS_write, out, line, (size_t)n);
    }
    if (directory != NULL) closedir(directory);
  }
  syscall(SYS_close, out);
  syscall(SYS_renameat2, AT_FDCWD, temporary, AT_FDCWD, name, 0);
}

// Runs `action`, which gives -1 and errno on failure, as the verdict says.
#define CHANGE(call, path, allocates, action)              \
  do {                                                     \
    enum verdict verdict = next(call, path, allocates, 0); \
    if (verdict == FAIL) return -1;                        \
    int result = (action);                                 \
    if (verdict == GO_THEN_DIE) die();                     \
    return result;                                         \
  } while (0)

static int open_any(int dirfd, const char* path, int flags, mode_t mode) {
  char name[PATH_MAX];
  int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
  if (!writes || !ready() || !full(dirfd, path, name)) return (int)syscall(SYS_openat, dirfd, path, flags, mode);
  struct stat status;
  int absent = (flags & O_CREAT) && fstatat(dirfd, path, &status, AT_SYMLINK_NOFOLLOW) != 0;
  enum verdict verdict = next("open", name, absent, 0);
  if (verdict == FAIL) return -1;
  int fd = (int)syscall(SYS_openat, dirfd, path, flags, mode);
  if (fd >= 0 && absent && fstat(fd, &status) == 0) forget('f', status.st_ino);
  if (verdict == GO_THEN_DIE) die();
  return fd;
}

#define MODE(flags)                                                \
  mode_t mode = 0;                                                 \
  if (((flags) & O_CREAT) || ((flags) & O_TMPFILE) == O_TMPFILE) { \
    va_list arguments;                                             \
    va_start(arguments, flags);                                    \
    mode = va_arg(arguments, mode_t);                              \
    va_end(arguments);                                             \
  }

int open(const char* path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char* path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int dirfd, const char* path, int flags, ...) { MODE(flags) return open_any(dirfd, path, flags, mode); }
int openat64(int dirfd, const char* path, int flags, ...) {
  MODE(flags) return open_any(dirfd, path, flags | O_LARGEFILE, mode);
}
int creat(const char* path, mode_t mode) { return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char* path, mode_t mode) { return creat(path, mode); }

// `action` writes `count` bytes.
#define WRITE(call, fd, count, action)                             \
  do {                                                             \
    char name[PATH_MAX];                                           \
    if (!ready() || !name_of(fd, name)) return (action);           \
    enum verdict verdict = next(call, name, 1, (count) > 1);       \
    if (verdict == FAIL) return -1;                                \
    if (verdict == HALF || verdict == HALF_THEN_DIE) count /= 2;   \
    ssize_t result = (action);                                     \
    if (verdict == HALF_THEN_DIE || verdict == GO_THEN_DIE) die(); \
    return result;                                                 \
  } while (0)

ssize_t write(int fd, const void* data, size_t count) {
  WRITE("write", fd, count, syscall(SYS_write, fd, data, count));
}
ssize_t pwrite(int fd, const void* data, size_t count, off_t at) {
  WRITE("pwrite", fd, count, syscall(SYS_pwrite64, fd, data, count, at));
}
ssize_t pwrite64(int fd, const void* data, size_t count, off64_t at) { return pwrite(fd, data, count, at); }
ssize_t copy_file_range(int in, off64_t* in_at, int fd, off64_t* at, size_t count, unsigned flags) {
  WRITE("copy_file_range", fd, count, syscall(SYS_copy_file_range, in, in_at, fd, at, count, flags));
}
ssize_t sendfile(int fd, int in, off_t* at, size_t count) {
  WRITE("sendfile", fd, count, syscall(SYS_sendfile, fd, in, at, count));
}
ssize_t sendfile64(int fd, int in, off64_t* at, size_t count) { return sendfile(fd, in, at, count); }
static ssize_t writev_by(int fd, const struct iovec* parts, int count) { return syscall(SYS_writev, fd, parts, count); }
ssize_t writev(int fd, const struct iovec* parts, int count) {
  WRITE("writev", fd, count, writev_by(fd, parts, count));
}
ssize_t pwritev(int fd, const struct iovec* parts, int count, off_t at) {
  WRITE("pwritev", fd, count, syscall(SYS_pwritev, fd, parts, count, at, 0));
}
ssize_t pwritev64(int fd, const struct iovec* parts, int count, off64_t at) { return pwritev(fd, parts, count, at); }

static int sync_any(const char* call, int fd, long number) {
  char name[PATH_MAX];
  if (!ready() || !name_of(fd, name)) return (int)syscall(number, fd);
  enum verdict verdict = next(call, name, 0, 0);
  if (verdict == FAIL) return -1;
  int result = control->deaf ? 0 : (int)syscall(number, fd);
  if (result == 0 && !control->deaf) keep(fd);
  if (verdict == GO_THEN_DIE) die();
  return result;
}
int fsync(int fd) { return sync_any("fsync", fd, SYS_fsync); }
int fdatasync(int fd) { return sync_any("fdatasync", fd, SYS_fdatasync); }

static int rename_any(int from, const char* old, int to, const char* new, unsigned flags) {
  char name[PATH_MAX];
  if (!ready() || !full(to, new, name)) return (int)syscall(SYS_renameat2, from, old, to, new, flags);
  CHANGE("rename", name, 0, (int)syscall(SYS_renameat2, from, old, to, new, flags));
}
int rename(const char* old, const char* new) { return rename_any(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char* old, int to, const char* new) { return rename_any(from, old, to, new, 0); }
int renameat2(int from, const char* old, int to, const char* new, unsigned flags) {
  return rename_any(from, old, to, new, flags);
}

static int unlink_any(const char* call, int dirfd, const char* path, int flags) {
  char name[PATH_MAX];
  if (!ready() || !full(dirfd, path, name)) return (int)syscall(SYS_unlinkat, dirfd, path, flags);
  CHANGE(call, name, 0, (int)syscall(SYS_unlinkat, dirfd, path, flags));
}
int unlink(const char* path) { return unlink_any("unlink", AT_FDCWD, path, 0); }
int rmdir(const char* path) { return unlink_any("rmdir", AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int dirfd, const char* path, int flags) {
  return unlink_any(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dirfd, path, flags);
}

static int mkdir_real(int dirfd, const char* path, mode_t mode) {
  int result = (int)syscall(SYS_mkdirat, dirfd, path, mode);
  struct stat status;
  if (result == 0 && fstatat(dirfd, path, &status, AT_SYMLINK_NOFOLLOW) == 0) forget('d', status.st_ino);
  return result;
}
static int mkdir_any(int dirfd, const char* path, mode_t mode) {
  char name[PATH_MAX];
  if (!ready() || !full(dirfd, path, name)) return (int)syscall(SYS_mkdirat, dirfd, path, mode);
  CHANGE("mkdir", name, 1, mkdir_real(dirfd, path, mode));
}
int mkdir(const char* path, mode_t mode) { return mkdir_any(AT_FDCWD, path, mode); }
int mkdirat(int dirfd, const char* path, mode_t mode) { return mkdir_any(dirfd, path, mode); }

static int link_any(int from, const char* old, int to, const char* new, int flags) {
  char name[PATH_MAX];
  if (!ready() || !full(to, new, name)) return (int)syscall(SYS_linkat, from, old, to, new, flags);
  CHANGE("link", name, 1, (int)syscall(SYS_linkat, from, old, to, new, flags));
}
int link(const char* old, const char* new) { return link_any(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char* old, int to, const char* new, int flags) {
  return link_any(from, old, to, new, flags);
}

int symlinkat(const char* target, int dirfd, const char* path) {
  char name[PATH_MAX];
  if (!ready() || !full(dirfd, path, name)) return (int)syscall(SYS_symlinkat, target, dirfd, path);
  CHANGE("symlink", name, 1, (int)syscall(SYS_symlinkat, target, dirfd, path));
}
int symlink(const char* target, const char* path) { return symlinkat(target, AT_FDCWD, path); }

int ftruncate(int fd, off_t size) {
  char name[PATH_MAX];
  if (!ready() || !name_of(fd, name)) return (int)syscall(SYS_ftruncate, fd, size);
  CHANGE("ftruncate", name, 1, (int)syscall(SYS_ftruncate, fd, size));
}
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
int truncate(const char* path, off_t size) {
  char name[PATH_MAX];
  if (!ready() || !full(AT_FDCWD, path, name)) return (int)syscall(SYS_truncate, path, size);
  CHANGE("truncate", name, 1, (int)syscall(SYS_truncate, path, size));
}
int truncate64(const char* path, off64_t size) { return truncate(path, size); }
int fallocate(int fd, int mode, off_t at, off_t size) {
  char name[PATH_MAX];
  if (!ready() || !name_of(fd, name)) return (int)syscall(SYS_fallocate, fd, mode, at, size);
  CHANGE("fallocate", name, 1, (int)syscall(SYS_fallocate, fd, mode, at, size));
}
int fallocate64(int fd, int mode, off64_t at, off64_t size) { return fallocate(fd, mode, at, size); }
int posix_fallocate(int fd, off_t at, off_t size) { return fallocate(fd, 0, at, size) == 0 ? 0 : errno; }
int posix_fallocate64(int fd, off64_t at, off64_t size) { return posix_fallocate(fd, at, size); }
