/*
 * encode.c - the encoder: text ids to slots.
 *
 * Every segment is a sequence of its own, [text][memory tokens], and all segments go through base +
 * LoRA as one packed batch, as many at a time as the memory bound allows (ICAE §2.2, published code v2).
 */
#include "core/core.h"

#include <string.h>

#define DEFAULT_MEMORY ((size_t)256 << 20)

struct ic_encoding {
    icae_session *session;
    const int32_t *ids;
    uint64_t tokens;
    float rate;
    int segments, next; /* next: the first that is not encoded */
    ic_encoded made;
    /* the packed batch of a step */
    int count; /* segments in it */
    int *start, *tail;
    float *pos;
    int32_t *text_row, *memory_row, *memory_from; /* rows of x for text and memory tokens */
    int text_rows, memory_rows;
};

static void encode_body(ic_run *r, void *argument)
{
    const ic_encoding *e = argument;
    const icae_adapter *a = e->session->adapter;
    const icae_model *m = e->session->model;
    ic_var x = ic_new(r, e->text_rows + e->memory_rows, m->config.width, IC_F32);
    ic_embed(r, m, x, e->text_row, e->ids + e->made.tokens, e->text_rows);
    r->be->rows(r->be, x.m, e->memory_row, a->memory, e->memory_from, e->memory_rows, 1, false);
    ic_batch b = {.seqs = e->count, .start = e->start, .pos = e->pos, .tail = e->tail};
    ic_var hidden = ic_transformer(r, m, &a->set, &b, x);
    ic_mat out = ic_mat_of(e->made.values + e->made.slots * (size_t)m->config.width, IC_F32,
                           e->memory_rows, m->config.width);
    r->be->rows(r->be, out, NULL, hidden.m, NULL, e->memory_rows, 1, false);
}

/* Lays out the next `count` segments. */
static void lay_out(ic_encoding *e, int count)
{
    const icae_adapter *a = e->session->adapter;
    e->count = count;
    e->text_rows = e->memory_rows = 0;
    int row = 0;
    for (int s = 0; s < count; s++) {
        int length = ic_segment_tokens(a, e->rate, e->tokens, e->next + s);
        int slots = ic_segment_slots(a, e->rate, length);
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

static int reserve(ic_encoding *e)
{
    const icae_adapter *a = e->session->adapter;
    size_t slots = 0, segments = (size_t)e->segments, tokens = (size_t)e->tokens;
    for (int s = 0; s < e->segments; s++)
        slots += (size_t)ic_segment_slots(a, e->rate, ic_segment_tokens(a, e->rate, e->tokens, s));
    e->start = ic_alloc(segments + 1, sizeof *e->start);
    e->tail = ic_alloc(segments, sizeof *e->tail);
    e->pos = ic_alloc(tokens + slots, sizeof *e->pos);
    e->text_row = ic_alloc(tokens, sizeof *e->text_row);
    e->memory_row = ic_alloc(slots, sizeof *e->memory_row);
    e->memory_from = ic_alloc(slots, sizeof *e->memory_from);
    e->made.values =
        ic_alloc(slots * (size_t)e->session->model->config.width, sizeof *e->made.values);
    bool ok = e->start && e->tail && e->pos && e->text_row && e->memory_row && e->memory_from &&
              e->made.values;
    return ok ? ICAE_OK : ICAE_ENOMEM;
}

int ic_encoding_new(ic_encoding **out, icae_session *s, const int32_t *ids, uint64_t tokens,
                    float rate)
{
    for (uint64_t i = 0; i < tokens; i++)
        if (ids[i] < 0 || ids[i] >= s->model->config.vocabulary)
            return ic_fail(ICAE_EINVAL, "token id %d is outside the model's vocabulary of %d",
                           ids[i], s->model->config.vocabulary);
    ic_encoding *e = ic_alloc(1, sizeof *e);
    if (!e)
        return ICAE_ENOMEM;
    *e = (ic_encoding){.session = s, .ids = ids, .tokens = tokens, .rate = rate};
    e->segments = ic_segment_count(s->adapter, rate, tokens);
    int rc = reserve(e);
    if (rc < 0)
        ic_encoding_free(e);
    else
        *out = e;
    return rc;
}

void ic_encoding_free(ic_encoding *e)
{
    if (!e)
        return;
    ic_free(e->start);
    ic_free(e->tail);
    ic_free(e->pos);
    ic_free(e->text_row);
    ic_free(e->memory_row);
    ic_free(e->memory_from);
    ic_free(e->made.values);
    ic_free(e);
}

/* As many segments as `most` tokens hold (0: all) and the memory bound allows, but at least one. */
static void choose_batch(ic_encoding *e, uint64_t most)
{
    icae_session *s = e->session;
    size_t bound = s->memory ? (size_t)s->memory : DEFAULT_MEMORY;
    int count = e->segments - e->next;
    uint64_t each = (uint64_t)ic_segment_tokens(s->adapter, e->rate, e->tokens, e->next);
    if (most)
        count = (int)IC_MIN((uint64_t)count, IC_MAX(most / each, 1));
    for (;;) {
        lay_out(e, count);
        if (count == 1 || ic_session_measure(s, encode_body, e) <= bound)
            return;
        count = (count + 1) / 2;
    }
}

int ic_encoding_step(ic_encoding *e, uint64_t most)
{
    int rc = ICAE_OK;
    icae_session *s = e->session;
    if (e->next == e->segments)
        return 0;
    choose_batch(e, most);
    if (s->progress && s->progress(s->user, "tokens", e->made.tokens, e->tokens))
        return ic_fail(ICAE_ECANCELLED, "compression was stopped");
    IC_TRY(ic_session_run(s, encode_body, e));
    e->next += e->count;
    e->made.tokens += (uint64_t)e->text_rows;
    e->made.slots += (uint64_t)e->memory_rows;
    if (e->next < e->segments)
        return 1;
    if (s->progress)
        s->progress(s->user, "tokens", e->tokens, e->tokens);
done:
    return rc;
}

const ic_encoded *ic_encoding_made(const ic_encoding *e)
{
    return &e->made;
}

int ic_encode(float **values, uint64_t *count, icae_session *s, const int32_t *ids, uint64_t tokens,
              float rate)
{
    int rc = ICAE_OK;
    ic_encoding *e = NULL;
    IC_TRY(ic_encoding_new(&e, s, ids, tokens, rate));
    do
        IC_TRY(ic_encoding_step(e, 0));
    while (rc > 0);
    *values = e->made.values;
    *count = e->made.slots;
    e->made.values = NULL;
done:
    ic_encoding_free(e);
    return rc;
}
