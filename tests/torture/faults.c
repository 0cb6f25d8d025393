/* Calls that change files, counted, and one of them disturbed: a library for LD_PRELOAD.
 *
 * Only calls count that concern files under `root` and whose path, relative to it, matches `pattern` (fnmatch, * crosses /).
 * The `number`-th of them whose kind is among `kinds` is disturbed once; 0 disturbs none. Kinds, a letter each:
 *
 *     w  write pwrite writev pwritev sendfile copy_file_range      r  rename renameat renameat2
 *     f  fsync fdatasync msync                                     c  open and fopen that make a file, mkdir
 *     t  ftruncate posix_fallocate
 *
 * modes: BEFORE, MIDDLE (half the bytes written), AFTER kill the process with SIGKILL; FAIL returns -1 with `value` as errno;
 * HALF_FAIL writes half, as a disk does that fills up, and fails the next such call; TIMER does nothing to the call but has
 * the kernel send signal `value` after `microseconds`.
 * Every call is told to the log, if there is one: nanoseconds of the monotonic clock, kind, bytes, path; "!" marks the disturbed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, BEFORE, MIDDLE, AFTER, FAIL, HALF_FAIL, TIMER };
enum { PATHS = 2 * PATH_MAX + 64 };

static int armed, mode, value, log_handle = -1;
static long number, microseconds;
static char root[PATH_MAX], pattern[PATH_MAX], kinds[16];
static atomic_long seen;

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void start_timer(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = value};
    struct itimerspec when = {.it_value = {microseconds / 1000000, microseconds % 1000000 * 1000 + 1}};
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, NULL)) abort();
}

static const char *below_root(const char *path) {
    size_t length = strlen(root);
    return strncmp(path, root, length) == 0 && path[length] == '/' ? path + length + 1 : NULL;
}

static void tell(char mark, char kind, long bytes, const char *path) {
    if (log_handle < 0) return;
    char line[PATHS + 80];
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "%lld%09ld%c%c %ld %s\n", (long long)now.tv_sec, now.tv_nsec, mark, kind, bytes, path);
    syscall(SYS_write, log_handle, line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

/* What is to be done to this call: a mode, or NONE. A timer is started here, and the call goes on. */
static int disturb(char kind, const char *path, long bytes) {
    const char *relative = path ? below_root(path) : NULL;
    if (!relative) return NONE;
    int keep = errno, what = NONE;
    if ((!kinds[0] || strchr(kinds, kind)) && fnmatch(pattern, relative, 0) == 0 && atomic_fetch_add(&seen, 1) + 1 == number) what = mode;
    tell(what ? '!' : ' ', kind, bytes, relative);
    errno = keep;
    if (what == HALF_FAIL) {
        if (kind == 'w' && bytes > 1) { number++; mode = FAIL; }
        else what = FAIL;
    }
    if (what == TIMER) { start_timer(); return NONE; }
    if (what == BEFORE || (what == MIDDLE && (kind != 'w' || bytes < 2))) die();
    return what;
}

static const char *path_of(int handle, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static const char *absolute(int directory, const char *path, char *buffer) {
    if (path[0] == '/') return path;
    char base[PATH_MAX];
    if (directory == AT_FDCWD ? syscall(SYS_getcwd, base, sizeof base) < 0 : !path_of(directory, base)) return NULL;
    snprintf(buffer, PATHS, "%s/%s", base, path);
    return buffer;
}

static int on_handle(char kind, int handle, long bytes) {
    if (!armed || handle == log_handle) return NONE;
    char buffer[PATH_MAX];
    int keep = errno;
    const char *path = path_of(handle, buffer);
    errno = keep;
    return disturb(kind, path, bytes);
}

static int on_path(char kind, int directory, const char *path) {
    if (!armed) return NONE;
    char buffer[PATHS];
    return disturb(kind, absolute(directory, path, buffer), 0);
}

#define FAILED(what) ((what) == FAIL)
#define FAIL_NOW return (errno = value, -1)
#define DONE(what, result) do { __typeof__(result) _result = (result); if ((what) == AFTER) die(); return _result; } while (0)

/* Writes: half of the bytes first where the middle is meant. */
ssize_t write(int handle, const void *data, size_t size) {
    int what = on_handle('w', handle, (long)size);
    if (FAILED(what)) FAIL_NOW;
    if (what == MIDDLE || what == HALF_FAIL) size /= 2;
    ssize_t result = syscall(SYS_write, handle, data, size);
    if (what == MIDDLE || what == AFTER) die();
    return result;
}

static ssize_t write_at(int handle, const void *data, size_t size, off_t offset) {
    int what = on_handle('w', handle, (long)size);
    if (FAILED(what)) FAIL_NOW;
    if (what == MIDDLE || what == HALF_FAIL) size /= 2;
    ssize_t result = syscall(SYS_pwrite64, handle, data, size, offset);
    if (what == MIDDLE || what == AFTER) die();
    return result;
}
ssize_t pwrite(int handle, const void *data, size_t size, off_t offset) { return write_at(handle, data, size, offset); }
ssize_t pwrite64(int handle, const void *data, size_t size, off_t offset) { return write_at(handle, data, size, offset); }

ssize_t writev(int handle, const struct iovec *parts, int count) {
    size_t total = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    int what = on_handle('w', handle, (long)total);
    if (FAILED(what)) FAIL_NOW;
    if (what == MIDDLE || what == HALF_FAIL) {
        size_t left = total / 2, written = 0;
        for (int i = 0; i < count && left; i++) {
            size_t size = parts[i].iov_len < left ? parts[i].iov_len : left;
            ssize_t done = syscall(SYS_write, handle, parts[i].iov_base, size);
            if (done < 0) break;
            written += (size_t)done;
            left -= size;
        }
        if (what == MIDDLE) die();
        return (ssize_t)written;
    }
    DONE(what, (ssize_t)syscall(SYS_writev, handle, parts, count));
}

/* Callers ask for more than there is. */
static ssize_t copy(int to, int from, off_t *offset, size_t size) {
    struct stat file;
    if (armed && fstat(from, &file) == 0) {
        off_t at = offset ? *offset : 0;
        if (file.st_size > at && (off_t)size > file.st_size - at) size = (size_t)(file.st_size - at);
    }
    int what = on_handle('w', to, (long)size);
    if (FAILED(what)) FAIL_NOW;
    if (what == MIDDLE || what == HALF_FAIL) size /= 2;
    ssize_t result = syscall(SYS_sendfile, to, from, offset, size);
    if (what == MIDDLE || what == AFTER) die();
    return result;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) { return copy(to, from, offset, size); }
ssize_t sendfile64(int to, int from, off_t *offset, size_t size) { return copy(to, from, offset, size); }

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t size, unsigned flags) {
    int what = on_handle('w', to, (long)size);
    if (FAILED(what)) FAIL_NOW;
    if (what == MIDDLE || what == HALF_FAIL) size /= 2;
    ssize_t result = syscall(SYS_copy_file_range, from, from_offset, to, to_offset, size, flags);
    if (what == MIDDLE || what == AFTER) die();
    return result;
}

int fsync(int handle) {
    int what = on_handle('f', handle, 0);
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_fsync, handle));
}

int fdatasync(int handle) {
    int what = on_handle('f', handle, 0);
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_fdatasync, handle));
}

/* Mapped files have no handle any more: the mapping's path is looked up. */
int msync(void *start, size_t size, int flags) {
    int what = NONE;
    if (armed) {
        static const char maps[] = "/proc/self/maps";
        char line[PATH_MAX + 128], path[PATH_MAX] = "";
        FILE *file = fopen(maps, "r");
        unsigned long low, high;
        while (file && fgets(line, sizeof line, file)) {
            int at = 0;
            if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &low, &high, &at) == 2 && at && (unsigned long)start >= low && (unsigned long)start < high) {
                line[strcspn(line, "\n")] = 0;
                snprintf(path, sizeof path, "%s", line + at);
                break;
            }
        }
        if (file) fclose(file);
        what = disturb('f', path, (long)size);
    }
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_msync, start, size, flags));
}

/* A rename is counted under the new name; the old one is told before it, as a line of kind o. */
static int move(int from_directory, const char *from, int to_directory, const char *to, unsigned flags) {
    if (armed) {
        char buffer[PATHS];
        const char *old = absolute(from_directory, from, buffer);
        if (old && below_root(old)) tell(' ', 'o', 0, below_root(old));
    }
    int what = on_path('r', to_directory, to);
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
}
int rename(const char *from, const char *to) { return move(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return move(a, from, b, to, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return move(a, from, b, to, flags); }

static int make(int directory, const char *path, int flags, mode_t rights) {
    int what = flags & O_CREAT ? on_path('c', directory, path) : NONE;
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_openat, directory, path, flags, rights));
}
#define RIGHTS mode_t rights = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); rights = va_arg(list, mode_t); va_end(list); }
int open(const char *path, int flags, ...) { RIGHTS return make(AT_FDCWD, path, flags, rights); }
int open64(const char *path, int flags, ...) { RIGHTS return make(AT_FDCWD, path, flags | O_LARGEFILE, rights); }
int openat(int directory, const char *path, int flags, ...) { RIGHTS return make(directory, path, flags, rights); }
int openat64(int directory, const char *path, int flags, ...) { RIGHTS return make(directory, path, flags | O_LARGEFILE, rights); }

static FILE *make_stream(const char *name, const char *path, const char *how) {
    FILE *(*next)(const char *, const char *) = dlsym(RTLD_NEXT, name);
    int what = how[0] != 'r' ? on_path('c', AT_FDCWD, path) : NONE;
    if (FAILED(what)) return (errno = value, (FILE *)NULL);
    DONE(what, next(path, how));
}
FILE *fopen(const char *path, const char *how) { return make_stream("fopen", path, how); }
FILE *fopen64(const char *path, const char *how) { return make_stream("fopen64", path, how); }

int mkdir(const char *path, mode_t rights) {
    int what = on_path('c', AT_FDCWD, path);
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_mkdirat, AT_FDCWD, path, rights));
}

static int cut(int handle, off_t size) {
    int what = on_handle('t', handle, (long)size);
    if (FAILED(what)) FAIL_NOW;
    DONE(what, (int)syscall(SYS_ftruncate, handle, size));
}
int ftruncate(int handle, off_t size) { return cut(handle, size); }
int ftruncate64(int handle, off_t size) { return cut(handle, size); }

/* posix_fallocate returns its error instead of setting errno. */
static int reserve(int handle, off_t start, off_t size) {
    int what = on_handle('t', handle, (long)size);
    if (FAILED(what)) return value;
    DONE(what, syscall(SYS_fallocate, handle, 0, start, size) ? errno : 0);
}
int posix_fallocate(int handle, off_t start, off_t size) { return reserve(handle, start, size); }
int posix_fallocate64(int handle, off_t start, off_t size) { return reserve(handle, start, size); }

/* Begins anew: for a process that was forked with the library inside. */
void faults_arm(const char *new_root, const char *new_pattern, const char *new_kinds, long new_number, int new_mode, int new_value,
                long new_microseconds, const char *log) {
    armed = 0;
    snprintf(root, sizeof root, "%s", new_root);
    snprintf(pattern, sizeof pattern, "%s", new_pattern);
    snprintf(kinds, sizeof kinds, "%s", new_kinds);
    number = new_number, mode = new_mode, value = new_value, microseconds = new_microseconds;
    atomic_store(&seen, 0);
    if (log && log[0]) {
        int handle = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        log_handle = fcntl(handle, F_DUPFD_CLOEXEC, 300);
        close(handle);
    }
    armed = 1;
}

/* MBERT_FAULTS=root|pattern|kinds|number|mode|value|microseconds|log arms a process from its start. */
__attribute__((constructor)) static void from_environment(void) {
    char *words = getenv("MBERT_FAULTS"), *part[8];
    if (!words || !(words = strdup(words))) return;
    for (int i = 0; i < 8; i++)
        if (!(part[i] = strsep(&words, "|"))) return;
    faults_arm(part[0], part[1], part[2], atol(part[3]), atoi(part[4]), atoi(part[5]), atol(part[6]), part[7]);
}
