/*
 * score.c - how well a continuation is predicted behind a raw context, its slots, or nothing; and the
 * records of it. Knows no experiment.
 */
#include "eval/eval.h"

#include <math.h>

/* Nats of ids[first … n-1] behind what the prompt holds, into scores[0 …]. */
static int score(ic_score *scores, ic_system *s, ic_prompt *p, const int32_t *ids, int n, int first)
{
    int rc = ICAE_OK;
    IC_TRY(ic_prompt_ids(p, ids, (size_t)n - 1)); /* the last predicts nothing that is scored */
    IC_TRY(ic_prompt_fits(p, 1, "the text with its continuation"));
    IC_TRY(ic_prompt_read(s->session, p, 0, p->rows, NULL, ids + first, n - first, scores, NULL));
done:
    return rc;
}

int ic_first_scored(const ic_system *s)
{
    return s->model->config.bos >= 0 ? 0 : 1;
}

int ic_score_text(ic_score *scores, ic_system *s, const int32_t *context, int tokens,
                  const int32_t *ids, int n)
{
    int rc = ICAE_OK;
    ic_prompt p;
    ic_prompt_begin(&p, s->session);
    if (s->model->config.bos >= 0)
        IC_TRY(ic_prompt_ids(&p, &s->model->config.bos, 1));
    IC_TRY(ic_prompt_ids(&p, context, (size_t)tokens));
    IC_TRY(score(scores, s, &p, ids, n, ic_first_scored(s)));
done:
    ic_prompt_free(&p);
    return rc;
}

int ic_score_slots(ic_score *scores, double *rows, ic_system *s, float rate, const int32_t *context,
                   int tokens, const int32_t *ids, int n)
{
    int rc = ICAE_OK;
    ic_prompt p;
    ic_ids all = {0};
    icae_slots *slots = NULL;
    ic_prompt_begin(&p, s->session);
    if (s->adapter->bos && s->model->config.bos >= 0)
        IC_TRY(ic_ids_add(&all, s->model->config.bos));
    IC_TRY(ic_ids_append(&all, context, (size_t)tokens));
    IC_TRY(ic_compress_ids(&slots, s->session, &all,
                           &(icae_compress_options){.rate = rate, .refine = s->refine}));
    IC_TRY(ic_continue_prompt(&p, s->session, &(icae_part){.slots = slots}, 1, s->expand));
    *rows = (double)p.rows - s->adapter->lm_token;
    IC_TRY(score(scores, s, &p, ids, n, ic_first_scored(s)));
done:
    ic_prompt_free(&p);
    ic_ids_free(&all);
    icae_slots_free(slots);
    return rc;
}

double ic_mean_loss(const ic_score *scores, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++)
        sum += (double)scores[i].nll;
    return sum / count;
}

int ic_record_keep(ic_eval *e, const char *key, const char *const *names, const double *values,
                   size_t n)
{
    ic_report w = {0};
    ic_report_open(&w, NULL, '{');
    for (size_t i = 0; i < n; i++)
        ic_report_number(&w, names[i], values[i]);
    ic_report_close(&w, '}');
    int rc = w.rc < 0 ? w.rc : ic_journal_put(e->journal, key, &w.json);
    ic_buffer_free(&w.json);
    return rc;
}

int ic_record_skip(ic_eval *e, const char *key, int rc)
{
    if (rc != ICAE_ELIMIT)
        return rc;
    ic_report w = {0};
    ic_report_open(&w, NULL, '{');
    ic_report_text(&w, "skipped", icae_error_message());
    ic_report_close(&w, '}');
    rc = w.rc < 0 ? w.rc : ic_journal_put(e->journal, key, &w.json);
    ic_buffer_free(&w.json);
    return rc;
}
