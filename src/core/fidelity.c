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

int ic_slots_score(ic_score *scores, icae_session *s, const icae_slots *slots, const int32_t *ids)
{
    int rc = ICAE_OK;
    ic_span span;
    ic_prompt p = {0};
    for (uint32_t at = 0; ic_span_at(&span, slots, at); at += span.segments) {
        IC_TRY(ic_span_prompt(&p, s, slots, &span));
        IC_TRY(ic_prompt_fits(&p, span.tokens, "checking the fidelity"));
        /* the last token predicts nothing that is scored */
        IC_TRY(ic_prompt_ids(&p, ids + span.first_token, (size_t)span.tokens - 1));
        IC_TRY(ic_prompt_read(s, &p, 0, p.rows, NULL, ids + span.first_token, (int)span.tokens,
                              scores + span.first_token, NULL));
        ic_prompt_free(&p);
    }
done:
    ic_prompt_free(&p);
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

int ic_slots_set_fidelity(icae_slots *slots, const ic_score *scores, const int32_t *ids)
{
    enum { DOUBT_PERCENT = 69 }; /* a lead of ln 2: at most twice as likely as the second */
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
            if (ic_score_lead(&scores[i], ids[i]) < DOUBT_PERCENT / 100.0f) {
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
