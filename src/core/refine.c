/*
 * refine.c - slots are improved against the decoder: gradient descent on the vectors of one text.
 *
 * The encoder makes slots in one pass over texts it has not seen; the frozen decoder could read more
 * from as many vectors (Kuratov et al. 2025, arXiv 2502.13063, have 1,500 tokens in one). So each span,
 * starting from the encoder's slots, takes some steps of Adam on the loss of restoring it. Vectors are
 * rounded to the slots' type in every pass, so the loss is that of what will be stored. Knows nothing of
 * training: the base and the adapter stay as they are.
 */
#include "core/fidelity.h"
#include "model/tape.h"

#include <math.h>
#include <string.h>

/* A step is this share of the vectors' root mean square at first, and falls linearly. */
#define STEP 0.04

#define DEFAULT_MEMORY ((size_t)1 << 30)

struct ic_refinement {
    icae_session *session;
    icae_slots *slots;
    const int32_t *ids;
    int steps;
    /* the span at work */
    ic_span span;
    ic_prompt prompt;
    ic_tape *tape; /* NULL in a pass that only measures */
    int step;
    size_t values;  /* of the span's slots */
    uint64_t first; /* of its slots */
    float *memory, *x, *best, *m, *v,
        *dx;            /* [values]: the vectors, the best ones, Adam's, gradient */
    double scale, loss; /* size of the first step; lowest loss */
    ic_score *scores;   /* [span.tokens] */
    float *weights;     /* likewise */
};

/* ---- a pass ----------------------------------------------------------------------------------- */

/* [slots][AE][text but for its last token] through the base, its loss, and back. */
static void pass(ic_run *r, void *argument)
{
    const ic_refinement *f = argument;
    const icae_model *m = f->session->model;
    const icae_adapter *a = f->session->adapter;
    const ic_prompt *p = &f->prompt;
    int width = m->config.width, tokens = (int)f->span.tokens, slots = p->slots;
    int start[] = {0, p->rows};
    ic_batch b = {.seqs = 1, .start = start, .pos = p->pos, .tail = &tokens};
    const int32_t *ids = f->ids + f->span.first_token, ae = a->k - 1 - IC_AE;
    ic_var x = ic_new(r, p->rows, width, IC_F32);
    r->be->rows(r->be, ic_mat_rows(x.m, 0, slots), NULL,
                ic_mat_of(p->owned[0], IC_F32, slots, width), NULL, slots, 1, false);
    r->be->rows(r->be, ic_mat_rows(x.m, slots, 1), NULL, a->memory, &ae, 1, 1, false);
    ic_var text = {ic_mat_rows(x.m, slots + 1, tokens - 1), 0};
    if (tokens > 1)
        ic_embed(r, m, text, NULL, ids, tokens - 1);
    if (f->tape)
        ic_tape_begin(r, f->tape);
    ic_mat hidden = ic_transformer(r, m, NULL, &b, x).m, dhidden = {0};
    if (f->tape)
        dhidden = ic_new(r, tokens, width, IC_F32).m;
    ic_score_hidden(r, m, hidden, ids, f->scores, f->weights, NULL, dhidden);
    if (!f->tape)
        return;
    ic_mat dx = ic_mat_rows(ic_tape_back(r, dhidden), 0, slots);
    r->be->rows(r->be, ic_mat_of(f->dx, IC_F32, slots, width), NULL, dx, NULL, slots, 1, false);
}

/* The tape that keeps most within the memory bound. */
static int choose_tape(ic_refinement *f)
{
    icae_session *s = f->session;
    size_t bound = s->memory ? (size_t)s->memory : DEFAULT_MEMORY;
    for (int tier = 0;; tier++) {
        int rc = ic_tape_new(&f->tape, tier, s->model->config.layers + 1);
        if (rc < 0 || tier == 3 || ic_session_measure(s, pass, f) <= bound)
            return rc;
        ic_tape_free(f->tape);
        f->tape = NULL;
    }
}

/* ---- a span ----------------------------------------------------------------------------------- */

static void end_span(ic_refinement *f)
{
    ic_prompt_free(&f->prompt);
    ic_tape_free(f->tape);
    ic_free(f->memory);
    ic_free(f->scores);
    ic_free(f->weights);
    f->tape = NULL;
    f->memory = f->weights = NULL;
    f->scores = NULL;
}

static int begin_span(ic_refinement *f)
{
    int rc = ICAE_OK;
    size_t tokens = (size_t)f->span.tokens;
    const int32_t *ids = f->ids + f->span.first_token;
    IC_TRY(ic_span_prompt(&f->prompt, f->session, f->slots, &f->span));
    IC_TRY(ic_prompt_fits(&f->prompt, f->span.tokens, "refining"));
    size_t n = f->values = (size_t)f->prompt.slots * (size_t)f->slots->width;
    IC_TRY(ic_prompt_ids(&f->prompt, ids, tokens - 1));
    f->memory = ic_alloc(5 * n, sizeof *f->memory);
    f->scores = ic_alloc(tokens, sizeof *f->scores);
    f->weights = ic_alloc(tokens, sizeof *f->weights);
    if (!f->memory || !f->scores || !f->weights)
        return ICAE_ENOMEM;
    f->x = f->memory;
    f->best = f->x + n;
    f->m = f->best + n;
    f->v = f->m + n;
    f->dx = f->v + n;
    double squares = 0;
    memcpy(f->x, f->prompt.owned[0], n * sizeof *f->x);
    memcpy(f->best, f->x, n * sizeof *f->x);
    for (size_t i = 0; i < n; i++)
        squares += (double)f->x[i] * (double)f->x[i];
    for (size_t i = 0; i < tokens; i++)
        f->weights[i] = 1 / (float)tokens;
    f->scale = STEP * sqrt(squares / (double)n);
    f->loss = INFINITY;
    f->step = 0;
    IC_TRY(choose_tape(f));
done:
    return rc;
}

/* Vectors become the span's slots, and what the decoder reads. */
static void store(ic_refinement *f, const float *x)
{
    ic_slots_put(f->slots, f->first, x, (uint64_t)f->prompt.slots);
    ic_slots_get(f->prompt.owned[0], f->slots, f->first, (uint64_t)f->prompt.slots);
}

/* Adam (Kingma & Ba 2015) with moments that forget quickly: there are few steps. */
static void adam(ic_refinement *f)
{
    const double beta1 = 0.5, beta2 = 0.9;
    int t = f->step + 1;
    double rate = f->scale * (1 - (double)f->step / (f->steps + 1));
    double one = 1 / (1 - pow(beta1, t)), two = 1 / (1 - pow(beta2, t));
    for (size_t i = 0; i < f->values; i++) {
        double g = (double)f->dx[i];
        f->m[i] = (float)(beta1 * (double)f->m[i] + (1 - beta1) * g);
        f->v[i] = (float)(beta2 * (double)f->v[i] + (1 - beta2) * g * g);
        f->x[i] -= (float)(rate * one * (double)f->m[i] / (sqrt(two * (double)f->v[i]) + 1e-12));
    }
}

/* ---- the call --------------------------------------------------------------------------------- */

int ic_refinement_new(ic_refinement **out, icae_session *s, icae_slots *slots, const int32_t *ids,
                      int steps)
{
    ic_refinement *f = ic_alloc(1, sizeof *f);
    if (!f)
        return ICAE_ENOMEM;
    slots->refined = (uint32_t)steps;
    *f = (ic_refinement){.session = s, .slots = slots, .ids = ids, .steps = steps};
    *out = f;
    return ICAE_OK;
}

void ic_refinement_free(ic_refinement *f)
{
    if (!f)
        return;
    end_span(f);
    ic_free(f);
}

uint64_t ic_refinement_done(const ic_refinement *f)
{
    uint64_t at = f->span.first_token;
    return f->memory ? at + f->span.tokens * (uint64_t)f->step / (uint64_t)(f->steps + 1)
                     : at + f->span.tokens;
}

int ic_refinement_step(ic_refinement *f)
{
    int rc = ICAE_OK;
    icae_slots *slots = f->slots;
    if (!f->memory) {
        f->first += (uint64_t)(f->values / (size_t)slots->width);
        if (!ic_span_at(&f->span, slots, f->span.first_segment + f->span.segments))
            return 0;
        IC_TRY(begin_span(f));
    }
    if (f->step == f->steps) {
        ic_tape_free(f->tape);
        f->tape = NULL;
    }
    IC_TRY(ic_session_run(f->session, pass, f));
    const int32_t *ids = f->ids + f->span.first_token;
    icae_fidelity now = {0};
    bool sure = true;
    ic_fidelity_add(&now, f->scores, ids, f->span.tokens);
    for (uint64_t i = 0; i < f->span.tokens; i++)
        sure = sure && !ic_score_doubtful(&f->scores[i], ids[i]);
    if (!f->step)
        ic_fidelity_add(&slots->before_refining, f->scores, ids, f->span.tokens);
    if (now.loss < f->loss) {
        f->loss = now.loss;
        memcpy(f->best, f->x, f->values * sizeof *f->x);
    }
    if (sure || f->step == f->steps || !isfinite(now.loss)) {
        store(f, f->best);
        end_span(f);
        return f->span.first_segment + f->span.segments < slots->segments;
    }
    adam(f);
    store(f, f->x);
    f->step++;
    return 1;
done:
    return rc;
}
