/*
 * stream.c - text as ids arrive, in whole characters.
 *
 * Keeps the ids whose text is not final: those behind the last place where the decoder chain has no
 * memory. Their text is decoded anew with every id, what was given out before is skipped. A run of
 * byte tokens is held back as a whole, since decoding looks at it as a whole; chains that look
 * further (BPEDecoder, a Replace over everything) give their text at the end.
 */
#include "text/internal.h"

#include <string.h>

#define PATIENCE 64 /* ids without any text before decoding is tried less often */

void ic_stream_begin(ic_stream_decoder *s, const ic_tokenizer *t, bool skip_special)
{
    *s = (ic_stream_decoder){.tokenizer = t, .skip_special = skip_special};
}

void ic_stream_free(ic_stream_decoder *s)
{
    ic_ids_free(&s->ids);
    ic_buffer_free(&s->text);
    ic_stream_begin(s, s->tokenizer, s->skip_special);
}

static int decode(size_t *open, ic_stream_decoder *s, const int32_t *ids, size_t count, bool last)
{
    s->text.size = 0;
    return ic_decoders_run(&s->text, s->tokenizer, ids, count, s->skip_special,
                           (ic_decode_part){.first = !s->started, .last = last, .open = open});
}

/* A character is open at the end: only the last ids have a part in it. */
static int forget_closed(ic_stream_decoder *s, size_t open)
{
    const size_t keep = 4; /* a character has at most 4 bytes */
    size_t open_now, size = s->text.size;
    if (s->ids.count <= 2 * keep || size == 0)
        return ICAE_OK;
    ic_buffer text = s->text; /* belongs to the caller until the next call */
    bool started = s->started;
    s->text = (ic_buffer){0};
    s->started = true;
    int rc = decode(&open_now, s, s->ids.ids + s->ids.count - keep, keep, false);
    if (rc >= 0 && open_now == open) {
        memmove(s->ids.ids, s->ids.ids + s->ids.count - keep, keep * sizeof *s->ids.ids);
        s->ids.count = keep;
        s->given = s->text.size;
    } else {
        s->started = started; /* ids without bytes among them */
    }
    ic_buffer_free(&s->text);
    s->text = text;
    return rc;
}

static int give(ic_stream_decoder *s, const char **piece, size_t *size, bool last)
{
    size_t open = 0;
    int rc = decode(&open, s, s->ids.ids, s->ids.count, last);
    if (rc < 0)
        return rc;
    if (s->text.size > s->given) {
        *piece = s->text.data + s->given;
        *size = s->text.size - s->given;
    }
    s->given = s->text.size;
    s->fruitless = s->text.size ? 0 : s->fruitless + 1;
    if (last || (open == 0 && (s->started || s->text.size > 0))) {
        s->ids.count = 0;
        s->given = 0;
        s->started = !last;
        return ICAE_OK;
    }
    return open ? forget_closed(s, open) : ICAE_OK;
}

int ic_stream_add(ic_stream_decoder *s, int32_t id, const char **piece, size_t *size)
{
    size_t length;
    *piece = "";
    *size = 0;
    if (!ic_decode_source(s->tokenizer, id, s->skip_special, &length))
        return ICAE_OK;
    int rc = ic_ids_add(&s->ids, id);
    if (rc < 0 || !ic_decoders_can_stream(s->tokenizer))
        return rc;
    bool first = !s->started && s->ids.count == 1;
    int byte = ic_decoders_is_byte(s->tokenizer, id, first);
    if (byte != 0)
        return byte < 0 ? byte : ICAE_OK;
    if (s->fruitless > PATIENCE && (s->ids.count & (s->ids.count - 1)) != 0)
        return ICAE_OK;
    return give(s, piece, size, false);
}

int ic_stream_end(ic_stream_decoder *s, const char **piece, size_t *size)
{
    *piece = "";
    *size = 0;
    return s->ids.count ? give(s, piece, size, true) : ICAE_OK;
}
