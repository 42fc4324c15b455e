/*
 * decompress.c - gzip and Zstandard, recognised by content. Whole buffers; reader.c streams.
 * These two files alone include zlib and zstd.
 *
 * A small file may hold an enormous text: the limit of the output buffer is what bounds it.
 */
#include "base/base.h"

#include <limits.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#define STEP ((size_t)1 << 17)

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

/* Room for the next piece of output behind out->size. At the limit it is the one byte that every
 * buffer keeps for its 0: a text of exactly the limit leaves it alone, a longer one shows there. */
static int next_piece(ic_buffer *out, size_t *room)
{
    size_t left = out->limit ? out->limit - out->size : STEP;
    *room = IC_MIN(STEP, IC_MAX(left, (size_t)1));
    return ic_buffer_grow(out, IC_MIN(left, *room));
}

static int add_piece(ic_buffer *out, size_t size)
{
    if (out->limit && size > out->limit - out->size)
        return ICAE_ELIMIT; /* ic_decompress says it */
    out->size += size;
    out->data[out->size] = 0;
    return ICAE_OK;
}

static int from_gzip(ic_buffer *out, const unsigned char *data, size_t size, const char *name)
{
    z_stream z = {.zalloc = zlib_alloc, .zfree = zlib_free};
    if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK)
        return ic_fail(ICAE_ENOMEM, "%s: out of memory to decompress", name);
    int rc = ICAE_OK;
    const unsigned char *end = data + size;
    z.next_in = (unsigned char *)data;
    for (;;) {
        size_t room;
        IC_TRY(next_piece(out, &room));
        z.avail_in = (uInt)IC_MIN((size_t)(end - z.next_in), (size_t)INT_MAX);
        z.next_out = (unsigned char *)out->data + out->size;
        z.avail_out = (uInt)room;
        int status = inflate(&z, Z_NO_FLUSH);
        IC_TRY(add_piece(out, room - z.avail_out));
        if (status == Z_MEM_ERROR) {
            rc = ic_fail(ICAE_ENOMEM, "%s: out of memory to decompress", name);
            goto done;
        }
        if (status == Z_STREAM_END) {
            /* Files may be joined; anything that is no further member is padding. */
            if (end - z.next_in < 2 || z.next_in[0] != 0x1f || z.next_in[1] != 0x8b)
                break;
            inflateReset(&z);
        } else if (status != Z_OK || (z.next_in == end && z.avail_out > 0)) {
            rc = ic_fail(ICAE_EFORMAT, "%s: damaged or truncated gzip data (byte %zu of %zu)", name,
                         (size_t)(z.next_in - data), size);
            goto done;
        }
    }
done:
    inflateEnd(&z);
    return rc;
}

static int from_zstd(ic_buffer *out, const unsigned char *data, size_t size, const char *name)
{
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (!context)
        return ic_fail(ICAE_ENOMEM, "%s: out of memory to decompress", name);
    int rc = ICAE_OK;
    ZSTD_inBuffer in = {data, size, 0};
    size_t status = 1;
    for (;;) {
        size_t room;
        IC_TRY(next_piece(out, &room));
        ZSTD_outBuffer piece = {out->data + out->size, room, 0};
        status = ZSTD_decompressStream(context, &piece, &in);
        IC_TRY(add_piece(out, piece.pos));
        if (ZSTD_isError(status)) {
            rc = ic_fail(ICAE_EFORMAT, "%s: damaged Zstandard data near byte %zu: %s", name, in.pos,
                         ZSTD_getErrorName(status));
            goto done;
        }
        if (in.pos == size && piece.pos < room)
            break;
        if (status == 0 && in.pos == size)
            break;
    }
    if (status != 0)
        rc = ic_fail(ICAE_EFORMAT, "%s: truncated Zstandard data (%zu bytes)", name, size);
done:
    ZSTD_freeDCtx(context);
    return rc;
}

int ic_decompress(ic_buffer *out, const void *data, size_t size, const char *name)
{
    static const unsigned char zstd_magic[4] = {0x28, 0xb5, 0x2f, 0xfd};
    const unsigned char *bytes = data;
    int rc;
    if (size >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b)
        rc = from_gzip(out, bytes, size, name);
    else if (size >= 4 && memcmp(bytes, zstd_magic, 4) == 0)
        rc = from_zstd(out, bytes, size, name);
    else
        rc = ic_buffer_add(out, data, size);
    if (rc == ICAE_ELIMIT)
        return ic_fail(rc, "%s: more than %zu bytes of text", name, out->limit);
    return rc;
}
