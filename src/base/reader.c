/*
 * reader.c - files of any size, read piece by piece, decompressed on the way (gzip and Zstandard,
 * recognised by content).
 *
 * Owns a file descriptor and one input buffer. Knows nothing of lines or of what the bytes mean.
 */
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define INPUT ((size_t)1 << 17)

typedef enum { PLAIN, GZIP, ZSTANDARD } packing;

struct ic_reader {
    char *path;
    int fd;
    packing packing;
    unsigned char *input;
    size_t at, have; /* unread input */
    uint64_t read;   /* bytes of the file so far */
    bool ended;      /* the file has */
    bool whole;      /* a gzip member or Zstandard frame has just been completed */
    z_stream z;
    bool z_open;
    ZSTD_DCtx *zstd;
};

/* At least `need` unread bytes, unless the file ends. */
static int refill(ic_reader *r, size_t need)
{
    while (r->have - r->at < need && !r->ended) {
        memmove(r->input, r->input + r->at, r->have - r->at);
        r->have -= r->at;
        r->at = 0;
        ssize_t n = read(r->fd, r->input + r->have, INPUT - r->have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return ic_fail(ICAE_EIO, "cannot read %.400s: %s", r->path, strerror(errno));
        r->have += (size_t)n;
        r->read += (uint64_t)n;
        r->ended = n == 0;
    }
    return ICAE_OK;
}

static voidpf zlib_alloc(voidpf user, uInt count, uInt size)
{
    (void)user;
    return ic_alloc(count, size);
}

static void zlib_free(voidpf user, voidpf memory)
{
    (void)user;
    ic_free(memory);
}

static int begin(ic_reader *r)
{
    static const unsigned char zstd_magic[4] = {0x28, 0xb5, 0x2f, 0xfd};
    int rc = refill(r, sizeof zstd_magic);
    if (rc < 0)
        return rc;
    if (r->have >= 2 && r->input[0] == 0x1f && r->input[1] == 0x8b) {
        r->packing = GZIP;
        r->z = (z_stream){.zalloc = zlib_alloc, .zfree = zlib_free};
        if (inflateInit2(&r->z, 16 + MAX_WBITS) != Z_OK)
            return ic_fail(ICAE_ENOMEM, "%.400s: out of memory to decompress", r->path);
        r->z_open = true;
    } else if (r->have >= 4 && memcmp(r->input, zstd_magic, 4) == 0) {
        r->packing = ZSTANDARD;
        r->zstd = ZSTD_createDCtx();
        if (!r->zstd)
            return ic_fail(ICAE_ENOMEM, "%.400s: out of memory to decompress", r->path);
    }
    return ICAE_OK;
}

int ic_reader_open(ic_reader **out, const char *path)
{
    int rc = ICAE_OK;
    struct stat st;
    *out = NULL;
    ic_reader *r = ic_alloc(1, sizeof *r);
    if (!r)
        return ICAE_ENOMEM;
    r->fd = -1;
    r->path = ic_strdup(path);
    r->input = ic_alloc(INPUT, 1);
    if (!r->path || !r->input) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    do
        r->fd = open(path, O_RDONLY | O_CLOEXEC);
    while (r->fd < 0 && errno == EINTR);
    if (r->fd < 0) {
        rc = ic_fail(errno == ENOENT || errno == ENOTDIR ? ICAE_ENOTFOUND : ICAE_EIO,
                     "cannot open %.400s: %s", path, strerror(errno));
        goto done;
    }
    if (fstat(r->fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        rc = ic_fail(ICAE_EINVAL, "%.400s is a folder where a file was expected", path);
        goto done;
    }
    IC_TRY(begin(r));
    *out = r;
    return ICAE_OK;
done:
    ic_reader_close(r);
    return rc;
}

void ic_reader_close(ic_reader *r)
{
    if (!r)
        return;
    if (r->z_open)
        inflateEnd(&r->z);
    ZSTD_freeDCtx(r->zstd);
    if (r->fd >= 0)
        close(r->fd);
    ic_free(r->input);
    ic_free(r->path);
    ic_free(r);
}

/* One call of inflate. Members may be joined; anything behind the last one that is no further
 * member is padding. */
static int from_gzip(ic_reader *r, unsigned char *data, size_t size, size_t *got)
{
    if (r->whole) {
        if (r->have - r->at < 2 || r->input[r->at] != 0x1f || r->input[r->at + 1] != 0x8b) {
            r->at = r->have;
            r->ended = true;
            return ICAE_OK;
        }
        inflateReset(&r->z);
        r->whole = false;
    }
    r->z.next_in = r->input + r->at;
    r->z.avail_in = (uInt)(r->have - r->at);
    r->z.next_out = data;
    r->z.avail_out = (uInt)IC_MIN(size, (size_t)INT_MAX);
    uInt room = r->z.avail_out;
    int status = inflate(&r->z, Z_NO_FLUSH);
    r->at = r->have - r->z.avail_in;
    *got = room - r->z.avail_out;
    if (status == Z_MEM_ERROR)
        return ic_fail(ICAE_ENOMEM, "%.400s: out of memory to decompress", r->path);
    if (status == Z_STREAM_END)
        r->whole = true;
    else if (status != Z_OK && status != Z_BUF_ERROR)
        return ic_fail(ICAE_EFORMAT, "%.400s: damaged gzip data near byte %llu", r->path,
                       (unsigned long long)(r->read - r->z.avail_in));
    return ICAE_OK;
}

static int from_zstd(ic_reader *r, unsigned char *data, size_t size, size_t *got)
{
    ZSTD_inBuffer in = {r->input, r->have, r->at};
    ZSTD_outBuffer out = {data, size, 0};
    size_t status = ZSTD_decompressStream(r->zstd, &out, &in);
    r->at = in.pos;
    *got = out.pos;
    if (ZSTD_isError(status))
        return ic_fail(ICAE_EFORMAT, "%.400s: damaged Zstandard data near byte %llu: %s", r->path,
                       (unsigned long long)(r->read - (r->have - r->at)),
                       ZSTD_getErrorName(status));
    r->whole = status == 0;
    return ICAE_OK;
}

int ic_reader_read(ic_reader *r, void *data, size_t size, size_t *got)
{
    *got = 0;
    while (*got == 0 && size > 0) {
        int rc =
            refill(r, r->whole ? 2 : 1); /* two bytes tell whether another gzip member follows */
        if (rc < 0)
            return rc;
        bool empty = r->at == r->have;
        if (r->packing == PLAIN) {
            *got = IC_MIN(size, r->have - r->at);
            memcpy(data, r->input + r->at, *got);
            r->at += *got;
        } else if (!empty || !r->whole) {
            /* at the end of the file this call may still give what the decoder holds back */
            rc = r->packing == GZIP ? from_gzip(r, data, size, got) : from_zstd(r, data, size, got);
            if (rc < 0)
                return rc;
        }
        if (empty && r->ended && *got == 0) {
            if (r->packing != PLAIN && !r->whole)
                return ic_fail(ICAE_EFORMAT, "%.400s: cut short (%llu bytes of compressed data)",
                               r->path, (unsigned long long)r->read);
            break;
        }
    }
    return ICAE_OK;
}
