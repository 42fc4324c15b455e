/*
 * file.c - files read whole through a memory map, and files written so that they appear only when
 * complete.
 *
 * A map stays valid when the file is replaced (we replace by rename), but not when another program
 * truncates it in place; nothing in user space can prevent that.
 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail_errno(const char *doing, const char *path)
{
    int code = errno == ENOENT || errno == ENOTDIR ? ICAE_ENOTFOUND
               : errno == ENOMEM                   ? ICAE_ENOMEM
                                                   : ICAE_EIO;
    return ic_fail(code, "cannot %s %.400s: %s", doing, path, strerror(errno));
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Pipes, terminals, /proc: what has no size to map. */
static int read_all(ic_map *out, int fd, const char *path)
{
    ic_buffer b = {0};
    int rc = ICAE_OK;
    for (;;) {
        IC_TRY(ic_buffer_grow(&b, IC_MAX((size_t)1 << 16, b.size / 2)));
        ssize_t n = read(fd, b.data + b.size, IC_MIN(b.capacity - b.size - 1, (size_t)1 << 30));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            rc = fail_errno("read", path);
            goto done;
        }
        if (n == 0)
            break;
        b.size += (size_t)n;
        b.data[b.size] = 0;
    }
    *out = (ic_map){.data = (unsigned char *)b.data, .size = b.size};
    b.data = NULL;
done:
    ic_buffer_free(&b);
    return rc;
}

static int map_or_read(ic_map *out, int fd, const char *path)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return fail_errno("read", path);
    if (S_ISDIR(st.st_mode))
        return ic_fail(ICAE_EINVAL, "%.400s is a folder where a file was expected", path);
    if (!S_ISREG(st.st_mode) || st.st_size == 0)
        return read_all(out, fd, path);
    /* Standard input may stand behind its first byte: then it is read from where it stands. */
    if (lseek(fd, 0, SEEK_CUR) > 0)
        return read_all(out, fd, path);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return errno == ENODEV ? read_all(out, fd, path) : fail_errno("map", path);
    ic_memory_huge(data, (size_t)st.st_size);
    *out = (ic_map){.data = data, .size = (size_t)st.st_size, .mapped = true};
    return ICAE_OK;
}

int ic_map_open(ic_map *out, const char *path)
{
    *out = (ic_map){0};
    if (strcmp(path, "-") == 0)
        return map_or_read(out, STDIN_FILENO, "standard input");
    int fd;
    do
        fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return fail_errno("open", path);
    int rc = map_or_read(out, fd, path);
    close(fd);
    return rc;
}

void ic_map_close(ic_map *map)
{
    if (map->mapped)
        munmap((void *)map->data, map->size);
    else
        ic_free((void *)map->data);
    *map = (ic_map){0};
}

bool ic_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool ic_path_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

char *ic_path_join(const char *folder, const char *name)
{
    size_t n = strlen(folder);
    return ic_format("%s%s%s", folder, n > 0 && folder[n - 1] != '/' ? "/" : "", name);
}

/* ---- writing --------------------------------------------------------------------------------- */

static bool is_stdout(const ic_file *f)
{
    return strcmp(f->path, "-") == 0;
}

static int open_direct(ic_file *out, const char *path)
{
    if (is_stdout(out)) {
        out->fd = STDOUT_FILENO;
        return ICAE_OK;
    }
    do
        out->fd = open(path, O_WRONLY | O_CLOEXEC);
    while (out->fd < 0 && errno == EINTR);
    return out->fd < 0 ? fail_errno("write", path) : ICAE_OK;
}

/* A temporary file beside out->path. The number behind the process id keeps threads that write the
 * same path, and what a killed process of the same id left, apart. */
static int open_temporary(ic_file *out, mode_t mode)
{
    for (int attempt = 0; attempt < 1000; attempt++) {
        out->temporary = attempt == 0
                             ? ic_format("%s.tmp.%ld", out->path, (long)getpid())
                             : ic_format("%s.tmp.%ld.%d", out->path, (long)getpid(), attempt);
        if (!out->temporary)
            return ICAE_ENOMEM;
        out->fd = open(out->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (out->fd >= 0) {
            if (mode) /* keep the rights of the file that will be replaced, as far as allowed */
                (void)!fchmod(out->fd, mode & 0777);
            return ICAE_OK;
        }
        int e = errno;
        ic_free(out->temporary);
        out->temporary = NULL;
        errno = e;
        if (errno != EEXIST && errno != EINTR)
            break;
    }
    return fail_errno("create", out->path);
}

int ic_file_create(ic_file *out, const char *path)
{
    struct stat st;
    int rc = ICAE_OK;
    char target[PATH_MAX];
    *out = (ic_file){.fd = -1};
    bool exists = strcmp(path, "-") != 0 && stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode))
        return ic_fail(ICAE_EINVAL, "%.400s is a folder where a file was expected", path);
    bool direct = strcmp(path, "-") == 0 || (exists && !S_ISREG(st.st_mode));
    /* A link to a file keeps being one: its target is what is replaced. */
    if (exists && !direct && realpath(path, target))
        path = target;
    out->path = ic_strdup(path);
    if (!out->path)
        return ICAE_ENOMEM;
    IC_TRY(direct ? open_direct(out, path) : open_temporary(out, exists ? st.st_mode : 0));
done:
    if (rc < 0)
        ic_file_abandon(out);
    return rc;
}

int ic_file_write(ic_file *f, const void *data, size_t size)
{
    const char *p = data;
    while (size > 0) {
        ssize_t n = write(f->fd, p, IC_MIN(size, (size_t)1 << 30));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            f->failed = true;
            if (n == 0)
                errno = EIO;
            return fail_errno("write", f->path);
        }
        p += n;
        size -= (size_t)n;
    }
    return ICAE_OK;
}

/* The entry of a renamed file is safe on disk only after its folder is. */
static int sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = !slash          ? ic_strdup(".")
                   : slash == path ? ic_strdup("/")
                                   : ic_strndup(path, (size_t)(slash - path));
    if (!folder)
        return ICAE_ENOMEM;
    int rc = ICAE_OK;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Some file systems cannot sync folders (EINVAL), some folders cannot be read: not an error. */
    if (fd >= 0 && fsync(fd) < 0 && errno == EIO)
        rc = fail_errno("write", folder);
    if (fd >= 0)
        close(fd);
    ic_free(folder);
    return rc;
}

int ic_file_commit(ic_file *f)
{
    int rc = ICAE_OK;
    if (f->failed)
        rc = ic_fail(ICAE_EIO, "cannot write %.400s: an earlier write failed", f->path);
    if (rc == ICAE_OK && fsync(f->fd) < 0 && errno != EINVAL && errno != ENOTSUP && errno != EROFS)
        rc = fail_errno("write", f->path);
    if (!is_stdout(f)) {
        int fd = f->fd;
        f->fd = -1;
        if (close(fd) < 0 && errno != EINTR && rc == ICAE_OK)
            rc = fail_errno("write", f->path);
    }
    if (rc == ICAE_OK && f->temporary) {
        if (rename(f->temporary, f->path) < 0) {
            rc = fail_errno("create", f->path);
        } else {
            ic_free(f->temporary);
            f->temporary = NULL;
            rc = sync_folder(f->path);
        }
    }
    ic_file_abandon(f);
    return rc;
}

void ic_file_abandon(ic_file *f)
{
    if (!f->path) /* zeroed, or already finished */
        return;
    if (f->fd >= 0 && !is_stdout(f))
        close(f->fd);
    if (f->temporary)
        unlink(f->temporary);
    ic_free(f->temporary);
    ic_free(f->path);
    *f = (ic_file){.fd = -1};
}
