/*
 * compress.c - a text becomes slots: tokenize, encode, store, check, correct; at once or in steps.
 *
 * The exact mode computes in f32 whatever the weights, here and in restoration, so that the greedy
 * choices it relies on are the same on every CPU up to near-ties, which count as errors.
 */
#include "core/fidelity.h"

#include <math.h>
#include <string.h>

/* A lead of fewer logits than this may be lost on another CPU in f32 arithmetic (observed differences
 * between instruction sets are below 1e-3). */
#define NEAR_TIE 0.02f

static int check_rate(float *rate, const icae_adapter *a, float wanted)
{
    *rate = wanted > 0 ? wanted : a->rate;
    if (*rate == a->rate)
        return ICAE_OK;
    for (int i = 0; i < a->rates_count; i++)
        if (fabsf(a->rates[i] - *rate) < 1e-6f)
            return ICAE_OK;
    if (a->rates_count)
        return ic_fail(ICAE_EINVAL, "rate %g: the adapter %s was not trained for it", (double)*rate,
                       a->path);
    return ic_fail(ICAE_EINVAL, "rate %g: the adapter %s serves rate %g only", (double)*rate,
                   a->path, (double)a->rate);
}

/* Tokens of a full segment. */
static uint64_t full_segment(const icae_adapter *a, float rate)
{
    return (uint64_t)((double)a->k * (double)rate);
}

/* The most tokens that can be restored from their slots within the model's positions. */
static uint64_t span_limit(const icae_session *s, float rate)
{
    const icae_adapter *a = s->adapter;
    uint64_t positions = (uint64_t)s->model->config.max_positions;
    if (a->spread)
        return positions;
    /* slots, [AE] and the text share the positions; slots come by whole segments */
    uint64_t segment = full_segment(a, rate);
    uint64_t per_segment = segment + (uint64_t)a->k,
             whole = (positions - 1) / IC_MAX(per_segment, 1);
    return IC_MAX(whole * segment, 1);
}

/* Positions that all slots of a text take in the decoder. */
static int check_fits(const icae_session *s, uint64_t tokens, float rate)
{
    const icae_adapter *a = s->adapter;
    uint64_t limit = (uint64_t)s->model->config.max_positions;
    if (tokens > (uint64_t)1 << 31)
        return ic_fail(ICAE_ELIMIT, "the text has %llu tokens, the limit is 2^31",
                       (unsigned long long)tokens);
    uint64_t need = tokens;
    if (!a->spread) {
        int n = ic_segment_count(a, rate, tokens);
        need = 0;
        for (int i = 0; i < n; i++)
            need += (uint64_t)ic_segment_slots(a, rate, ic_segment_tokens(a, rate, tokens, i));
    }
    if (need < limit)
        return ICAE_OK;
    return ic_fail(
        ICAE_ELIMIT,
        "the text has %llu tokens; its slots need %llu positions, %s has %llu: split the text",
        (unsigned long long)tokens, (unsigned long long)need, s->model->path,
        (unsigned long long)limit);
}

/* Stores encoded rows [count, D]. */
static int make_slots(icae_slots **out, const icae_session *s, const float *values, uint64_t count,
                      uint64_t tokens, float rate, const icae_compress_options *o)
{
    int rc = ICAE_OK;
    const icae_adapter *a = s->adapter;
    icae_slots *slots = NULL;
    int segments = ic_segment_count(a, rate, tokens);
    for (uint64_t i = 0; i < count * (uint64_t)s->model->config.width; i++)
        if (!isfinite(values[i])) {
            rc = ic_fail(ICAE_EFORMAT,
                         "the model gave slots that are not finite: its weights or the "
                         "adapter %s are damaged",
                         a->path);
            goto done;
        }
    IC_TRY(ic_slots_new(&slots, s->model->config.width, count, (uint32_t)segments, IC_BF16));
    ic_slots_put(slots, 0, values, count);
    for (int i = 0; i < segments; i++) {
        int length = ic_segment_tokens(a, rate, tokens, i);
        slots->segment[i].tokens = (uint32_t)length;
        slots->segment[i].slots = (uint32_t)ic_segment_slots(a, rate, length);
    }
    slots->tokens = tokens;
    slots->rate = rate;
    uint64_t span = span_limit(s, rate);
    if (a->span > 0)
        span = IC_MIN(span, (uint64_t)a->span);
    if (o->refine) /* a segment by itself: so it can be expanded by itself, and those that are right end early */
        span = IC_MIN(span, IC_MAX(full_segment(a, rate), 1));
    slots->span = o->span ? o->span : span;
    memcpy(slots->base, s->model->identity, sizeof slots->base);
    memcpy(slots->adapter, a->identity, sizeof slots->adapter);
    *out = slots;
    slots = NULL;
done:
    icae_slots_free(slots);
    return rc;
}

/* Finds what greedy decoding would get wrong or nearly wrong, and the patch back to the bytes. */
static int add_corrections(icae_slots *slots, const icae_session *s, const ic_score *scores,
                           const ic_ids *ids, const char *text, size_t size)
{
    int rc = ICAE_OK;
    size_t count = 0;
    ic_buffer decoded = {0};
    ic_correction *c = ic_alloc(ids->count, sizeof *c);
    if (!c)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < ids->count; i++)
        if (ic_score_lead(&scores[i], ids->ids[i]) < NEAR_TIE)
            c[count++] = (ic_correction){(uint32_t)i, ids->ids[i]};
    IC_TRY(ic_tokenizer_decode(&decoded, s->model->tokenizer, ids->ids, ids->count, true));
    IC_TRY(ic_exact_encode(&slots->corrections, c, count, decoded.data ? decoded.data : "",
                           decoded.size, text, size));
    slots->correction_count = count;
done:
    ic_free(c);
    ic_buffer_free(&decoded);
    return rc;
}

int ic_session_tokenize(ic_ids *ids, const icae_session *s, const char *text, size_t size)
{
    if (!s->model->tokenizer)
        return ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be read",
                       s->model->path);
    return ic_tokenizer_encode_untrusted(ids, s->model->tokenizer, text, size,
                                         s->adapter && s->adapter->bos);
}

/* Everything that can be refused before the model works. */
static int check(float *rate, const icae_session *s, uint64_t tokens,
                 const icae_compress_options *o)
{
    int rc = ICAE_OK;
    if (o->refine < 0 || o->refine > IC_MOST_REFINING)
        return ic_fail(ICAE_EINVAL, "%d steps of refining: expected 0 to %d", o->refine,
                       IC_MOST_REFINING);
    if (!s->adapter)
        return ic_fail(ICAE_EINVAL, "compressing needs an adapter");
    if (!tokens)
        return ic_fail(ICAE_EINVAL, "the text has no tokens: there is nothing to compress");
    IC_TRY(check_rate(rate, s->adapter, o->rate));
    IC_TRY(check_fits(s, tokens, *rate));
done:
    return rc;
}

int ic_compress_ids(icae_slots **out, icae_session *s, const ic_ids *ids,
                    const icae_compress_options *o)
{
    int rc = ICAE_OK;
    float rate, *values = NULL;
    uint64_t count;
    icae_slots *slots = NULL;
    ic_refinement *refinement = NULL;
    IC_TRY(check(&rate, s, ids->count, o));
    IC_TRY(ic_encode(&values, &count, s, ids->ids, ids->count, rate));
    IC_TRY(make_slots(&slots, s, values, count, ids->count, rate, o));
    if (o->refine) {
        IC_TRY(ic_refinement_new(&refinement, s, slots, ids->ids, o->refine));
        do
            IC_TRY(ic_refinement_step(refinement));
        while (rc > 0);
    }
    *out = slots;
    slots = NULL;
done:
    ic_refinement_free(refinement);
    icae_slots_free(slots);
    ic_free(values);
    return rc;
}

/* ---- a text in steps -------------------------------------------------------------------------- */

struct ic_compression {
    icae_session *session;
    icae_compress_options options;
    const char *text;
    size_t size;
    float rate;
    ic_ids ids;
    ic_encoding *encoding; /* NULL once all segments are encoded */
    icae_slots *slots;
    ic_refinement *refinement; /* NULL before and after */
    ic_scoring scoring;
    ic_score *scores; /* [ids.count] while it is checked */
    bool done;
};

int ic_compression_new(ic_compression **out, icae_session *s, const char *text, size_t size,
                       const icae_compress_options *options)
{
    int rc = ICAE_OK;
    if (!s->adapter)
        return ic_fail(ICAE_EINVAL, "compressing needs an adapter");
    if (!size)
        return ic_fail(ICAE_EINVAL, "the text is empty: there is nothing to compress");
    ic_compression *c = ic_alloc(1, sizeof *c);
    if (!c)
        return ICAE_ENOMEM;
    c->session = s;
    c->text = text;
    c->size = size;
    if (options)
        c->options = *options;
    IC_TRY(ic_session_tokenize(&c->ids, s, text, size));
    IC_TRY(check(&c->rate, s, c->ids.count, &c->options));
    IC_TRY(ic_encoding_new(&c->encoding, s, c->ids.ids, c->ids.count, c->rate));
    *out = c;
    c = NULL;
done:
    ic_compression_free(c);
    return rc;
}

static void begin_checking(ic_compression *c)
{
    c->scoring = (ic_scoring){
        .session = c->session, .slots = c->slots, .ids = c->ids.ids, .scores = c->scores};
}

/* The slots are made. 1: they are to be checked. */
static int end_making(ic_compression *c)
{
    int rc = ICAE_OK;
    if (!c->options.check && !c->options.exact) {
        if (c->options.int8)
            IC_TRY(ic_slots_to_int8(c->slots));
        c->done = true;
        return 0;
    }
    if (!(c->scores = ic_alloc(c->ids.count, sizeof *c->scores)))
        return ICAE_ENOMEM;
    begin_checking(c);
    return 1;
done:
    return rc;
}

/* All segments are encoded. 1: there is more to do. */
static int end_encoding(ic_compression *c)
{
    int rc = ICAE_OK;
    const ic_encoded *made = ic_encoding_made(c->encoding);
    IC_TRY(make_slots(&c->slots, c->session, made->values, made->slots, made->tokens, c->rate,
                      &c->options));
    c->slots->text_size = c->size;
    IC_TRY(ic_hash_of(c->slots->text_sha256, c->text, c->size));
    ic_encoding_free(c->encoding);
    c->encoding = NULL;
    if (!c->options.refine)
        return end_making(c);
    IC_TRY(ic_refinement_new(&c->refinement, c->session, c->slots, c->ids.ids, c->options.refine));
    return 1;
done:
    return rc;
}

static int refine_some(ic_compression *c)
{
    icae_session *s = c->session;
    int rc = ic_refinement_step(c->refinement);
    if (rc >= 0 && s->progress &&
        s->progress(s->user, "tokens", ic_refinement_done(c->refinement), c->slots->tokens))
        return ic_fail(ICAE_ECANCELLED, "refining the slots was stopped");
    if (rc)
        return rc;
    ic_refinement_free(c->refinement);
    c->refinement = NULL;
    return end_making(c);
}

/* Slots that are to be int8 were checked as bf16. 1: they are to be checked again. */
static int round_checked(ic_compression *c)
{
    int rc = ICAE_OK;
    ic_fidelity_add(&c->slots->before_int8, c->scores, c->ids.ids, c->ids.count);
    IC_TRY(ic_slots_to_int8(c->slots));
    ic_scoring_end(&c->scoring);
    begin_checking(c);
    return 1;
done:
    return rc;
}

static int check_some(ic_compression *c, int rows)
{
    int rc = ICAE_OK;
    icae_session *s = c->session;
    ic_dtype act = s->act;
    if (c->options.exact)
        s->act = IC_F32;
    rc = ic_scoring_step(&c->scoring, rows ? rows : IC_READ_CHUNK);
    s->act = act;
    if (rc > 0 && s->progress && s->progress(s->user, "tokens", c->scoring.done, c->slots->tokens))
        return ic_fail(ICAE_ECANCELLED, "checking the fidelity was stopped");
    if (rc)
        return rc;
    if (c->options.int8 && !c->slots->scales)
        return round_checked(c);
    IC_TRY(ic_slots_set_fidelity(c->slots, c->scores, c->ids.ids));
    if (c->options.exact)
        IC_TRY(add_corrections(c->slots, s, c->scores, &c->ids, c->text, c->size));
    c->done = true;
done:
    return rc;
}

int ic_compression_step(ic_compression *c, int rows)
{
    if (c->done)
        return 0;
    if (c->refinement)
        return refine_some(c);
    if (!c->encoding)
        return check_some(c, rows);
    int rc = ic_encoding_step(c->encoding, (uint64_t)rows);
    return rc ? rc : end_encoding(c);
}

int ic_compression_stage(const ic_compression *c, uint64_t *done, uint64_t *total)
{
    *total = c->ids.count;
    *done = c->encoding     ? ic_encoding_made(c->encoding)->tokens
            : c->refinement ? ic_refinement_done(c->refinement)
                            : c->scoring.done;
    if (c->done)
        *done = *total;
    return c->encoding ? 0 : c->refinement ? 1 : 2;
}

int ic_compression_take(icae_slots **out, ic_compression *c)
{
    assert(c->done && c->slots);
    *out = c->slots;
    c->slots = NULL;
    return ICAE_OK;
}

void ic_compression_free(ic_compression *c)
{
    if (!c)
        return;
    ic_ids_free(&c->ids);
    ic_encoding_free(c->encoding);
    ic_scoring_end(&c->scoring);
    ic_refinement_free(c->refinement);
    icae_slots_free(c->slots);
    ic_free(c->scores);
    ic_free(c);
}

int icae_compress(icae_slots **out, icae_session *s, const char *text, size_t size,
                  const icae_compress_options *options)
{
    int rc = ICAE_OK;
    ic_compression *c = NULL;
    IC_TRY(ic_compression_new(&c, s, text, size, options));
    do
        IC_TRY(ic_compression_step(c, 0));
    while (rc > 0);
    IC_TRY(ic_compression_take(out, c));
done:
    ic_compression_free(c);
    return rc;
}

int icae_slots_check(const icae_slots *slots, const icae_session *s)
{
    if (!s->adapter)
        return ic_fail(ICAE_EINVAL, "reading slots needs the adapter that made them");
    if (strcmp(slots->base, s->model->identity))
        return ic_fail(ICAE_EMISMATCH, "the slots were made by base %.12s, this is base %.12s (%s)",
                       slots->base, s->model->identity, s->model->path);
    if (strcmp(slots->adapter, s->adapter->identity))
        return ic_fail(ICAE_EMISMATCH,
                       "the slots were made by adapter %.12s, this is adapter %.12s (%s)",
                       slots->adapter, s->adapter->identity, s->adapter->path);
    if (slots->width != s->model->config.width)
        return ic_fail(ICAE_EMISMATCH, "the slots are %d wide, the base %d", slots->width,
                       s->model->config.width);
    return ICAE_OK;
}

int icae_verify(icae_fidelity *out, icae_session *s, const icae_slots *slots, const char *text,
                size_t size)
{
    int rc = ICAE_OK;
    ic_ids ids = {0};
    ic_score *scores = NULL;
    IC_TRY(icae_slots_check(slots, s));
    IC_TRY(ic_session_tokenize(&ids, s, text, size));
    if (ids.count != slots->tokens) {
        rc = ic_fail(ICAE_EMISMATCH, "the text has %zu tokens, the slots stand for %llu", ids.count,
                     (unsigned long long)slots->tokens);
        goto done;
    }
    scores = ic_alloc(ids.count, sizeof *scores);
    if (!scores) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    IC_TRY(ic_slots_score(scores, s, slots, ids.ids));
    *out = (icae_fidelity){0};
    ic_fidelity_add(out, scores, ids.ids, ids.count);
done:
    ic_free(scores);
    ic_ids_free(&ids);
    return rc;
}
