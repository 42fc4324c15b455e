/*
 * prompt.c - what a decoder reads: text ids, special tokens and slots, with their positions.
 *
 * Owns the rule of positions (DESIGN §1, "sequential" and "spread") on the decoder's side, and runs
 * the base without LoRA over the rows. Knows nothing of templates or of what is generated.
 */
#include "core/core.h"

#include <math.h>
#include <string.h>

void ic_prompt_begin(ic_prompt *p, const icae_session *s)
{
    *p = (ic_prompt){.session = s};
}

void ic_prompt_free(ic_prompt *p)
{
    ic_free(p->id);
    ic_free(p->slot);
    ic_free(p->pos);
    for (size_t i = 0; i < p->owned_count; i++)
        ic_free(p->owned[i]);
    ic_free(p->owned);
    *p = (ic_prompt){0};
}

static int add_row(ic_prompt *p, int32_t id, const float *slot, double pos)
{
    if (p->rows == p->capacity) {
        if (p->capacity > 1 << 29)
            return ic_fail(ICAE_ELIMIT, "the prompt has more than %d rows", p->capacity);
        size_t n = (size_t)IC_MAX(256, p->capacity * 2);
        int32_t *ids = ic_resize(p->id, n, sizeof *ids);
        p->id = ids ? ids : p->id;
        const float **slots = ic_resize(p->slot, n, sizeof *slots);
        p->slot = slots ? slots : p->slot;
        float *positions = ic_resize(p->pos, n, sizeof *positions);
        p->pos = positions ? positions : p->pos;
        if (!ids || !slots || !positions)
            return ICAE_ENOMEM;
        p->capacity = (int)n;
    }
    p->id[p->rows] = id;
    p->slot[p->rows] = slot;
    p->pos[p->rows++] = (float)pos;
    p->slots += slot != NULL;
    return ICAE_OK;
}

int ic_prompt_ids(ic_prompt *p, const int32_t *ids, size_t count)
{
    int rc = ICAE_OK, vocabulary = p->session->model->config.vocabulary;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] >= vocabulary || (ids[i] < 0 && (ids[i] < IC_FT || !p->session->adapter)))
            return ic_fail(ICAE_EINVAL, "token id %d is outside the model's vocabulary of %d",
                           ids[i], vocabulary);
        IC_TRY(add_row(p, ids[i], NULL, p->next));
        p->next += 1;
    }
done:
    return rc;
}

int ic_prompt_slots(ic_prompt *p, const icae_slots *slots, uint32_t first, uint32_t count,
                    double *start)
{
    int rc = ICAE_OK;
    size_t width = (size_t)slots->width;
    uint64_t first_slot = 0, n = 0;
    for (uint32_t s = 0; s < first; s++)
        first_slot += slots->segment[s].slots;
    for (uint32_t s = first; s < first + count; s++)
        n += slots->segment[s].slots;
    float **owned = ic_resize(p->owned, p->owned_count + 1, sizeof *owned);
    if (!owned)
        return ICAE_ENOMEM;
    p->owned = owned;
    float *values = ic_alloc(n * width, sizeof *values);
    if (!values)
        return ICAE_ENOMEM;
    p->owned[p->owned_count++] = values;
    ic_slots_get(values, slots, first_slot, n);
    if (start)
        *start = p->next;
    for (uint32_t s = first; s < first + count; s++) {
        int tokens = (int)slots->segment[s].tokens, k = (int)slots->segment[s].slots;
        bool spread = p->session->adapter->spread;
        for (int j = 0; j < k; j++, values += width)
            IC_TRY(add_row(p, IC_SLOT, values,
                           p->next + ic_slot_at(p->session->adapter, j, k, tokens)));
        p->next += spread ? tokens : k;
    }
done:
    return rc;
}

int ic_prompt_fits(const ic_prompt *p, uint64_t more, const char *what)
{
    const icae_model *m = p->session->model;
    double need = ceil(p->next) + (double)more;
    if (need <= m->config.max_positions)
        return ICAE_OK;
    return ic_fail(ICAE_ELIMIT, "%s needs %.0f positions (%d rows and %llu to come), %s has %d",
                   what, need, p->rows, (unsigned long long)more, m->path, m->config.max_positions);
}

/* ---- reading ---------------------------------------------------------------------------------- */

/* Rows of some prompts as one packed batch through the base. */
typedef struct reading {
    const icae_session *session;
    const ic_read *reads;
    int count; /* prompts */
    int *start, *tail;
    ic_kv **kv; /* NULL: no caches */
    float *pos;
    int32_t *text_row, *text_id, *special_row, *special_id;
    int texts, specials, tails;
} reading;

static void read_inputs(ic_run *r, const reading *rd, ic_var x)
{
    const icae_model *m = rd->session->model;
    if (rd->texts)
        ic_embed(r, m, x, rd->text_row, rd->text_id, rd->texts);
    if (rd->specials)
        r->be->rows(r->be, x.m, rd->special_row, rd->session->adapter->memory, rd->special_id,
                    rd->specials, 1, false);
    for (int s = 0; s < rd->count && !r->arena->measuring; s++) {
        const ic_read *one = &rd->reads[s];
        for (int i = 0; i < one->count; i++)
            if (one->prompt->slot[one->first + i])
                memcpy(ic_mat_row(x.m, (size_t)(rd->start[s] + i)),
                       one->prompt->slot[one->first + i], (size_t)x.m.cols * sizeof(float));
    }
}

/* Logits of the last row of every prompt that asks for them. */
static void last_logits(ic_run *r, const reading *rd, ic_var hidden)
{
    const icae_model *m = rd->session->model;
    int n = 0;
    size_t mark = ic_arena_mark(r->arena);
    int32_t *from = ic_arena_take(r->arena, (size_t)rd->count * sizeof *from);
    for (int s = 0, row = 0; s < rd->count; s++) {
        row += rd->tail[s];
        if (rd->reads[s].logits) {
            if (!r->arena->measuring)
                from[n] = row - 1;
            n++;
        }
    }
    if (!n)
        return;
    ic_var last = ic_new(r, n, hidden.m.cols, hidden.m.dtype);
    r->be->rows(r->be, last.m, NULL, hidden.m, from, n, 1, false);
    ic_mat logits = ic_logits(r, m, last).m;
    for (int s = 0, i = 0; s < rd->count && !r->arena->measuring; s++)
        if (rd->reads[s].logits)
            memcpy(rd->reads[s].logits, ic_mat_row(logits, (size_t)i++),
                   (size_t)m->config.vocabulary * sizeof(float));
    ic_arena_release(r->arena, mark);
}

static void score_rows(ic_run *r, const reading *rd, ic_var hidden)
{
    for (int s = 0, row = 0; s < rd->count; row += rd->tail[s++]) {
        const ic_read *one = &rd->reads[s];
        if (one->scored)
            ic_score_hidden(r, rd->session->model, ic_mat_rows(hidden.m, row, one->scored),
                            one->targets, one->scores, NULL, NULL, (ic_mat){0});
    }
}

static void read_body(ic_run *r, void *argument)
{
    const reading *rd = argument;
    const icae_model *m = rd->session->model;
    ic_var x = ic_new(r, rd->start[rd->count], m->config.width, IC_F32);
    read_inputs(r, rd, x);
    ic_batch b = {
        .seqs = rd->count, .start = rd->start, .pos = rd->pos, .tail = rd->tail, .kv = rd->kv};
    ic_var hidden = ic_transformer(r, m, NULL, &b, x);
    last_logits(r, rd, hidden);
    score_rows(r, rd, hidden);
}

/* Packs the prompts and sorts their rows by where the embeddings come from. */
static void pack(reading *rd)
{
    int row = 0;
    for (int s = 0; s < rd->count; s++) {
        const ic_read *one = &rd->reads[s];
        rd->start[s] = row;
        rd->tail[s] = IC_MAX(one->scored, 1);
        if (rd->kv)
            rd->kv[s] = one->kv;
        for (int i = one->first; i < one->first + one->count; i++, row++) {
            int32_t id = one->prompt->id[i];
            rd->pos[row] = one->prompt->pos[i];
            if (id >= 0) {
                rd->text_row[rd->texts] = row;
                rd->text_id[rd->texts++] = id;
            } else if (id >= IC_FT) { /* [AE], [LM], [FT] follow the k memory tokens */
                rd->special_row[rd->specials] = row;
                rd->special_id[rd->specials++] = rd->session->adapter->k - 1 - id;
            }
        }
    }
    rd->start[rd->count] = row;
}

int ic_read_rows(icae_session *s, const ic_read *reads, int count)
{
    int rc = ICAE_OK;
    size_t rows = 0, seqs = (size_t)count;
    for (int i = 0; i < count; i++)
        rows += (size_t)reads[i].count;
    reading rd = {.session = s, .reads = reads, .count = count};
    /* one allocation: this runs once a generated token */
    char *memory = ic_alloc(
        rows * 5 * sizeof(int32_t) + (2 * seqs + 1) * sizeof(int) + seqs * sizeof *rd.kv, 1);
    if (!memory)
        return ICAE_ENOMEM;
    rd.kv = (ic_kv **)(void *)memory;
    rd.start = (int *)(void *)(rd.kv + seqs);
    rd.tail = rd.start + seqs + 1;
    rd.pos = (float *)(void *)(rd.tail + seqs);
    rd.text_row = (int32_t *)(void *)(rd.pos + rows);
    rd.text_id = rd.text_row + rows;
    rd.special_row = rd.text_id + rows;
    rd.special_id = rd.special_row + rows;
    if (!reads[0].kv)
        rd.kv = NULL;
    pack(&rd);
    for (int i = 0; i < count && rd.kv; i++) {
        ic_kv *kv = reads[i].kv;
        if (kv->rows + reads[i].count > kv->capacity)
            IC_TRY(ic_kv_grow(kv, IC_MAX(kv->capacity * 2, kv->rows + reads[i].count)));
    }
    IC_TRY(ic_session_run(s, read_body, &rd));
    for (int i = 0; i < count && rd.kv; i++)
        reads[i].kv->rows += reads[i].count;
done:
    ic_free(memory);
    return rc;
}

int ic_prompt_read(icae_session *s, const ic_prompt *p, int first, int count, ic_kv *kv,
                   const int32_t *targets, int scored, ic_score *scores, float *logits)
{
    int rc = ICAE_OK, end = first + count;
    ic_kv *own = NULL;
    if (!kv && count > IC_READ_CHUNK)
        IC_TRY(ic_kv_new(&own, &s->model->config, s->act, count));
    for (int at = first; at < end;) {
        int n = IC_MIN(IC_READ_CHUNK, end - at), last = at + n,
            score_from = IC_MAX(at, end - scored);
        ic_read one = {.prompt = p,
                       .first = at,
                       .count = n,
                       .kv = kv ? kv : own,
                       .scored = IC_MAX(0, last - score_from),
                       .logits = last == end ? logits : NULL};
        if (one.scored) {
            one.targets = targets + (score_from - (end - scored));
            one.scores = scores + (score_from - (end - scored));
        }
        IC_TRY(ic_read_rows(s, &one, 1));
        at = last;
        if (s->progress && count > IC_READ_CHUNK &&
            s->progress(s->user, "rows", (uint64_t)(last - first), (uint64_t)count)) {
            rc = ic_fail(ICAE_ECANCELLED, "reading the prompt was stopped");
            goto done;
        }
    }
done:
    ic_kv_free(own);
    return rc;
}
