/*
 * sampler.c - which examples a step trains on: a function of (seed, number of the sample) alone, so
 * that resumed runs and any number of processes see the same.
 *
 * Objective, rate, length and place are drawn; text comes in an order in which everything is read once
 * before anything is read again. Owns the layout of examples (ICAE §2.2, §2.3 and the published code).
 */
#include "train/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TEXT, TRIPLES };

/* Draws by purpose, each from its own stream. */
enum { DRAW_OBJECTIVE, DRAW_RATE, DRAW_MULTI, DRAW_LENGTH, DRAW_PLACE, DRAW_START, DRAW_PLAIN };

enum {
    CONTINUED_FROM = 65, /* tokens that a continuation has at least */
    LEAST_CONTINUATION = 256
};

/* Share of text contexts that are moved to the start of their document, where real texts start. */
#define START_SHARE 0.125

static double draw(const ic_sampler *s, int purpose, uint64_t index)
{
    return ic_random_unit(s->seed, IC_STREAM_MIX + ((uint64_t)(purpose + 1) << 8), index);
}

/* ---- order ------------------------------------------------------------------------------------ */

/* A Feistel network over the next power of four; numbers outside 0 … n - 1 are sent through again. */
uint64_t ic_permute(uint64_t index, uint64_t n, uint64_t seed, uint64_t round)
{
    enum { ROUNDS = 6 };
    unsigned half = 1;
    while (half < 31 && (uint64_t)1 << 2 * half < n)
        half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = index;
    if (n < 2)
        return 0;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t i = 0; i < ROUNDS; i++) {
            uint32_t f[4];
            ic_random_block(f, seed, IC_STREAM_DATA + ((i + 1) << 8) + (round << 16), right);
            uint64_t next = left ^ (f[0] & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= n);
    return x;
}

/* ---- pools ------------------------------------------------------------------------------------ */

static void pool_free(ic_pool *p)
{
    ic_free(p->end);
    ic_free(p->count);
}

/* Things of one kind in all sources. */
static int pool_fill(ic_pool *p, const ic_data *data, int kind, int unit)
{
    p->data = data;
    p->unit = kind == TEXT ? unit : 0;
    p->end = ic_alloc(data->sources, sizeof *p->end);
    p->count = ic_alloc(data->sources, sizeof *p->count);
    if (!p->end || !p->count)
        return ICAE_ENOMEM;
    bool plain = data->documents > data->triples;
    for (size_t i = 0; i < data->sources; i++) {
        const ic_source *s = &data->source[i];
        bool use = kind == TRIPLES ? s->triples > 0 : !plain || s->documents > s->triples;
        uint64_t u = (uint64_t)p->unit;
        p->count[i] = !use ? 0 : u ? (s->tokens + u - 1) / u : s->documents;
        double things = round((double)p->count[i] * s->weight);
        p->total += use ? (uint64_t)IC_MAX(things, 1.0) : 0;
        p->end[i] = p->total;
    }
    return ICAE_OK;
}

/* The source and its thing that number `index` stands for. */
static const ic_source *pool_at(const ic_pool *p, uint64_t index, uint64_t seed, uint64_t *thing)
{
    uint64_t epoch = index / p->total, at = ic_permute(index % p->total, p->total, seed, epoch);
    size_t i = 0;
    while (at >= p->end[i])
        i++;
    at -= i ? p->end[i - 1] : 0;
    if (p->data->source[i].weight != 1) /* several rounds, or a part of one: an order of its own */
        at = ic_permute(at % p->count[i], p->count[i], seed ^ 0x9e3779b97f4a7c15u * (i + 1),
                        epoch * 1024 + at / p->count[i]);
    *thing = at;
    return &p->data->source[i];
}

/* Document `d` of a source's files taken together. */
static const ic_corpus *file_of_document(const ic_source *s, uint64_t *d)
{
    size_t i = 0;
    while (i + 1 < s->files && *d >= s->file[i].documents)
        *d -= s->file[i++].documents;
    return &s->file[i];
}

/* Token `t` of a source's files taken together: its file and document; *t becomes its place there. */
static const ic_corpus *file_of_token(const ic_source *s, uint64_t *t, uint64_t *document)
{
    size_t i = 0;
    while (i + 1 < s->files && *t >= s->file[i].tokens)
        *t -= s->file[i++].tokens;
    const ic_corpus *c = &s->file[i];
    uint64_t low = 0, high = c->documents - 1;
    *t = IC_MIN(*t, c->tokens - 1);
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if ((uint64_t)c->ends[3 * middle + 2] > *t)
            high = middle;
        else
            low = middle + 1;
    }
    *document = low;
    return c;
}

/* ---- what fits -------------------------------------------------------------------------------- */

static int slots_of(const ic_sampler *s, float rate, int tokens)
{
    int slots = 0, n = ic_segment_count(s->adapter, rate, (uint64_t)tokens);
    for (int i = 0; i < n; i++)
        slots += ic_segment_slots(s->adapter, rate,
                                  ic_segment_tokens(s->adapter, rate, (uint64_t)tokens, i));
    return slots;
}

/* Whether model positions hold encoder and decoder of a context with so many tokens around it. */
static bool fits(const ic_sampler *s, float rate, int tokens, int before, int after, bool restores)
{
    int limit = s->model->config.max_positions;
    int segment = ic_segment_tokens(s->adapter, rate, (uint64_t)tokens, 0);
    if (s->adapter->spread)
        return segment <= limit &&
               before + (restores ? IC_MAX(tokens, after) : tokens + after) <= limit;
    return segment + ic_segment_slots(s->adapter, rate, segment) <= limit &&
           before + slots_of(s, rate, tokens) + after <= limit;
}

/* The most tokens, up to `most`, of a context that fits; 0: none. */
static int most_tokens(const ic_sampler *s, float rate, int most, int before, int after,
                       bool restores)
{
    int low = 0, high = most;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        if (fits(s, rate, middle, before, restores ? middle + 2 : after, restores))
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static float least_rate(const ic_sampler *s)
{
    double least = s->s->rates.count ? s->s->rates.v[0] : (double)s->adapter->rate;
    for (int i = 1; i < s->s->rates.count; i++)
        least = IC_MIN(least, s->s->rates.v[i]);
    return (float)least;
}

static float most_rate(const ic_sampler *s)
{
    double most = s->s->rates.count ? s->s->rates.v[0] : (double)s->adapter->rate;
    for (int i = 1; i < s->s->rates.count; i++)
        most = IC_MAX(most, s->s->rates.v[i]);
    return (float)most;
}

/* Bounds of what is drawn, within what the model's positions hold. */
static int set_bounds(ic_sampler *s, ic_notice_fn notice, void *user)
{
    const icae_adapter *a = s->adapter;
    const ic_settings *c = s->s;
    char line[300];
    double segment = floor(a->k * (double)most_rate(s));
    int limit = s->model->config.max_positions;
    int wanted = c->max_tokens ? (int)c->max_tokens : (int)IC_MIN(4 * segment, 1 << 24);
    int most = most_tokens(s, least_rate(s), wanted, 0, 0, true);
    s->min_tokens = (int)IC_MIN(c->min_tokens, wanted);
    if (most < s->min_tokens)
        return ic_fail(
            ICAE_ELIMIT,
            "k: %d slots a segment and %d tokens of text do not fit into the %d positions of %s",
            a->k, s->min_tokens, limit, s->model->path);
    if (most < wanted && c->max_tokens && notice) {
        snprintf(line, sizeof line,
                 "max_tokens: %d is too long for the model's %d positions; longer texts "
                 "are %s at %d",
                 wanted, limit,
                 strcmp(c->longer, "skip") == 0  ? "left out"
                 : strcmp(c->longer, "cut") == 0 ? "cut"
                                                 : "split",
                 most);
        notice(user, true, line);
    }
    s->max_tokens = most;
    s->continuation = c->continuation
                          ? (int)c->continuation
                          : (int)IC_MAX((double)LEAST_CONTINUATION, IC_MIN(segment, 1 << 20));
    return ICAE_OK;
}

/* Tokens that a text context has on average: with pieces of this size an epoch reads all text about
 * once. */
static int mean_tokens(const ic_sampler *s)
{
    double segment = floor(s->adapter->k * (double)s->adapter->rate), least = s->min_tokens;
    double most = s->max_tokens, single = IC_MIN(segment, most);
    double multi = most > segment ? s->s->multi_share : 0;
    double mean = (1 - multi) * (least + single) / 2 + multi * (segment + most) / 2;
    return (int)IC_MAX(mean, 1.0);
}

/* ---- drawing ---------------------------------------------------------------------------------- */

static float draw_rate(const ic_sampler *s, uint64_t index)
{
    const ic_reals *r = &s->s->rates;
    if (!r->count)
        return s->adapter->rate;
    int i = (int)(draw(s, DRAW_RATE, index) * r->count);
    return (float)r->v[IC_MIN(i, r->count - 1)];
}

/* Tokens of a context: within one segment, or of several. */
static int draw_length(const ic_sampler *s, uint64_t index, float rate, double reach)
{
    int segment = (int)IC_MAX(floor(s->adapter->k * (double)rate), 1.0);
    int most = s->min_tokens + (int)round((s->max_tokens - s->min_tokens) * IC_MIN(reach, 1.0));
    bool multi = draw(s, DRAW_MULTI, index) < s->s->multi_share && most > segment;
    int low = multi ? IC_MAX(segment + 1, s->min_tokens) : s->min_tokens;
    int high = multi ? most : IC_MIN(segment, most);
    double u = draw(s, DRAW_LENGTH, index);
    if (low >= high)
        return high;
    if (strcmp(s->s->lengths, "longest") == 0)
        return high;
    if (strcmp(s->s->lengths, "log") == 0)
        return IC_MIN(high, (int)floor(low * pow((high + 1.0) / low, u)));
    return IC_MIN(high, low + (int)floor(u * (high - low + 1)));
}

/* Whether a text itself has an id before its first, which can then be learnt too. */
static bool begins(const ic_sampler *s)
{
    return s->model->config.bos >= 0;
}

static void finish(const ic_sampler *s, ic_item *o)
{
    int after = o->tokens + 2, before = 0;
    if (o->plain && o->objective == IC_OBJECTIVE_LM) {
        before = begins(s);
        after = o->continuation;
        o->targets = o->tokens - s->adapter->bos + o->continuation - !before;
    } else if (o->objective == IC_OBJECTIVE_AE) {
        o->targets = o->tokens + 1;
    } else if (o->objective == IC_OBJECTIVE_LM) {
        after = o->continuation + s->adapter->lm_token;
        o->targets = o->continuation - (int)s->s->lm_skip;
    } else {
        before = (int)s->left.count;
        after = 1 + o->prompt + (int)s->right.count + o->answer + 1;
        after += o->plain ? (int)s->gap.count : 0;
        o->targets = o->answer + 1;
    }
    o->cost = o->tokens + before + after;
}

/* A piece of plain text, to be restored or continued. */
static void draw_text(const ic_sampler *s, ic_item *o, uint64_t index, double reach)
{
    const ic_pool *p = &s->pool[TEXT];
    int bos = s->adapter->bos, length = IC_MAX(draw_length(s, index, o->rate, reach) - bos, 1);
    uint64_t thing, place = 0;
    const ic_source *source = pool_at(p, index, s->seed, &thing);
    if (p->unit) {
        place = thing * (uint64_t)p->unit + (uint64_t)(draw(s, DRAW_PLACE, index) * p->unit);
        place = IC_MIN(place, source->tokens - 1);
        o->corpus = file_of_token(source, &place, &o->document);
        uint64_t start = ic_corpus_start(o->corpus, o->document, 0);
        place = place > start ? place - start : 0;
    } else {
        bool skip = strcmp(s->s->longer, "skip") == 0;
        for (uint64_t tries = 0; tries < source->documents; tries++) {
            o->document = (thing + tries) % source->documents;
            o->corpus = file_of_document(source, &o->document);
            if (!skip || ic_corpus_count(o->corpus, o->document, 0) <= (uint64_t)s->max_tokens)
                break;
        }
    }
    uint64_t have = ic_corpus_count(o->corpus, o->document, 0);
    if (!p->unit)
        have = IC_MIN(have, (uint64_t)(s->max_tokens + s->continuation));
    int more = o->objective == IC_OBJECTIVE_LM ? s->continuation : 0;
    uint64_t want = (uint64_t)(length + more);
    place =
        have <= want || draw(s, DRAW_START, index) < START_SHARE ? 0 : IC_MIN(place, have - want);
    uint64_t text = IC_MIN((uint64_t)length, have - place);
    o->tokens = (int)text + bos;
    o->first = ic_corpus_start(o->corpus, o->document, 0) + place;
    if (more) {
        more = (int)IC_MIN((uint64_t)more, have - place - text);
        while (more >= CONTINUED_FROM && !fits(s, o->rate, o->tokens, 0, more + 1, false))
            more--;
        o->continuation = more;
        if (more < CONTINUED_FROM)
            o->objective = IC_OBJECTIVE_AE;
    }
    if (o->objective == IC_OBJECTIVE_AE)
        o->continuation = 0;
}

/* A context with prompt and answer. False if it cannot be used; *cut: some of it is left out. */
static bool use_triple(const ic_sampler *s, ic_item *o, bool *cut)
{
    const ic_corpus *c = o->corpus;
    uint64_t text = ic_corpus_count(c, o->document, 0), prompt = ic_corpus_count(c, o->document, 1);
    uint64_t answer = ic_corpus_count(c, o->document, 2), limit = (uint64_t)s->max_tokens;
    int bos = s->adapter->bos, positions = s->model->config.max_positions;
    *cut = false;
    if (!prompt || !answer || prompt + answer > (uint64_t)positions)
        return false;
    if (text + (uint64_t)bos > limit && strcmp(s->s->longer, "skip") == 0)
        return false;
    int tokens = (int)IC_MIN(text + (uint64_t)bos, limit);
    int after = 1 + (int)prompt + (int)s->right.count + (int)answer + 1;
    int most = fits(s, o->rate, tokens, (int)s->left.count, after, false)
                   ? tokens
                   : most_tokens(s, o->rate, tokens, (int)s->left.count, after, false);
    if (most < IC_MIN(tokens, s->min_tokens) || most <= bos)
        return false;
    *cut = (uint64_t)(most - bos) < text;
    o->first = ic_corpus_start(c, o->document, 0);
    o->tokens = most;
    o->prompt = (int)prompt;
    o->answer = (int)answer;
    return true;
}

static void draw_triple(const ic_sampler *s, ic_item *o, uint64_t index)
{
    uint64_t thing;
    bool cut;
    const ic_source *source = pool_at(&s->pool[TRIPLES], index, s->seed, &thing);
    for (uint64_t tries = 0; tries < source->documents; tries++) {
        o->document = (thing + tries) % source->documents;
        o->corpus = file_of_document(source, &o->document);
        if (use_triple(s, o, &cut))
            return;
    }
}

void ic_sampler_draw(const ic_sampler *s, ic_item *out, uint64_t index, ic_objective objective,
                     float rate, double reach)
{
    *out = (ic_item){.objective = objective};
    if (objective == IC_OBJECTIVES) {
        double u = draw(s, DRAW_OBJECTIVE, index);
        out->objective = u < s->share[0]   ? IC_OBJECTIVE_AE
                         : u < s->share[1] ? IC_OBJECTIVE_LM
                                           : IC_OBJECTIVE_FT;
    }
    out->rate = rate > 0 ? rate : draw_rate(s, index);
    if (out->objective == IC_OBJECTIVE_FT)
        draw_triple(s, out, index);
    else
        draw_text(s, out, index, reach);
    if (objective == IC_OBJECTIVES && s->adapter->both && out->objective != IC_OBJECTIVE_AE)
        out->plain = draw(s, DRAW_PLAIN, index) < s->s->plain_share;
    out->taught = objective == IC_OBJECTIVES && s->s->distill > 0 && !out->plain &&
                  out->objective != IC_OBJECTIVE_AE;
    finish(s, out);
}

/* ---- filling ---------------------------------------------------------------------------------- */

/* With a teacher the same again without slots, which can begin with an id more. */
size_t ic_item_ids(const ic_sampler *s, const ic_item *o)
{
    return (size_t)o->cost + (o->taught ? (size_t)o->cost + s->gap.count + 1 : 0);
}

/* Appends a part of the document, or ids. */
static int put_part(const ic_sampler *s, const ic_item *o, int32_t **at, uint64_t first, int count)
{
    int rc = ic_corpus_read(*at, o->corpus, first, count, s->model->config.vocabulary);
    *at += count;
    return rc;
}

static void put_ids(int32_t **at, const ic_ids *ids)
{
    if (ids->count)
        memcpy(*at, ids->ids, ids->count * sizeof **at);
    *at += ids->count;
}

/* The context stands in `before` or, as it is learnt too, in `after`. */
static int fill_plain(const ic_sampler *s, const ic_item *o, int32_t *ids, ic_example *out)
{
    int rc = ICAE_OK, text = o->tokens - s->adapter->bos;
    bool lm = o->objective == IC_OBJECTIVE_LM;
    int32_t *at = ids;
    *out = (ic_example){.context = ids, .before = ids, .rate = o->rate, .objective = o->objective};
    if (lm && begins(s)) {
        *at++ = s->model->config.bos;
    } else if (!lm) {
        put_ids(&at, &s->left);
        IC_TRY(put_part(s, o, &at, o->first, text));
        put_ids(&at, &s->gap);
        IC_TRY(put_part(s, o, &at, ic_corpus_start(o->corpus, o->document, 1), o->prompt));
        put_ids(&at, &s->right);
    }
    out->before_count = (int)(at - ids);
    out->after = at;
    out->unscored = !out->before_count;
    if (lm) {
        IC_TRY(put_part(s, o, &at, o->first, text + o->continuation));
    } else {
        IC_TRY(put_part(s, o, &at, ic_corpus_start(o->corpus, o->document, 2), o->answer));
        *at++ = s->eos;
    }
    out->after_count = (int)(at - out->after);
done:
    return rc;
}

/* A text that is too long to be read as it is has no teacher. */
static int fill_teacher(const ic_sampler *s, const ic_item *o, int32_t *ids, ic_example *out)
{
    ic_example plain;
    int rc = fill_plain(s, o, ids, &plain);
    int count = plain.before_count + plain.after_count - 1;
    if (rc == ICAE_OK && count <= s->model->config.max_positions) {
        out->full = ids;
        out->full_count = count;
    }
    return rc;
}

int ic_sampler_fill(const ic_sampler *s, const ic_item *o, int32_t *ids, ic_example *out)
{
    int rc = ICAE_OK, bos = s->adapter->bos, text = o->tokens - bos;
    int32_t *at = ids;
    if (o->plain)
        return fill_plain(s, o, ids, out);
    *out = (ic_example){
        .context = ids, .tokens = o->tokens, .rate = o->rate, .objective = o->objective};
    if (bos)
        *at++ = s->model->config.bos;
    IC_TRY(put_part(s, o, &at, o->first, text));
    out->before = at;
    if (o->objective == IC_OBJECTIVE_FT)
        put_ids(&at, &s->left);
    out->before_count = (int)(at - out->before);
    out->after = at;
    if (o->objective == IC_OBJECTIVE_AE) {
        *at++ = IC_AE;
        memcpy(at, ids, (size_t)o->tokens * sizeof *at);
        at += o->tokens;
        *at++ = s->eos;
        out->unscored = 1;
    } else if (o->objective == IC_OBJECTIVE_LM) {
        if (s->adapter->lm_token)
            *at++ = IC_LM;
        IC_TRY(put_part(s, o, &at, o->first + (uint64_t)text, o->continuation));
        out->unscored = s->adapter->lm_token + (int)s->s->lm_skip;
    } else {
        *at++ = IC_FT;
        IC_TRY(put_part(s, o, &at, ic_corpus_start(o->corpus, o->document, 1), o->prompt));
        put_ids(&at, &s->right);
        out->unscored = (int)(at - out->after);
        IC_TRY(put_part(s, o, &at, ic_corpus_start(o->corpus, o->document, 2), o->answer));
        *at++ = s->eos;
    }
    out->after_count = (int)(at - out->after);
    if (o->taught)
        IC_TRY(fill_teacher(s, o, at, out));
done:
    return rc;
}

/* ---- making one ------------------------------------------------------------------------------- */

/* Goes over all documents once, so that whatever is cut or left out is told, and the costliest sample is
 * known. */
static int count_all(ic_sampler *s, bool triples)
{
    uint64_t usable = 0;
    s->max_cost = 2 * s->max_tokens + 2;
    if (s->s->lm_weight > 0)
        s->max_cost = IC_MAX(s->max_cost, s->max_tokens + s->continuation + 1);
    const ic_data *d = s->pool[TEXT].data;
    for (size_t i = 0; i < d->sources; i++)
        for (size_t f = 0; f < d->source[i].files; f++) {
            const ic_corpus *c = &d->source[i].file[f];
            for (uint64_t n = 0; n < c->documents; n++) {
                bool cut = false;
                ic_item o = {.rate = least_rate(s), .corpus = c, .document = n};
                if (!ic_corpus_count(c, n, 2)) {
                    s->longer += ic_corpus_count(c, n, 0) > (uint64_t)s->max_tokens;
                    continue;
                }
                bool use = triples && use_triple(s, &o, &cut);
                if (use) {
                    o.objective = IC_OBJECTIVE_FT;
                    o.plain = s->adapter->both;
                    finish(s, &o);
                    s->max_cost = IC_MAX(s->max_cost, o.cost);
                }
                usable += use;
                s->unusable += triples && !use;
                s->cut += cut;
            }
        }
    if (triples && !usable)
        return ic_fail(ICAE_EINVAL,
                       "data: no prompt with its answer and context fits into the model's "
                       "%d positions",
                       s->model->config.max_positions);
    if (strcmp(s->s->longer, "skip") == 0 && s->longer >= d->documents)
        return ic_fail(ICAE_EINVAL,
                       "data: every document is longer than %d tokens and longer = skip",
                       s->max_tokens);
    return ICAE_OK;
}

/* Shares of the objectives, as far as the text serves them. */
static int set_shares(ic_sampler *s, const ic_data *data)
{
    const ic_settings *c = s->s;
    double w[IC_OBJECTIVES] = {c->ae_weight, c->lm_weight, c->ft_weight};
    double sum = w[0] + w[1] + w[2];
    if (w[IC_OBJECTIVE_FT] > 0 && !data->triples)
        return ic_fail(ICAE_EINVAL,
                       "data: no document has a prompt and an answer, which ft_weight needs");
    s->share[0] = w[0] / sum;
    s->share[1] = (w[0] + w[1]) / sum;
    s->share[2] = 1;
    return ICAE_OK;
}

int ic_sampler_new(ic_sampler **out, const ic_settings *settings, const icae_model *model,
                   const icae_adapter *adapter, const ic_data *data, uint64_t seed,
                   ic_notice_fn notice, void *user)
{
    int rc = ICAE_OK;
    const ic_config *c = &model->config;
    ic_sampler *s = ic_alloc(1, sizeof *s);
    if (!s)
        return ICAE_ENOMEM;
    *s = (ic_sampler){
        .s = settings, .model = model, .adapter = adapter, .seed = seed, .eos = c->eos[0]};
    if (!c->eos_count || (adapter->bos && c->bos < 0)) {
        rc = ic_fail(ICAE_EUNSUPPORTED, "%s: the model names no %s token", model->path,
                     c->eos_count ? "bos" : "eos");
        goto done;
    }
    IC_TRY(set_shares(s, data));
    IC_TRY(set_bounds(s, notice, user));
    IC_TRY(ic_chat_left(&s->left, model->chat, model->tokenizer, c->bos, true));
    IC_TRY(ic_tokenizer_encode(&s->gap, model->tokenizer, "\n\n", 2, false));
    IC_TRY(ic_chat_right(&s->right, model->chat, model->tokenizer));
    bool pieces = strcmp(settings->longer, "split") == 0;
    IC_TRY(pool_fill(&s->pool[TEXT], data, TEXT, pieces ? mean_tokens(s) : 0));
    IC_TRY(pool_fill(&s->pool[TRIPLES], data, TRIPLES, 0));
    IC_TRY(count_all(s, settings->ft_weight > 0));
    *out = s;
    return ICAE_OK;
done:
    ic_sampler_free(s);
    return rc;
}

void ic_sampler_free(ic_sampler *s)
{
    if (!s)
        return;
    pool_free(&s->pool[TEXT]);
    pool_free(&s->pool[TRIPLES]);
    ic_ids_free(&s->left);
    ic_ids_free(&s->gap);
    ic_ids_free(&s->right);
    ic_free(s);
}
