/*
 * compress.c - a text becomes slots: tokenize, encode, store, check, correct.
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

/* The most tokens that can be restored from their slots within the model's positions. */
static uint64_t span_limit(const icae_session *s, float rate)
{
    const icae_adapter *a = s->adapter;
    uint64_t positions = (uint64_t)s->model->config.max_positions;
    if (a->spread)
        return positions;
    /* slots, [AE] and the text share the positions; slots come by whole segments */
    uint64_t segment = (uint64_t)((double)a->k * (double)rate);
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

/* Lays out segments and stores encoded rows. */
static int make_slots(icae_slots **out, icae_session *s, const ic_ids *ids, float rate,
                      const icae_compress_options *o)
{
    int rc = ICAE_OK;
    const icae_adapter *a = s->adapter;
    float *values = NULL;
    uint64_t count = 0;
    icae_slots *slots = NULL;
    int segments = ic_segment_count(a, rate, ids->count);
    IC_TRY(ic_encode(&values, &count, s, ids->ids, ids->count, rate));
    for (uint64_t i = 0; i < count * (uint64_t)s->model->config.width; i++)
        if (!isfinite(values[i])) {
            rc = ic_fail(ICAE_EFORMAT,
                         "the model gave slots that are not finite: its weights or the "
                         "adapter %s are damaged",
                         a->path);
            goto done;
        }
    IC_TRY(ic_slots_new(&slots, s->model->config.width, count, (uint32_t)segments,
                        o->int8 ? IC_I8 : IC_BF16));
    ic_slots_put(slots, 0, values, count);
    for (int i = 0; i < segments; i++) {
        int tokens = ic_segment_tokens(a, rate, ids->count, i);
        slots->segment[i].tokens = (uint32_t)tokens;
        slots->segment[i].slots = (uint32_t)ic_segment_slots(a, rate, tokens);
    }
    slots->tokens = ids->count;
    slots->rate = rate;
    uint64_t span = span_limit(s, rate);
    if (a->span > 0)
        span = IC_MIN(span, (uint64_t)a->span);
    slots->span = o->span ? o->span : span;
    memcpy(slots->base, s->model->identity, sizeof slots->base);
    memcpy(slots->adapter, a->identity, sizeof slots->adapter);
    *out = slots;
    slots = NULL;
done:
    ic_free(values);
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

static int measure(icae_slots *slots, icae_session *s, const ic_ids *ids, const char *text,
                   size_t size, bool exact)
{
    int rc = ICAE_OK;
    ic_dtype act = s->act;
    ic_score *scores = ic_alloc(ids->count, sizeof *scores);
    if (!scores)
        return ICAE_ENOMEM;
    if (exact)
        s->act = IC_F32;
    IC_TRY(ic_slots_score(scores, s, slots, ids->ids));
    IC_TRY(ic_slots_set_fidelity(slots, scores, ids->ids));
    if (exact)
        IC_TRY(add_corrections(slots, s, scores, ids, text, size));
done:
    s->act = act;
    ic_free(scores);
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

int ic_compress_ids(icae_slots **out, icae_session *s, const ic_ids *ids,
                    const icae_compress_options *o)
{
    int rc = ICAE_OK;
    float rate;
    if (!s->adapter)
        return ic_fail(ICAE_EINVAL, "compressing needs an adapter");
    if (!ids->count)
        return ic_fail(ICAE_EINVAL, "the text has no tokens: there is nothing to compress");
    IC_TRY(check_rate(&rate, s->adapter, o->rate));
    IC_TRY(check_fits(s, ids->count, rate));
    IC_TRY(make_slots(out, s, ids, rate, o));
done:
    return rc;
}

int icae_compress(icae_slots **out, icae_session *s, const char *text, size_t size,
                  const icae_compress_options *options)
{
    int rc = ICAE_OK;
    static const icae_compress_options defaults;
    const icae_compress_options *o = options ? options : &defaults;
    ic_ids ids = {0};
    icae_slots *slots = NULL;
    if (!s->adapter)
        return ic_fail(ICAE_EINVAL, "compressing needs an adapter");
    if (!size)
        return ic_fail(ICAE_EINVAL, "the text is empty: there is nothing to compress");
    IC_TRY(ic_session_tokenize(&ids, s, text, size));
    IC_TRY(ic_compress_ids(&slots, s, &ids, o));
    slots->text_size = size;
    IC_TRY(ic_hash_of(slots->text_sha256, text, size));
    if (o->check || o->exact)
        IC_TRY(measure(slots, s, &ids, text, size, o->exact));
    *out = slots;
    slots = NULL;
done:
    icae_slots_free(slots);
    ic_ids_free(&ids);
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
