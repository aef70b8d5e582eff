/* A disk that is slow or full, for one process: preloaded before the C library, told by four numbers in a shared file.

   The file is "sick-disk" in the process' working folder: milliseconds that each sync takes longer; whether the disk is
   full; and, written from here, syncs that were delayed and requests that were refused or told that nothing is free. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    _Atomic int32_t delay_ms, full, delayed, refused;
};

static struct control *control;

__attribute__((constructor)) static void begin(void) {
    int fd = open("sick-disk", O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) control = found;
    close(fd);
}

static void drag(void) {
    int32_t ms = control ? control->delay_ms : 0;
    if (ms <= 0) return;
    struct timespec left = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
    control->delayed++;
}

/* What lies within the file already has its blocks. */
static int no_room(int fd, off_t end) {
    struct stat found;
    if (!control || !control->full || fstat(fd, &found) != 0 || !S_ISREG(found.st_mode) || end <= found.st_size) return 0;
    control->refused++;
    errno = ENOSPC;
    return 1;
}

static off_t length(const struct iovec *parts, int count) {
    off_t sum = 0;
    for (int i = 0; i < count; i++) sum += (off_t)parts[i].iov_len;
    return sum;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

int fdatasync(int fd) { drag(); return REAL(fdatasync)(fd); }
int fsync(int fd) { drag(); return REAL(fsync)(fd); }

#define PWRITE(name)                                                        \
    ssize_t name(int fd, const void *data, size_t count, off_t at) {        \
        return no_room(fd, at + (off_t)count) ? -1 : REAL(name)(fd, data, count, at); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define PWRITEV(name)                                                       \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t at) {  \
        return no_room(fd, at + length(parts, count)) ? -1 : REAL(name)(fd, parts, count, at); \
    }
PWRITEV(pwritev)
PWRITEV(pwritev64)

/* Written and synced at once. */
#define PWRITEV2(name)                                                      \
    ssize_t name(int fd, const struct iovec *parts, int count, off_t at, int flags) { \
        if (no_room(fd, at + length(parts, count))) return -1;              \
        if (flags & (RWF_DSYNC | RWF_SYNC)) drag();                         \
        return REAL(name)(fd, parts, count, at, flags);                     \
    }
PWRITEV2(pwritev2)
PWRITEV2(pwritev64v2)

#define STATVFS(name, type)                                                 \
    int name(const char *path, struct type *found) {                        \
        int result = REAL(name)(path, found);                               \
        if (result == 0 && control && control->full) {                      \
            found->f_bavail = found->f_bfree = 0;                           \
            control->refused++;                                             \
        }                                                                   \
        return result;                                                      \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
