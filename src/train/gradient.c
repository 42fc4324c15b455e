/*
 * gradient.c - losses and gradients of packed examples.
 *
 * All segments of all examples go through base + LoRA as one batch; their slots, with what stands
 * before and after them, go through the base (+ LoRA, if the adapter is of both) as a second one; the
 * head sees only rows with loss, some at a time. Then the same backwards (model/tape.h). What a teacher
 * says is asked first: the base without LoRA reads texts themselves, as a third batch. Owns the layout
 * of the batches; knows nothing of optimisers or data.
 */
#include "model/tape.h"
#include "train/train.h"

#include <string.h>

/* Rows of one input matrix and where each comes from. */
typedef struct source {
    int32_t *row, *from;
    int count;
} source;

/* One of the batches. */
typedef struct side {
    int *start, *tail;
    float *pos;
    int seqs, rows, tails;
    source text, table; /* rows that are token embeddings; rows of the memory table */
} side;

typedef struct work {
    icae_session *session;
    const ic_params *params;
    const ic_example *examples;
    const ic_gradient_options *options;
    ic_lora_set lora; /* with dropout */
    side encoder, decoder, teacher;
    source slots; /* decoder's rows that are the encoder's results, in order */
    int32_t *targets;
    float *weights; /* of each target */
    ic_score *scores;
    int32_t *taught;        /* the teacher's row of each target; 0 where it has none, */
    float *teacher_weights; /* and then this is 0 */
    ic_tape *tape[2];       /* encoder, decoder; NULL: forward only */
} work;

/* ---- layout ----------------------------------------------------------------------------------- */

/* Counts first; then, with memory, writes. */
static void put(source *s, int row, int32_t from)
{
    if (s->row) {
        s->row[s->count] = row;
        s->from[s->count] = from;
    }
    s->count++;
}

static void put_pos(side *d, double pos)
{
    if (d->pos)
        d->pos[d->rows] = (float)pos;
    d->rows++;
}

static void end_sequence(side *d, int tail)
{
    if (d->start) {
        d->start[d->seqs + 1] = d->rows;
        d->tail[d->seqs] = tail;
    }
    d->seqs++;
    d->tails += tail;
}

/* A text id or special token. */
static void put_id(const work *w, side *d, int32_t id, double pos)
{
    if (id >= 0)
        put(&d->text, d->rows, id);
    else
        put(&d->table, d->rows, w->params->adapter->k - 1 - id);
    put_pos(d, pos);
}

static float rate_of(const work *w, const ic_example *e)
{
    return e->rate > 0 ? e->rate : w->params->adapter->rate;
}

/* [text][memory tokens] of every segment; core/encode.c has the same for compression. */
static void lay_segment(work *w, const int32_t *ids, int tokens, int slots)
{
    const icae_adapter *a = w->params->adapter;
    side *d = &w->encoder;
    for (int i = 0; i < tokens; i++)
        put_id(w, d, ids[i], i);
    for (int j = 0; j < slots; j++) {
        put(&d->table, d->rows, j);
        put_pos(d, (a->spread ? 0 : tokens) + ic_slot_at(a, j, slots, tokens));
    }
    end_sequence(d, slots);
}

/* before, slots, after but for its last id, which predicts nothing. */
static void lay_example(work *w, const ic_example *e)
{
    const icae_adapter *a = w->params->adapter;
    side *d = &w->decoder;
    float rate = rate_of(w, e);
    double next = 0;
    for (int i = 0; i < e->before_count; i++)
        put_id(w, d, e->before[i], next++);
    double start = next;
    int segments = ic_segment_count(a, rate, (uint64_t)e->tokens);
    const int32_t *ids = e->context;
    for (int s = 0; s < segments; s++) {
        int tokens = ic_segment_tokens(a, rate, (uint64_t)e->tokens, s);
        int slots = ic_segment_slots(a, rate, tokens);
        lay_segment(w, ids, tokens, slots);
        for (int j = 0; j < slots; j++) {
            put(&w->slots, d->rows, w->slots.count);
            put_pos(d, next + ic_slot_at(a, j, slots, tokens));
        }
        next += a->spread ? tokens : slots;
        ids += tokens;
    }
    if (a->spread && e->after[0] == IC_AE)
        next = start - 1; /* restored text stands where the text stood */
    for (int i = 0; i + 1 < e->after_count; i++)
        put_id(w, d, e->after[i], next++);
    int scored = e->after_count - e->unscored;
    bool taught = e->full && w->options->distill > 0 && !w->options->forward_only;
    for (int i = 0; i < scored && w->targets; i++) {
        int n = d->tails + i;
        w->targets[n] = e->after[e->unscored + i];
        w->weights[n] = e->weight;
        w->taught[n] = taught ? w->teacher.tails + i : 0;
        w->teacher_weights[n] = taught ? e->weight * w->options->distill : 0;
    }
    end_sequence(d, scored);
    for (int i = 0; i < e->full_count && taught; i++)
        put_id(w, &w->teacher, e->full[i], i);
    if (taught)
        end_sequence(&w->teacher, scored);
}

/* Up to a number that comes again: at most 1.6% more. */
static int round_number(int n)
{
    int unit = 1;
    while (128 * unit <= n)
        unit *= 2;
    return (n + unit - 1) / unit * unit;
}

/* One more sequence, of token 0 and without effect, makes rows and tail rows round numbers: products
 * are planned by shape, and no plan would serve twice if every batch had its own number of rows. Where
 * no example has slots, it is all that the encoder reads. */
static void lay_padding(work *w, side *d)
{
    int tail = IC_MAX(round_number(d->tails), 1) - d->tails;
    int rows = round_number(d->rows + tail) - d->rows;
    for (int i = 0; i < rows; i++)
        put_id(w, d, 0, i);
    if (rows)
        end_sequence(d, tail); /* targets and weights there are zero */
}

static void lay_out(work *w, int count)
{
    side *sides[] = {&w->encoder, &w->decoder, &w->teacher};
    for (int i = 0; i < 3; i++)
        sides[i]->seqs = sides[i]->rows = sides[i]->tails = sides[i]->text.count =
            sides[i]->table.count = 0;
    w->slots.count = 0;
    for (int i = 0; i < count; i++)
        lay_example(w, &w->examples[i]);
    for (int i = 0; i < 3; i++)
        if (sides[i] != &w->teacher || w->teacher.seqs)
            lay_padding(w, sides[i]);
}

static bool source_new(source *s)
{
    size_t n = (size_t)IC_MAX(s->count, 1);
    s->row = ic_alloc(n, sizeof *s->row);
    s->from = ic_alloc(n, sizeof *s->from);
    return s->row && s->from;
}

static bool side_new(side *d)
{
    d->start = ic_alloc((size_t)d->seqs + 1, sizeof *d->start);
    d->tail = ic_alloc((size_t)IC_MAX(d->seqs, 1), sizeof *d->tail);
    d->pos = ic_alloc((size_t)IC_MAX(d->rows, 1), sizeof *d->pos);
    return d->start && d->tail && d->pos && source_new(&d->text) && source_new(&d->table);
}

static void source_free(source *s)
{
    ic_free(s->row);
    ic_free(s->from);
}

static void side_free(side *d)
{
    ic_free(d->start);
    ic_free(d->tail);
    ic_free(d->pos);
    source_free(&d->text);
    source_free(&d->table);
}

static int check_ids(const work *w, const int32_t *ids, int count, int32_t least)
{
    int vocabulary = w->params->model->config.vocabulary;
    for (int i = 0; i < count; i++)
        if (ids[i] < least || ids[i] >= vocabulary)
            return ic_fail(ICAE_EINVAL, "token id %d is outside the model's vocabulary of %d",
                           ids[i], vocabulary);
    return ICAE_OK;
}

static int check_example(const work *w, const ic_example *e)
{
    int rc = ICAE_OK;
    if (e->tokens < 0 || e->unscored < 0 || e->after_count <= e->unscored ||
        e->unscored + e->before_count + e->tokens < 1)
        return ic_fail(ICAE_EINVAL,
                       "an example needs at least one target, and something before it: it has %d "
                       "tokens and %d targets",
                       e->tokens, e->after_count - e->unscored);
    IC_TRY(check_ids(w, e->context, e->tokens, 0));
    IC_TRY(check_ids(w, e->before, e->before_count, IC_FT));
    IC_TRY(check_ids(w, e->after, e->unscored, IC_FT));
    IC_TRY(check_ids(w, e->after + e->unscored, e->after_count - e->unscored, 0));
    if (e->full && e->full_count < e->after_count - e->unscored)
        return ic_fail(ICAE_EINVAL, "a teacher reads %d ids, fewer than the %d targets",
                       e->full_count, e->after_count - e->unscored);
    IC_TRY(check_ids(w, e->full, e->full ? e->full_count : 0, 0));
done:
    return rc;
}

/* ---- the passes ------------------------------------------------------------------------------- */

static void put_rows(ic_run *r, ic_mat x, const source *to, ic_mat from)
{
    if (to->count)
        r->be->rows(r->be, x, to->row, from, to->from, to->count, 1, false);
}

/* Gradient of the memory table from that of an input matrix. */
static void table_back(ic_run *r, const work *w, const source *s, ic_mat dx)
{
    ic_mat table = w->params->adapter->memory;
    size_t offset = (size_t)((float *)table.data - w->params->p);
    table.data = w->params->g + offset;
    if (s->count)
        r->be->rows(r->be, table, s->from, dx, s->row, s->count, 1, true);
}

static ic_var run_side(ic_run *r, const work *w, const side *d, const ic_batch *b, ic_mat slots)
{
    const icae_model *m = w->params->model;
    ic_var x = ic_new(r, d->rows, m->config.width, IC_F32);
    if (d->text.count)
        ic_embed(r, m, x, d->text.row, d->text.from, d->text.count);
    put_rows(r, x.m, &d->table, w->params->adapter->memory);
    if (slots.data)
        put_rows(r, x.m, &w->slots, slots);
    if (w->tape[0])
        ic_tape_begin(r, w->tape[slots.data != NULL]);
    bool plain = slots.data && !w->params->adapter->both;
    return ic_transformer(r, m, plain ? NULL : &w->lora, b, x);
}

static ic_batch batch_of(const side *d)
{
    return (ic_batch){.seqs = d->seqs, .start = d->start, .pos = d->pos, .tail = d->tail};
}

/* The teacher's hidden state for every target. */
static ic_mat ask_teacher(ic_run *r, const work *w)
{
    const icae_model *m = w->params->model;
    const side *d = &w->teacher;
    ic_batch b = batch_of(d);
    ic_mat hidden = ic_new(r, w->decoder.tails, m->config.width, r->act).m;
    size_t mark = ic_arena_mark(r->arena);
    ic_var x = ic_new(r, d->rows, m->config.width, IC_F32);
    ic_embed(r, m, x, d->text.row, d->text.from, d->text.count);
    ic_mat all = ic_transformer(r, m, NULL, &b, x).m;
    r->be->rows(r->be, hidden, NULL, all, w->taught, hidden.rows, 1, false);
    ic_arena_release(r->arena, mark);
    return hidden;
}

static void pass(ic_run *r, void *argument)
{
    const work *w = argument;
    int width = w->params->model->config.width;
    ic_teacher teacher = {.weights = w->teacher_weights};
    if (w->teacher.seqs)
        teacher.hidden = ask_teacher(r, w);
    ic_batch encoder = batch_of(&w->encoder), decoder = batch_of(&w->decoder);
    ic_mat slots = run_side(r, w, &w->encoder, &encoder, (ic_mat){0}).m;
    ic_mat dslots = {0}, dhidden = {0};
    if (w->tape[0]) {
        dslots = ic_new(r, w->encoder.tails, width, IC_F32).m;
        dhidden = ic_new(r, w->decoder.tails, width, IC_F32).m;
    }
    size_t mark = ic_arena_mark(r->arena);
    ic_mat hidden = run_side(r, w, &w->decoder, &decoder, slots).m;
    ic_score_hidden(r, w->params->model, hidden, w->targets, w->scores, w->weights,
                    w->teacher.seqs ? &teacher : NULL, dhidden);
    if (!w->tape[0])
        return;
    ic_mat dx = ic_tape_back(r, dhidden);
    r->be->rows(r->be, dslots, NULL, dx, w->slots.row, w->slots.count, 1, false);
    if (!r->be->counting) /* padding */
        memset(ic_mat_row(dslots, (size_t)w->slots.count), 0,
               (size_t)(w->encoder.tails - w->slots.count) * (size_t)width * sizeof(float));
    table_back(r, w, &w->decoder.table, dx);
    ic_arena_release(r->arena, mark);
    r->tape = w->tape[0];
    dx = ic_tape_back(r, dslots);
    table_back(r, w, &w->encoder.table, dx);
}

/* ---- the call --------------------------------------------------------------------------------- */

static int work_new(work *w, int count)
{
    int rc = ICAE_OK;
    const ic_gradient_options *o = w->options;
    int layers = w->params->model->config.layers;
    uint32_t random[4];
    for (int i = 0; i < count; i++)
        IC_TRY(check_example(w, &w->examples[i]));
    lay_out(w, count);
    size_t n = (size_t)w->decoder.tails;
    w->targets = ic_alloc(n, sizeof *w->targets);
    w->weights = ic_alloc(n, sizeof *w->weights);
    w->scores = ic_alloc(n, sizeof *w->scores);
    w->taught = ic_alloc(n, sizeof *w->taught);
    w->teacher_weights = ic_alloc(n, sizeof *w->teacher_weights);
    if (!w->targets || !w->weights || !w->scores || !w->taught || !w->teacher_weights ||
        !side_new(&w->encoder) || !side_new(&w->decoder) || !side_new(&w->teacher) ||
        !source_new(&w->slots))
        return ICAE_ENOMEM;
    lay_out(w, count);
    for (int i = 0; i < 2 && !o->forward_only; i++)
        IC_TRY(ic_tape_new(&w->tape[i], o->recompute, layers + 1));
    w->lora = w->params->adapter->set;
    w->lora.dropout = o->dropout;
    ic_random_block(random, o->seed, IC_STREAM_DROPOUT, o->step);
    w->lora.seed = (uint64_t)random[1] << 32 | random[0];
done:
    return rc;
}

static void work_free(work *w)
{
    side_free(&w->encoder);
    side_free(&w->decoder);
    side_free(&w->teacher);
    source_free(&w->slots);
    ic_free(w->targets);
    ic_free(w->weights);
    ic_free(w->scores);
    ic_free(w->taught);
    ic_free(w->teacher_weights);
    ic_tape_free(w->tape[0]);
    ic_tape_free(w->tape[1]);
}

static void report(const work *w, int count, double *nll_sum, int *right, int *prefix)
{
    const ic_score *score = w->scores;
    const int32_t *target = w->targets;
    for (int i = 0; i < count; i++) {
        int n = w->examples[i].after_count - w->examples[i].unscored, good = 0, first = 0;
        double sum = 0;
        for (int j = 0; j < n; j++, score++, target++) {
            sum += (double)score->nll;
            if (score->best == *target) {
                first += first == j;
                good++;
            }
        }
        nll_sum[i] = sum;
        if (right)
            right[i] = good;
        if (prefix)
            prefix[i] = first;
    }
}

int ic_gradients(icae_session *s, ic_params *params, const ic_example *examples, int count,
                 const ic_gradient_options *options, double *nll_sum, int *right, int *prefix)
{
    int rc = ICAE_OK;
    work w = {.session = s, .params = params, .examples = examples, .options = options};
    if (count < 1)
        return ic_fail(ICAE_EINVAL, "no examples were given");
    IC_TRY(work_new(&w, count));
    IC_TRY(ic_session_run(s, pass, &w));
    report(&w, count, nll_sum, right, prefix);
done:
    work_free(&w);
    return rc;
}

size_t ic_gradients_measure(icae_session *s, ic_params *params, const ic_example *examples,
                            int count, const ic_gradient_options *options)
{
    size_t bytes = 0;
    work w = {.session = s, .params = params, .examples = examples, .options = options};
    if (count > 0 && work_new(&w, count) == ICAE_OK)
        bytes = ic_session_measure(s, pass, &w);
    work_free(&w);
    return bytes;
}
