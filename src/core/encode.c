/*
 * encode.c - the encoder: text ids to slots.
 *
 * Every segment is a sequence of its own, [text][memory tokens], and all segments go through base +
 * LoRA as one packed batch, as many at a time as the memory bound allows (ICAE §2.2, published code v2).
 */
#include "core/core.h"

#include <string.h>

#define DEFAULT_MEMORY ((size_t)256 << 20)

/* Segments first … first + count - 1 as one packed batch. */
typedef struct encoding {
    const icae_session *session;
    int count;         /* segments in this batch */
    int *start, *tail; /* of the packed batch */
    float *pos;
    int32_t *text_row, *memory_row, *memory_from; /* rows of x for text and memory tokens */
    int text_rows, memory_rows;
    const int32_t *text; /* ids of the batch's first segment on */
    float *slots;        /* all slots of the text, owned until handed out */
    size_t first_slot;   /* of this batch */
} encoding;

static void encode_body(ic_run *r, void *argument)
{
    const encoding *e = argument;
    const icae_adapter *a = e->session->adapter;
    const icae_model *m = e->session->model;
    ic_var x = ic_new(r, e->text_rows + e->memory_rows, m->config.width, IC_F32);
    ic_embed(r, m, x, e->text_row, e->text, e->text_rows);
    r->be->rows(r->be, x.m, e->memory_row, a->memory, e->memory_from, e->memory_rows, 1, false);
    ic_batch b = {.seqs = e->count, .start = e->start, .pos = e->pos, .tail = e->tail};
    ic_var hidden = ic_transformer(r, m, &a->set, &b, x);
    ic_mat out = ic_mat_of(e->slots + e->first_slot * (size_t)m->config.width, IC_F32,
                           e->memory_rows, m->config.width);
    r->be->rows(r->be, out, NULL, hidden.m, NULL, e->memory_rows, 1, false);
}

/* Lays out segments first … first + count - 1 of a text. */
static void lay_out(encoding *e, uint64_t tokens, float rate, int first, int count)
{
    const icae_adapter *a = e->session->adapter;
    e->count = count;
    e->text_rows = e->memory_rows = 0;
    int row = 0;
    for (int s = 0; s < count; s++) {
        int length = ic_segment_tokens(a, rate, tokens, first + s);
        int slots = ic_segment_slots(a, rate, length);
        e->start[s] = row;
        e->tail[s] = slots;
        for (int i = 0; i < length; i++) {
            e->pos[row] = (float)i;
            e->text_row[e->text_rows++] = row++;
        }
        for (int j = 0; j < slots; j++) {
            e->pos[row] = (float)((a->spread ? 0 : length) + ic_slot_at(a, j, slots, length));
            e->memory_from[e->memory_rows] = j;
            e->memory_row[e->memory_rows++] = row++;
        }
    }
    e->start[count] = row;
}

static int encoding_new(encoding *e, uint64_t tokens, float rate, int segments)
{
    const icae_adapter *a = e->session->adapter;
    size_t slots = 0;
    for (int s = 0; s < segments; s++)
        slots += (size_t)ic_segment_slots(a, rate, ic_segment_tokens(a, rate, tokens, s));
    size_t rows = (size_t)tokens + slots;
    e->start = ic_alloc((size_t)segments + 1, sizeof *e->start);
    e->tail = ic_alloc((size_t)segments, sizeof *e->tail);
    e->pos = ic_alloc(rows, sizeof *e->pos);
    e->text_row = ic_alloc((size_t)tokens, sizeof *e->text_row);
    e->memory_row = ic_alloc(slots, sizeof *e->memory_row);
    e->memory_from = ic_alloc(slots, sizeof *e->memory_from);
    e->slots = ic_alloc(slots * (size_t)e->session->model->config.width, sizeof *e->slots);
    bool ok =
        e->start && e->tail && e->pos && e->text_row && e->memory_row && e->memory_from && e->slots;
    return ok ? ICAE_OK : ICAE_ENOMEM;
}

static void encoding_free(encoding *e)
{
    ic_free(e->start);
    ic_free(e->tail);
    ic_free(e->pos);
    ic_free(e->text_row);
    ic_free(e->memory_row);
    ic_free(e->memory_from);
    ic_free(e->slots);
}

/* The most segments from `first` on whose batch stays within the memory bound; at least one. */
static int batch_size(icae_session *s, encoding *e, uint64_t tokens, float rate, int first,
                      int left)
{
    size_t bound = s->memory ? (size_t)s->memory : DEFAULT_MEMORY;
    int count = left;
    for (;;) {
        lay_out(e, tokens, rate, first, count);
        if (count == 1 || ic_session_measure(s, encode_body, e) <= bound)
            return count;
        count = (count + 1) / 2;
    }
}

int ic_encode(float **values, uint64_t *slot_count, icae_session *s, const int32_t *ids,
              uint64_t tokens, float rate)
{
    int rc = ICAE_OK;
    encoding e = {.session = s, .text = ids};
    for (uint64_t i = 0; i < tokens; i++)
        if (ids[i] < 0 || ids[i] >= s->model->config.vocabulary)
            return ic_fail(ICAE_EINVAL, "token id %d is outside the model's vocabulary of %d",
                           ids[i], s->model->config.vocabulary);
    int segments = ic_segment_count(s->adapter, rate, tokens);
    IC_TRY(encoding_new(&e, tokens, rate, segments));
    uint64_t done = 0;
    for (int first = 0, count; first < segments; first += count) {
        count = batch_size(s, &e, tokens, rate, first, segments - first);
        if (s->progress && s->progress(s->user, "tokens", done, tokens)) {
            rc = ic_fail(ICAE_ECANCELLED, "compression was stopped");
            goto done;
        }
        IC_TRY(ic_session_run(s, encode_body, &e));
        done += (uint64_t)e.text_rows;
        e.text += e.text_rows;
        e.first_slot += (size_t)e.memory_rows;
    }
    if (s->progress)
        s->progress(s->user, "tokens", tokens, tokens);
    *values = e.slots;
    *slot_count = e.first_slot;
    e.slots = NULL;
done:
    encoding_free(&e);
    return rc;
}
