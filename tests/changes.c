// Preloaded into every program of a device: counts what they change on a disk, in $CHANGES, a file that all of them map,
// and before the change number $KILL_AT kills the whole process group, as if the device's power switch were hit.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct {
  unsigned count;
  char kinds[65536];
}* shared;
static unsigned kill_at;

__attribute__((constructor)) static void start(void) {
  int file = open(getenv("CHANGES"), O_RDWR | O_CLOEXEC);
  void* pages = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  kill_at = atoi(getenv("KILL_AT"));
  if (pages != MAP_FAILED) shared = pages;
}

static void change(char kind) {
  if (!shared) return;
  unsigned number = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
  if (number < sizeof shared->kinds) shared->kinds[number - 1] = kind;
  if (number == kill_at) kill(0, SIGKILL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(kind, name, declared, ...) \
  int name declared {                   \
    change(kind);                       \
    return REAL(name)(__VA_ARGS__);     \
  }
CALL('r', rename, (const char* a, const char* b), a, b)
CALL('r', renameat, (int d, const char* a, int e, const char* b), d, a, e, b)
CALL('r', renameat2, (int d, const char* a, int e, const char* b, unsigned f), d, a, e, b, f)
CALL('s', symlink, (const char* a, const char* b), a, b)
CALL('s', symlinkat, (const char* a, int d, const char* b), a, d, b)
CALL('l', link, (const char* a, const char* b), a, b)
CALL('l', linkat, (int d, const char* a, int e, const char* b, int f), d, a, e, b, f)
CALL('u', unlink, (const char* a), a)
CALL('u', unlinkat, (int d, const char* a, int f), d, a, f)
CALL('u', rmdir, (const char* a), a)
CALL('m', mkdir, (const char* a, mode_t m), a, m)
CALL('m', mkdirat, (int d, const char* a, mode_t m), d, a, m)
CALL('f', fsync, (int d), d)
CALL('f', fdatasync, (int d), d)
CALL('f', syncfs, (int d), d)

ssize_t write(int file, const void* data, size_t size) {
  struct stat about;
  if (fstat(file, &about) == 0 && S_ISREG(about.st_mode)) change('w');
  return REAL(write)(file, data, size);
}

static mode_t mode_of(int flags, va_list rest) { return flags & O_CREAT ? va_arg(rest, mode_t) : 0; }
#define OPEN(name)                                                 \
  int name(const char* path, int flags, ...) {                     \
    va_list rest;                                                  \
    va_start(rest, flags);                                         \
    mode_t mode = mode_of(flags, rest);                            \
    va_end(rest);                                                  \
    if (flags & (O_CREAT | O_TRUNC)) change('o');                  \
    return REAL(name)(path, flags, mode);                          \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                               \
  int name(int folder, const char* path, int flags, ...) {         \
    va_list rest;                                                  \
    va_start(rest, flags);                                         \
    mode_t mode = mode_of(flags, rest);                            \
    va_end(rest);                                                  \
    if (flags & (O_CREAT | O_TRUNC)) change('o');                  \
    return REAL(name)(folder, path, flags, mode);                  \
  }
OPENAT(openat)
OPENAT(openat64)
