/*
 * evaluate.c - held-out text: how much is restored, how well it is continued from slots compared with
 * the full text and with nothing, how well prompts are answered.
 *
 * The samples are the same at every evaluation and in every run over the same text. Also runs the
 * micro-batches of training, which differ only in that they have gradients.
 */
#include "train/run.h"

#include <math.h>
#include <string.h>

/* ---- micro-batches ---------------------------------------------------------------------------- */

static int run_micro(ic_training *t, const ic_sampler *s, const ic_item *items, const ic_micro *m,
                     double weight, bool train, double *nll, int *right, int *prefix)
{
    int rc = ICAE_OK;
    size_t ids = 0;
    for (int i = 0; i < m->count; i++)
        ids += ic_item_ids(s, &items[m->first + i]);
    int32_t *store = ic_alloc(ids, sizeof *store), *at = store;
    ic_example *e = ic_alloc((size_t)m->count, sizeof *e);
    if (!store || !e) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (int i = 0; i < m->count; i++) {
        const ic_item *o = &items[m->first + i];
        IC_TRY(ic_sampler_fill(s, o, at, &e[i]));
        at += ic_item_ids(s, o);
        e[i].weight = (float)weight;
    }
    /* the first sample of a micro-batch names its dropout masks, whoever runs it */
    ic_gradient_options options = {.recompute = t->recompute,
                                   .dropout = train ? (float)t->s->dropout : 0,
                                   .distill = (float)t->s->distill,
                                   .seed = (uint64_t)t->s->seed,
                                   .step = t->state.samples + (uint64_t)m->first,
                                   .forward_only = !train};
    rc = ic_gradients(t->session, t->params, e, m->count, &options, nll + m->first,
                      right ? right + m->first : NULL, prefix ? prefix + m->first : NULL);
done:
    ic_free(e);
    ic_free(store);
    return rc;
}

int ic_training_run(ic_training *t, const ic_sampler *sampler, const ic_item *items,
                    const ic_micro *micro, int micros, double weight, bool train, double *nll,
                    int *right, int *prefix)
{
    for (int i = 0; i < micros; i++) {
        if (micro[i].rank != t->dist.rank)
            continue;
        if (!train && ic_training_stopped(t))
            return ic_fail(ICAE_ECANCELLED, "the evaluation was stopped");
        int rc = run_micro(t, sampler, items, &micro[i], weight, train, nll, right, prefix);
        if (rc < 0)
            return rc;
    }
    return ICAE_OK;
}

/* ---- the frozen base alone -------------------------------------------------------------------- */

/* Loss of the continuation after the ids before it; the base without adapter reads plain text. With
 * nothing before it, not even a bos, its first token has no loss. sum: losses, tokens. */
static int plain_loss(ic_training *t, const int32_t *context, int tokens, const ic_example *e,
                      double *sum)
{
    int rc = ICAE_OK, given = t->params->adapter->lm_token;
    const int32_t *more = e->after + given;
    int count = e->after_count - given, skip = e->unscored - given;
    if (!skip && !tokens && t->model->config.bos < 0)
        skip = 1;
    int scored = count - skip;
    int room = t->model->config.max_positions - count - 1;
    ic_prompt p;
    ic_score *scores = ic_alloc((size_t)scored, sizeof *scores);
    ic_prompt_begin(&p, t->session);
    if (!scores) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    if (tokens > room) { /* what is nearest matters most */
        context += tokens - room;
        tokens = room;
    }
    if (t->model->config.bos >= 0)
        IC_TRY(ic_prompt_ids(&p, &t->model->config.bos, 1));
    IC_TRY(ic_prompt_ids(&p, context, (size_t)tokens));
    IC_TRY(ic_prompt_ids(&p, more, (size_t)count - 1));
    IC_TRY(ic_prompt_read(t->session, &p, 0, p.rows, NULL, more + skip, scored, scores, NULL));
    for (int i = 0; i < scored; i++)
        sum[0] += (double)scores[i].nll;
    sum[1] += scored;
done:
    ic_prompt_free(&p);
    ic_free(scores);
    return rc;
}

/* Sums over the continuations of this process: with all of their context, and with none. */
static int plain_losses(ic_training *t, const ic_item *items, const ic_micro *micro, int micros,
                        double *full, double *none)
{
    int rc = ICAE_OK;
    int32_t *ids = NULL;
    for (int i = 0; i < micros; i++)
        for (int j = 0; j < micro[i].count && micro[i].rank == t->dist.rank; j++) {
            const ic_item *o = &items[micro[i].first + j];
            ic_example e;
            int bos = t->params->adapter->bos;
            if (o->objective != IC_OBJECTIVE_LM)
                continue;
            ic_free(ids);
            if (!(ids = ic_alloc(ic_item_ids(t->eval_sampler, o), sizeof *ids)))
                return ICAE_ENOMEM;
            IC_TRY(ic_sampler_fill(t->eval_sampler, o, ids, &e));
            IC_TRY(plain_loss(t, e.context + bos, e.tokens - bos, &e, full));
            IC_TRY(plain_loss(t, e.context, 0, &e, none));
        }
done:
    ic_free(ids);
    return rc;
}

/* ---- held-out measures ------------------------------------------------------------------------ */

enum {
    NLL,
    TARGETS,
    RIGHT,
    PREFIX,
    FULL,
    FULL_TOKENS,
    NONE,
    NONE_TOKENS,
    BY_RATE,
    SUMS = BY_RATE + 8 * 4
};

typedef struct set {
    ic_item *items;
    ic_micro *micro;
    double *nll;
    int *right, *prefix;
    int count, micros;
} set;

static void set_free(set *s)
{
    ic_free(s->items);
    ic_free(s->micro);
    ic_free(s->nll);
    ic_free(s->right);
    ic_free(s->prefix);
}

static int set_draw(set *s, ic_training *t, ic_objective objective)
{
    const ic_reals *rates = &t->s->rates;
    s->count = (int)t->s->eval_samples;
    size_t n = (size_t)s->count;
    s->items = ic_alloc(n, sizeof *s->items);
    s->micro = ic_alloc(n, sizeof *s->micro);
    s->nll = ic_alloc(n, sizeof *s->nll);
    s->right = ic_alloc(n, sizeof *s->right);
    s->prefix = ic_alloc(n, sizeof *s->prefix);
    if (!s->items || !s->micro || !s->nll || !s->right || !s->prefix)
        return ICAE_ENOMEM;
    for (int i = 0; i < s->count; i++) {
        bool each = rates->count && objective == IC_OBJECTIVE_AE;
        float rate = each ? (float)rates->v[i % rates->count] : t->params->adapter->rate;
        ic_sampler_draw(t->eval_sampler, &s->items[i], (uint64_t)i, objective, rate, 1);
    }
    s->micros = ic_pack(s->micro, s->items, s->count, t->budget, t->dist.ranks);
    return ICAE_OK;
}

static void add_up(const ic_training *t, const set *s, ic_objective objective, double *sum)
{
    int rates = IC_MAX(t->s->rates.count, 1);
    for (int m = 0; m < s->micros; m++)
        for (int j = 0; j < s->micro[m].count && s->micro[m].rank == t->dist.rank; j++) {
            int i = s->micro[m].first + j;
            double *by = sum + BY_RATE + 4 * (i % rates);
            if (s->items[i].objective != objective) /* too short to continue */
                continue;
            const double v[4] = {s->nll[i], s->items[i].targets, s->right[i], s->prefix[i]};
            for (int k = 0; k < 4; k++) {
                sum[k] += v[k];
                by[k] += v[k];
            }
        }
}

static int measure(ic_training *t, ic_objective objective, ic_evaluation *out)
{
    set s = {0};
    double sum[SUMS] = {0};
    bool plain = objective == IC_OBJECTIVE_LM && t->ppl_full <= 0;
    int rc = set_draw(&s, t, objective);
    if (rc == ICAE_OK)
        rc = ic_training_run(t, t->eval_sampler, s.items, s.micro, s.micros, 0, false, s.nll,
                             s.right, s.prefix);
    if (rc == ICAE_OK && plain)
        rc = plain_losses(t, s.items, s.micro, s.micros, &sum[FULL], &sum[NONE]);
    IC_TRY(ic_dist_agree(&t->dist, rc));
    add_up(t, &s, objective, sum);
    IC_TRY(ic_dist_sum_f64(&t->dist, sum, SUMS));
    if (sum[TARGETS] <= 0)
        goto done;
    out->loss[objective] = sum[NLL] / sum[TARGETS];
    if (objective == IC_OBJECTIVE_AE) {
        out->accuracy = sum[RIGHT] / sum[TARGETS];
        out->prefix = sum[PREFIX] / sum[TARGETS];
        for (int i = 0; i < IC_MAX(t->s->rates.count, 1); i++) {
            const double *by = sum + BY_RATE + 4 * i;
            out->rate_loss[i] = by[NLL] / by[TARGETS];
            out->rate_accuracy[i] = by[RIGHT] / by[TARGETS];
            out->rate_prefix[i] = by[PREFIX] / by[TARGETS];
        }
    }
    if (plain) {
        t->ppl_full = exp(sum[FULL] / sum[FULL_TOKENS]);
        t->ppl_none = exp(sum[NONE] / sum[NONE_TOKENS]);
    }
    if (objective == IC_OBJECTIVE_LM) {
        out->ppl_slots = exp(out->loss[objective]);
        out->ppl_full = t->ppl_full;
        out->ppl_none = t->ppl_none;
    }
done:
    set_free(&s);
    return rc;
}

int ic_evaluate(ic_training *t, ic_evaluation *out)
{
    int rc = ICAE_OK;
    const ic_settings *s = t->s;
    const double weight[IC_OBJECTIVES] = {s->ae_weight, s->lm_weight, s->ft_weight};
    *out = (ic_evaluation){.loss = {NAN, NAN, NAN},
                           .accuracy = NAN,
                           .prefix = NAN,
                           .ppl_slots = NAN,
                           .ppl_full = NAN,
                           .ppl_none = NAN};
    for (int i = 0; i < IC_OBJECTIVES; i++)
        if (weight[i] > 0)
            IC_TRY(measure(t, (ic_objective)i, out));
done:
    return rc;
}
