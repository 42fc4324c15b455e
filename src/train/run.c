/*
 * run.c - the loop of a training run: draw, compute, add up over processes, update, report, measure,
 * keep.
 *
 * Parameters and state change together at the end of a step; a checkpoint is of such an end. Everything
 * random follows from the step, so that going on from a checkpoint repeats nothing and skips nothing.
 */
#include "train/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BAD_STEPS = 10, DEFAULT_STEPS = 1000 };

/* While waiting for other processes: a stop older than this may mean that one of them is dead and the
 * launcher will end us shortly. */
#define RESCUE_AFTER 0.3
#define AVERAGE      0.98 /* a moving average over about 50 steps */

/* ---- how far, how fast ------------------------------------------------------------------------ */

static double steps_of(const ic_settings *s)
{
    return s->steps ? (double)s->steps : s->tokens || s->hours > 0 ? 0 : DEFAULT_STEPS;
}

double ic_training_progress(const ic_settings *s, const ic_state *state)
{
    double steps = steps_of(s), p = steps > 0 ? (double)state->step / steps : 0;
    if (s->tokens)
        p = IC_MAX(p, (double)state->tokens / (double)s->tokens);
    if (s->hours > 0)
        p = IC_MAX(p, state->seconds / (s->hours * 3600));
    return IC_MIN(p, 1);
}

double ic_training_lr(const ic_settings *s, const ic_state *state)
{
    double steps = steps_of(s), warm = (double)s->warmup, step = (double)state->step;
    if (steps > 0)
        warm = IC_MIN(warm, floor(steps / 2));
    if (step < warm)
        return s->lr * (step + 1) / warm;
    double p = ic_training_progress(s, state);
    if (steps > warm && p <= step / steps)
        p = (step - warm) / (steps - warm);
    if (strcmp(s->schedule, "cosine") == 0)
        return s->min_lr + (s->lr - s->min_lr) * 0.5 * (1 + cos(3.14159265358979323846 * p));
    if (strcmp(s->schedule, "linear") == 0)
        return s->lr + (s->min_lr - s->lr) * p;
    return s->lr;
}

/* ---- keeping ---------------------------------------------------------------------------------- */

static int save_adapter(ic_training *t, const char *name)
{
    char *path = ic_path_join(t->s->out, name);
    int rc = path ? ic_params_save(t->params, path) : ICAE_ENOMEM;
    ic_free(path);
    return rc;
}

/* Checkpoint and adapter as they are now. A full disk keeps what was there and does not end the run. */
static int keep(ic_training *t, bool must)
{
    if (t->dist.rank)
        return ICAE_OK;
    ic_metrics_flush(t);
    int rc = ic_checkpoint_save(t->s->out, t->params, &t->state, t->config);
    if (rc == ICAE_OK)
        rc = save_adapter(t, "last.safetensors");
    t->last_checkpoint = ic_seconds();
    if (rc == ICAE_OK && t->disk_full)
        ic_training_notice(t, false, "step %llu: checkpoints can be written again",
                           (unsigned long long)t->state.step);
    t->disk_full = rc < 0;
    if (rc < 0 && !must) {
        ic_training_notice(t, true,
                           "step %llu: no checkpoint: %s; the one before is kept, training goes "
                           "on",
                           (unsigned long long)t->state.step, icae_error_message());
        return ICAE_OK;
    }
    return rc;
}

/* Called while waiting for other processes. Their loss must not cost what was reached. */
static void waiting(void *user, bool lost)
{
    ic_training *t = user;
    if (!t->running || t->dist.rank || t->rescued)
        return;
    if (!lost) {
        double now = ic_seconds();
        if (!ic_training_stopped(t))
            return;
        t->stop_seen = t->stop_seen > 0 ? t->stop_seen : now;
        if (now - t->stop_seen < RESCUE_AFTER)
            return;
    }
    t->rescued = true;
    (void)keep(t, false);
}

/* ---- a step ----------------------------------------------------------------------------------- */

/* What the processes tell each other of a step, in one sum. */
enum { FAILED, STOP, SECONDS, NLL, STEP_SUMS = NLL + IC_OBJECTIVES };

typedef struct batch_step {
    double sum[STEP_SUMS], targets[IC_OBJECTIVES];
    double begin, work;
    uint64_t tokens;
    bool stop;
} batch_step;

static void draw_batch(ic_training *t, batch_step *s)
{
    double grow = (double)t->s->grow, reach = 1;
    if (grow > 0)
        reach = IC_MIN((double)t->state.step / grow, 1);
    for (int i = 0; i < t->batch; i++) {
        ic_item *o = &t->items[i];
        ic_sampler_draw(t->sampler, o, t->state.samples + (uint64_t)i, IC_OBJECTIVES, 0, reach);
        s->targets[o->objective] += o->targets;
        s->tokens += (uint64_t)(o->tokens + o->continuation + o->prompt + o->answer);
    }
    s->work = t->peak > 0 ? ic_training_work(t, t->items, t->batch) : 0;
}

static int compute(ic_training *t, batch_step *s)
{
    int rc = ICAE_OK, micros = ic_pack(t->micro, t->items, t->batch, t->budget, t->dist.ranks);
    double targets = s->targets[0] + s->targets[1] + s->targets[2];
    memset(t->nll, 0, (size_t)t->batch * sizeof *t->nll);
    rc = ic_training_run(t, t->sampler, t->items, t->micro, micros, 1 / targets, true, t->nll, NULL,
                         NULL);
    for (int i = 0; i < t->batch; i++)
        s->sum[NLL + t->items[i].objective] += t->nll[i];
    s->sum[FAILED] = rc < 0;
    s->sum[STOP] = ic_training_stopped(t);
    s->sum[SECONDS] = t->dist.rank ? 0 : t->before + ic_seconds() - t->started;
    IC_TRY(ic_dist_sum_f64(&t->dist, s->sum, STEP_SUMS));
    if (s->sum[FAILED] > 0)
        return ic_dist_agree(&t->dist, rc);
    rc = ic_dist_sum_f32(&t->dist, t->params->g, t->params->count);
    s->stop = s->sum[STOP] > 0;
done:
    return rc;
}

/* Updates parameters and counters. ICAE_EFORMAT after too many steps without a finite gradient. */
static int update(ic_training *t, const batch_step *s, icae_train_report *r)
{
    const ic_settings *c = t->s;
    ic_state *state = &t->state;
    double loss = s->sum[NLL] + s->sum[NLL + 1] + s->sum[NLL + 2];
    ic_adamw o = {.lr = (float)r->lr,
                  .beta1 = (float)c->beta1,
                  .beta2 = (float)c->beta2,
                  .eps = (float)c->eps,
                  .decay = (float)c->decay,
                  .clip = (float)c->clip};
    t->running = false;
    if (isfinite(loss)) {
        int rc =
            ic_params_update(t->session, t->params, &o, state->step - state->skipped + 1, &r->norm);
        if (rc < 0)
            return rc;
        r->skipped = rc > 0;
    } else {
        memset(t->params->g, 0, t->params->count * sizeof *t->params->g);
        r->skipped = true;
    }
    state->step++;
    state->samples += (uint64_t)t->batch;
    state->tokens += s->tokens;
    state->seconds = s->sum[SECONDS];
    state->skipped += r->skipped;
    state->bad_in_a_row = r->skipped ? state->bad_in_a_row + 1 : 0;
    for (int i = 0; i < IC_OBJECTIVES && !r->skipped; i++)
        if (s->targets[i] > 0) {
            double l = s->sum[NLL + i] / s->targets[i];
            state->average[i] = AVERAGE * state->average[i] + (1 - AVERAGE) * l;
            state->average_weight[i] = AVERAGE * state->average_weight[i] + (1 - AVERAGE);
        }
    t->running = true;
    return ICAE_OK;
}

static void fill_report(ic_training *t, const batch_step *s, icae_train_report *r)
{
    const ic_state *state = &t->state;
    double now = ic_seconds(), took = now - s->begin, p = ic_training_progress(t->s, state);
    t->pace = 0.9 * t->pace + took;
    t->pace_tokens = 0.9 * t->pace_tokens + (double)s->tokens;
    r->step = state->step;
    r->steps = (uint64_t)steps_of(t->s);
    r->tokens = state->tokens;
    r->samples = state->samples;
    r->seconds = state->seconds;
    r->tokens_per_second = t->pace_tokens / t->pace;
    r->seconds_left =
        p > t->first_progress ? (now - t->started) * (1 - p) / (p - t->first_progress) : NAN;
    r->share_of_peak = t->peak > 0 ? s->work / took / (t->peak * t->dist.ranks) : NAN;
    for (int i = 0; i < IC_OBJECTIVES; i++) {
        r->loss[i] = s->targets[i] > 0 ? s->sum[NLL + i] / s->targets[i] : NAN;
        r->average[i] =
            state->average_weight[i] > 0 ? state->average[i] / state->average_weight[i] : NAN;
        r->eval_loss[i] = NAN;
    }
    r->accuracy = r->exact_prefix = r->perplexity = r->perplexity_full = r->perplexity_none = NAN;
}

/* ---- held-out text ---------------------------------------------------------------------------- */

static double overall(const ic_settings *s, const ic_evaluation *e)
{
    const double weight[IC_OBJECTIVES] = {s->ae_weight, s->lm_weight, s->ft_weight};
    double sum = 0, total = 0;
    for (int i = 0; i < IC_OBJECTIVES; i++)
        if (weight[i] > 0 && isfinite(e->loss[i])) {
            sum += weight[i] * e->loss[i];
            total += weight[i];
        }
    return total > 0 ? sum / total : NAN;
}

static int evaluate(ic_training *t, icae_train_report *r)
{
    ic_evaluation e;
    int rc = ic_evaluate(t, &e);
    if (rc < 0)
        return rc;
    double loss = overall(t->s, &e);
    t->state.eval_due = 0;
    r->evaluated = true;
    memcpy(r->eval_loss, e.loss, sizeof e.loss);
    r->accuracy = e.accuracy;
    r->exact_prefix = e.prefix;
    r->perplexity = e.ppl_slots;
    r->perplexity_full = e.ppl_full;
    r->perplexity_none = e.ppl_none;
    r->best = isfinite(loss) && !(loss >= t->state.best);
    if (t->dist.rank)
        return ICAE_OK;
    if (r->best) {
        rc = save_adapter(t, "best.safetensors");
        if (rc < 0)
            ic_training_notice(t, true, "step %llu: best.safetensors: %s; the one before is kept",
                               (unsigned long long)t->state.step, icae_error_message());
        else {
            t->state.best = loss;
            t->state.best_step = t->state.step;
        }
    }
    ic_metrics_step(t, r, &e);
    return ICAE_OK;
}

/* ---- the loop --------------------------------------------------------------------------------- */

static bool due(uint64_t step, int64_t every)
{
    return every > 0 && step % (uint64_t)every == 0;
}

static bool checkpoint_due(const ic_training *t)
{
    double minutes = t->s->checkpoint_minutes;
    return due(t->state.step, t->s->checkpoint_every) ||
           (minutes > 0 && ic_seconds() - t->last_checkpoint >= minutes * 60);
}

static int one_step(ic_training *t, bool *stop)
{
    int rc = ICAE_OK;
    batch_step s = {.begin = ic_seconds()};
    icae_train_report r = {.lr = ic_training_lr(t->s, &t->state)};
    draw_batch(t, &s);
    IC_TRY(compute(t, &s));
    IC_TRY(update(t, &s, &r));
    fill_report(t, &s, &r);
    if (t->dist.rank == 0)
        ic_metrics_step(t, &r, NULL);
    if (r.skipped)
        ic_training_notice(t, true,
                           "step %llu: loss or gradient is not finite: nothing was changed",
                           (unsigned long long)t->state.step);
    *stop = s.stop;
    bool end = ic_training_progress(t->s, &t->state) >= 1;
    t->state.eval_due = t->eval_sampler && (end || due(t->state.step, t->s->eval_every));
    if (t->state.eval_due && !s.stop) { /* else the next session does it first */
        rc = evaluate(t, &r);
        *stop = rc == ICAE_ECANCELLED;
        if (rc < 0 && !*stop)
            goto done;
        rc = ICAE_OK;
    }
    if (!end && !*stop && checkpoint_due(t))
        IC_TRY(keep(t, false));
    if (t->callbacks.report && t->dist.rank == 0)
        t->callbacks.report(t->callbacks.user, &r);
    if (t->state.bad_in_a_row >= BAD_STEPS) {
        rc = keep(t, true);
        rc =
            ic_fail(ICAE_EFORMAT,
                    "%d steps in a row had a loss or gradient that is not finite: lower lr; "
                    "the last good state is %s",
                    BAD_STEPS, rc < 0 ? "that of the last checkpoint" : "kept in last.safetensors");
    }
done:
    return rc;
}

/* The evaluation that the last session was stopped before. */
static int evaluate_late(ic_training *t)
{
    batch_step none = {.begin = ic_seconds(), .tokens = 1};
    icae_train_report r = {.lr = ic_training_lr(t->s, &t->state)};
    fill_report(t, &none, &r);
    int rc = evaluate(t, &r);
    t->pace = t->pace_tokens = 0;
    if (rc == ICAE_OK && t->callbacks.report && t->dist.rank == 0)
        t->callbacks.report(t->callbacks.user, &r);
    return rc;
}

static int loop(ic_training *t)
{
    int rc = ICAE_OK;
    bool stop = false;
    t->dist.waiting = waiting;
    t->running = true;
    if (t->state.eval_due && t->eval_sampler)
        rc = evaluate_late(t);
    stop = rc == ICAE_ECANCELLED;
    if (rc < 0 && !stop)
        return rc;
    if (ic_training_progress(t->s, &t->state) >= 1)
        ic_training_notice(t, false, "the run is complete already (%llu steps)",
                           (unsigned long long)t->state.step);
    while (!stop && ic_training_progress(t->s, &t->state) < 1) {
        IC_TRY(one_step(t, &stop));
        stop |= t->dist.ranks == 1 && ic_training_stopped(t); /* several agree within a step */
    }
    IC_TRY(keep(t, true));
    if (stop) {
        rc = ic_fail(ICAE_ECANCELLED, "stopped at step %llu; --resume goes on from there",
                     (unsigned long long)t->state.step);
        ic_training_notice(t, false, "%s", icae_error_message());
    }
done:
    return rc;
}

int icae_train_run(const icae_train_config *config, const icae_train_callbacks *callbacks)
{
    ic_training *t = ic_alloc(1, sizeof *t);
    if (!t)
        return ICAE_ENOMEM;
    int rc = ic_training_open(t, config, callbacks, false);
    if (rc == ICAE_OK)
        rc = loop(t);
    if (rc == ICAE_OK)
        ic_training_notice(t, false, "done: %llu steps, %llu tokens; %s/last.safetensors%s",
                           (unsigned long long)t->state.step, (unsigned long long)t->state.tokens,
                           t->s->out, t->state.best_step ? ", best.safetensors" : "");
    ic_training_close(t);
    ic_free(t);
    return rc;
}

/* ---- before a run ----------------------------------------------------------------------------- */

/* Runs micro-batches of the first step for a while. */
static int time_step(ic_training *t, double *seconds, uint64_t *tokens)
{
    batch_step s = {0};
    draw_batch(t, &s);
    int micros = ic_pack(t->micro, t->items, t->batch, t->budget, t->dist.ranks), done = 0;
    int64_t cost = 0, total = 0;
    double begin = 0, spent = 0;
    for (int i = 0; i < micros; i++)
        total += t->micro[i].cost;
    for (int i = -1; i < micros && (i < 1 || spent < 3); i++) { /* the first one warms up */
        int m = IC_MAX(i, 0);
        begin = ic_seconds();
        t->micro[m].rank = t->dist.rank;
        int rc =
            ic_training_run(t, t->sampler, t->items, &t->micro[m], 1, 1, true, t->nll, NULL, NULL);
        if (rc < 0)
            return rc;
        if (i >= 0) {
            spent += ic_seconds() - begin;
            cost += t->micro[m].cost;
            done++;
        }
    }
    *seconds = done ? spent * (double)total / (double)cost / t->dist.ranks : 0;
    *tokens = s.tokens;
    return ICAE_OK;
}

int icae_train_measure(icae_train_estimate *out, const icae_train_config *config,
                       const icae_train_callbacks *callbacks)
{
    int rc = ICAE_OK;
    uint64_t tokens = 0;
    ic_training *t = ic_alloc(1, sizeof *t);
    *out = (icae_train_estimate){0};
    if (!t)
        return ICAE_ENOMEM;
    IC_TRY(ic_training_open(t, config, callbacks, true));
    const ic_params *p = t->params;
    out->weights = t->model->bytes;
    out->parameters = p->count;
    out->trained = p->count * (4 * sizeof(float) + (p->shadow ? 2 : 0));
    out->scratch = t->scratch;
    out->total = out->weights + out->trained + out->scratch;
    out->available = t->s->memory ? t->s->memory : ic_memory_available();
    out->disk = 2 * ic_checkpoint_bytes(p) + 2 * p->count * sizeof(float);
    out->recompute = t->recompute;
    out->batch_tokens = (int)t->budget;
    out->documents = t->data->documents;
    out->tokens = t->data->tokens;
    rc = ic_dist_agree(&t->dist, time_step(t, &out->step_seconds, &tokens));
    double steps = steps_of(t->s);
    if (t->s->tokens)
        steps = IC_MIN(steps > 0 ? steps : INFINITY, ceil((double)t->s->tokens / (double)tokens));
    out->tokens_per_second = (double)tokens / out->step_seconds;
    out->seconds = steps > 0 ? steps * out->step_seconds : t->s->hours * 3600;
    if (t->s->hours > 0)
        out->seconds = IC_MIN(out->seconds, t->s->hours * 3600);
done:
    ic_training_close(t);
    ic_free(t);
    return rc;
}
