/*
 * fidelity.c - how well slots predict the text they stand for: one decoder pass, no generation.
 *
 * A text is checked and restored in spans of whole segments (most texts are one span). Also decides
 * which tokens are doubtful and which need corrections.
 */
#include "core/fidelity.h"

#include <string.h>

bool ic_span_at(ic_span *out, const icae_slots *slots, uint32_t first)
{
    if (first >= slots->segments)
        return false;
    *out = (ic_span){.first_segment = first};
    for (uint32_t s = 0; s < first; s++)
        out->first_token += slots->segment[s].tokens;
    for (uint32_t s = first; s < slots->segments; s++) {
        if (out->segments && out->tokens + slots->segment[s].tokens > slots->span)
            break;
        out->tokens += slots->segment[s].tokens;
        out->segments++;
    }
    return true;
}

int ic_span_prompt(ic_prompt *p, const icae_session *s, const icae_slots *slots,
                   const ic_span *span)
{
    int rc = ICAE_OK;
    double start;
    const int32_t ae = IC_AE;
    ic_prompt_begin(p, s);
    IC_TRY(ic_prompt_slots(p, slots, span->first_segment, span->segments, &start));
    if (s->adapter->spread)
        p->next = start - 1; /* restored text stands where the text stood */
    IC_TRY(ic_prompt_ids(p, &ae, 1));
done:
    return rc;
}

/* The prompt of the span behind what is done. */
static int next_span(ic_scoring *s)
{
    int rc = ICAE_OK;
    uint32_t first = s->span.first_segment + s->span.segments;
    ic_prompt_free(&s->prompt);
    if (!ic_span_at(&s->span, s->slots, first))
        return ICAE_OK;
    const int32_t *ids = s->ids + s->span.first_token;
    IC_TRY(ic_span_prompt(&s->prompt, s->session, s->slots, &s->span));
    IC_TRY(ic_prompt_fits(&s->prompt, s->span.tokens, "checking the fidelity"));
    /* the last token predicts nothing that is scored */
    IC_TRY(ic_prompt_ids(&s->prompt, ids, (size_t)s->span.tokens - 1));
    s->read = 0;
    if (s->kv)
        s->kv->rows = 0;
done:
    return rc;
}

int ic_scoring_step(ic_scoring *s, int rows)
{
    int rc = ICAE_OK;
    if (s->read == s->prompt.rows)
        IC_TRY(next_span(s));
    ic_prompt *p = &s->prompt;
    if (!p->rows)
        return 0;
    int count = IC_MIN(rows, p->rows - s->read), first_scored = p->rows - (int)s->span.tokens;
    int from = IC_MAX(s->read, first_scored), end = s->read + count;
    if (!s->kv && count < p->rows)
        IC_TRY(ic_kv_new(&s->kv, &s->session->model->config, s->session->act, p->rows));
    ic_read one = {.prompt = p, .first = s->read, .count = count, .kv = s->kv};
    one.scored = IC_MAX(0, end - from);
    uint64_t at = s->span.first_token + (uint64_t)(from - first_scored);
    if (one.scored) {
        one.targets = s->ids + at;
        one.scores = s->scores + at;
    }
    IC_TRY(ic_read_rows(s->session, &one, 1));
    s->read = end;
    s->done = at + (uint64_t)one.scored;
    return s->done < s->slots->tokens;
done:
    return rc;
}

void ic_scoring_end(ic_scoring *s)
{
    ic_prompt_free(&s->prompt);
    ic_kv_free(s->kv);
    *s = (ic_scoring){0};
}

int ic_slots_score(ic_score *scores, icae_session *s, const icae_slots *slots, const int32_t *ids)
{
    int rc = ICAE_OK;
    ic_scoring work = {.session = s, .slots = slots, .ids = ids, .scores = scores};
    do {
        IC_TRY(ic_scoring_step(&work, IC_READ_CHUNK));
        if (s->progress && rc && s->progress(s->user, "tokens", work.done, slots->tokens)) {
            rc = ic_fail(ICAE_ECANCELLED, "checking the fidelity was stopped");
            goto done;
        }
    } while (rc > 0);
done:
    ic_scoring_end(&work);
    return rc;
}

void ic_fidelity_add(icae_fidelity *f, const ic_score *scores, const int32_t *ids, uint64_t count)
{
    f->measured = true;
    double sum = f->loss * (double)f->tokens, right = f->accuracy * (double)f->tokens;
    for (uint64_t i = 0; i < count; i++) {
        if (scores[i].best == ids[i]) {
            right++;
            f->exact_prefix += f->exact_prefix == f->tokens + i;
        }
        sum += (double)scores[i].nll;
    }
    f->tokens += count;
    f->loss = f->tokens ? sum / (double)f->tokens : 0;
    f->accuracy = f->tokens ? right / (double)f->tokens : 0;
}

float ic_score_lead(const ic_score *s, int32_t target)
{
    return s->best == target ? s->best_logit - s->second_logit : s->target_logit - s->best_logit;
}

bool ic_score_doubtful(const ic_score *s, int32_t target)
{
    const float doubt = 0.69f; /* a lead of ln 2: at most twice as likely as the second */
    return ic_score_lead(s, target) < doubt;
}

int ic_slots_set_fidelity(icae_slots *slots, const ic_score *scores, const int32_t *ids)
{
    icae_fidelity whole = {0};
    uint64_t at = 0;
    for (uint32_t i = 0; i < slots->segments; i++) {
        ic_segment *g = &slots->segment[i];
        icae_fidelity f = {0};
        ic_fidelity_add(&f, scores + at, ids + at, g->tokens);
        ic_fidelity_add(&whole, scores + at, ids + at, g->tokens);
        g->loss_sum = f.loss * (double)f.tokens;
        g->right = (uint32_t)(f.accuracy * (double)f.tokens + 0.5);
        g->prefix = (uint32_t)f.exact_prefix;
        at += g->tokens;
    }
    size_t count = 0;
    for (int pass = 0; pass < 2; pass++) {
        count = 0;
        for (uint64_t i = 0; i < slots->tokens; i++)
            if (ic_score_doubtful(&scores[i], ids[i])) {
                if (pass)
                    slots->doubtful[count] = (uint32_t)i;
                count++;
            }
        if (!pass && !(slots->doubtful = ic_alloc(IC_MAX(count, 1), sizeof *slots->doubtful)))
            return ICAE_ENOMEM;
    }
    slots->doubtful_count = count;
    slots->measured = true;
    slots->prefix = whole.exact_prefix;
    return ICAE_OK;
}
