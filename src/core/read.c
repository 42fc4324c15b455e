/*
 * read.c - reading slots: restore, continue, ask, chat.
 *
 * Each builds the prompt that the method prescribes (ICAE §2.3, published code v1 and v2) and lets
 * generate.c write. Raw text may stand wherever slots may.
 */
#include "core/core.h"

#include <math.h>
#include <string.h>

/* ---- where generated ids go ------------------------------------------------------------------- */

/* Streams text to the caller's function, or gathers it. */
typedef struct output {
    ic_stream_decoder decoder;
    icae_text_fn write; /* NULL: gather in `text` */
    void *user;
    ic_buffer text;
    int rc;
    const icae_session *session;
    uint64_t done, total; /* progress of a gathered restoration */
    uint64_t *token;      /* where the caller reads which token a piece ends with, or NULL */
    uint64_t next;        /* number of the next one */
} output;

static int deliver(output *o, const char *piece, size_t size)
{
    if (!size)
        return 0;
    return o->write ? o->write(o->user, piece, size) : ic_buffer_add(&o->text, piece, size);
}

static int take_id(void *user, int32_t id)
{
    output *o = user;
    const char *piece;
    size_t size;
    if (o->token)
        *o->token = o->next++;
    if ((o->rc = ic_stream_add(&o->decoder, id, &piece, &size)) < 0)
        return o->rc;
    const icae_session *s = o->session;
    if (o->total && s->progress && s->progress(s->user, "tokens", ++o->done, o->total))
        return 1;
    return deliver(o, piece, size);
}

/* Runs one generation whose text goes to `o`, whose stream has begun. */
static int write_ids(icae_session *s, ic_prompt *p, int first, ic_kv **kv, ic_generation *g,
                     output *o)
{
    g->take = take_id;
    g->user = o;
    o->rc = ICAE_OK;
    int rc = ic_generate(s, p, first, kv, g);
    return rc == ICAE_ECANCELLED && o->rc < 0 ? o->rc
                                              : rc; /* the decoder failed, nobody asked to stop */
}

/* Delivers what the stream held back. */
static int end_stream(output *o)
{
    const char *piece;
    size_t size;
    int rc = ic_stream_end(&o->decoder, &piece, &size);
    if (rc == ICAE_OK && deliver(o, piece, size))
        rc = ic_fail(ICAE_ECANCELLED, "writing was stopped");
    return rc;
}

/* One generation that is the whole output. */
static int generate(icae_session *s, ic_prompt *p, int first, ic_kv **kv, ic_generation *g,
                    output *o)
{
    ic_stream_begin(&o->decoder, s->model->tokenizer, true);
    int rc = write_ids(s, p, first, kv, g, o);
    if (rc == ICAE_OK)
        rc = end_stream(o);
    ic_stream_free(&o->decoder);
    return rc;
}

static int check_options(const icae_generate_options *o)
{
    const icae_sampling *s = &o->sampling;
    if (o->expand < 0)
        return ic_fail(ICAE_EINVAL, "expand: %d segments; it must not be negative", o->expand);
    if (s->temperature < 0 || !isfinite(s->temperature) || s->top_k < 0 ||
        !(s->top_p >= 0 && s->top_p <= 1) || !(s->min_p >= 0 && s->min_p <= 1))
        return ic_fail(ICAE_EINVAL,
                       "sampling: temperature and top-k must not be negative, top-p and "
                       "min-p lie between 0 and 1");
    return ICAE_OK;
}

static int begin(ic_generation *g, const icae_session *s, const icae_generate_options *options,
                 icae_text_fn write)
{
    static const icae_generate_options defaults;
    options = options ? options : &defaults;
    *g = (ic_generation){.sampling = options->sampling, .end_of_turn = -1};
    g->through_eos = g->sampling.ignore_eos;
    if (!write)
        return ic_fail(ICAE_EINVAL, "there is nowhere to write to");
    if (!s->model->tokenizer)
        return ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be written",
                       s->model->path);
    return check_options(options);
}

/* before: seconds that were spent before the prompt was read. */
static void finish(const ic_generation *g, const icae_generate_options *options, double before)
{
    if (!options || !options->result)
        return;
    *options->result = g->result;
    options->result->prompt_seconds += before;
    options->result->seconds += before;
}

/* ---- restore ---------------------------------------------------------------------------------- */

/* Corrections of one span, renumbered from its first token. */
static void span_corrections(ic_generation *g, ic_correction *all, size_t count,
                             const ic_span *span)
{
    size_t i = 0;
    while (i < count && all[i].at < span->first_token)
        i++;
    g->corrections = all + i;
    g->correction_count = 0;
    for (; i < count && all[i].at < span->first_token + span->tokens; i++, g->correction_count++)
        all[i].at -= (uint32_t)span->first_token;
}

static int restore_spans(icae_session *s, const icae_slots *slots, ic_generation *g,
                         ic_correction *corrections, size_t count, output *o)
{
    int rc = ICAE_OK;
    icae_result total = {0};
    uint64_t left = g->sampling.max_tokens;
    ic_span span;
    ic_prompt p = {0};
    ic_kv *kv = NULL;
    ic_stream_begin(&o->decoder, s->model->tokenizer, true); /* a character may cross two spans */
    for (uint32_t at = 0; ic_span_at(&span, slots, at); at += span.segments) {
        IC_TRY(ic_span_prompt(&p, s, slots, &span));
        IC_TRY(ic_prompt_fits(&p, span.tokens, "restoring"));
        if (corrections)
            span_corrections(g, corrections, count, &span);
        g->expected = span.tokens;
        o->next = span.first_token;
        g->sampling.max_tokens = left;
        IC_TRY(write_ids(s, &p, 0, &kv, g, o));
        total.prompt_rows += g->result.prompt_rows;
        total.prompt_slots += g->result.prompt_slots;
        total.tokens += g->result.tokens;
        total.prompt_seconds += g->result.prompt_seconds;
        total.seconds += g->result.seconds;
        total.stop = g->result.stop;
        ic_prompt_free(&p);
        kv->rows = 0;
        if (left && !(left -= IC_MIN(left, g->result.tokens)))
            break;
    }
    IC_TRY(end_stream(o));
done:
    g->result = total;
    ic_stream_free(&o->decoder);
    ic_prompt_free(&p);
    ic_kv_free(kv);
    return rc;
}

/* Gathers the decoded text, mends it, and hands out the bytes only once they are proven. */
static int restore_exact(icae_session *s, const icae_slots *slots, ic_generation *g, output *o,
                         icae_text_fn write, void *user)
{
    int rc = ICAE_OK;
    size_t count = 0;
    ic_correction *c = NULL;
    ic_buffer original = {0};
    char sha[65];
    ic_dtype act = s->act;
    s->act = IC_F32;
    g->sampling = (icae_sampling){0};
    g->through_eos = true;
    o->write = NULL;
    o->total = slots->tokens;
    IC_TRY(ic_exact_decode_corrections(&c, &count, slots->corrections.data, slots->corrections.size,
                                       s->model->config.vocabulary, slots->tokens));
    IC_TRY(restore_spans(s, slots, g, c, count, o));
    rc = ic_exact_apply_patch(&original, slots->corrections.data, slots->corrections.size,
                              o->text.data ? o->text.data : "", o->text.size, slots->text_size);
    if (rc == ICAE_OK)
        IC_TRY(ic_hash_of(sha, original.data, original.size));
    if (rc == ICAE_EFORMAT || (rc == ICAE_OK && strcmp(sha, slots->text_sha256))) {
        rc = ic_fail(ICAE_EINEXACT, "the restored text is not the original (SHA-256 differs): this "
                                    "machine decodes differently; nothing was written");
        goto done;
    }
    IC_TRY(rc);
    g->result.exact = true;
    if (write(user, original.data, original.size))
        rc = ic_fail(ICAE_ECANCELLED, "writing was stopped");
done:
    s->act = act;
    ic_free(c);
    ic_buffer_free(&original);
    return rc;
}

int icae_restore(icae_session *s, const icae_slots *slots, const icae_generate_options *options,
                 icae_text_fn write, void *user)
{
    int rc = ICAE_OK;
    ic_generation g;
    output o = {.write = write, .user = user, .session = s};
    IC_TRY(begin(&g, s, options, write));
    IC_TRY(icae_slots_check(slots, s));
    if (slots->corrections.size && !g.sampling.max_tokens) {
        IC_TRY(restore_exact(s, slots, &g, &o, write, user));
    } else {
        o.token = options ? options->token : NULL;
        IC_TRY(restore_spans(s, slots, &g, NULL, 0, &o));
    }
    finish(&g, options, 0);
done:
    ic_buffer_free(&o.text);
    return rc;
}

/* ---- prompts of parts ------------------------------------------------------------------------- */

static int add_text(ic_prompt *p, const char *text, size_t size)
{
    ic_ids ids = {0};
    int rc = ic_tokenizer_encode_untrusted(&ids, p->session->model->tokenizer, text, size, false);
    if (rc == ICAE_OK)
        rc = ic_prompt_ids(p, ids.ids, ids.count);
    ic_ids_free(&ids);
    return rc;
}

static int add_special(ic_prompt *p, int32_t special)
{
    return ic_prompt_ids(p, &special, 1);
}

/* Segments that are read from their slots. x: those that are not; may be NULL. */
static size_t slot_segments(const icae_part *parts, size_t count, const ic_expansion *x)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        for (uint32_t j = 0; parts[i].slots && j < parts[i].slots->segments; j++)
            n += ic_expansion_at(x, parts[i].slots, j) == NULL;
    return n;
}

/* The parts in their order; raw texts that follow each other are kept apart by a blank line.
 * `mark`: a special token behind the last slots, or 0. */
static int add_parts(ic_prompt *p, const icae_part *parts, size_t count, const ic_expansion *x,
                     int32_t mark)
{
    int rc = ICAE_OK;
    size_t left = slot_segments(parts, count, x);
    for (size_t i = 0; i < count; i++) {
        const icae_slots *slots = parts[i].slots;
        if (!slots) {
            if (i && !parts[i - 1].slots)
                IC_TRY(add_text(p, "\n\n", 2));
            IC_TRY(add_text(p, parts[i].text, parts[i].size));
            continue;
        }
        IC_TRY(icae_slots_check(slots, p->session));
        for (uint32_t j = 0, end; j < slots->segments; j = end) {
            bool text = ic_expansion_at(x, slots, j) != NULL;
            IC_TRY(ic_prompt_run(p, slots, j, x, &end));
            left -= text ? 0 : end - j;
            if (mark && !text && !left)
                IC_TRY(add_special(p, mark));
        }
    }
done:
    return rc;
}

int ic_continue_prompt(ic_prompt *p, icae_session *s, const icae_part *parts, size_t count,
                       int expand)
{
    int rc = ICAE_OK;
    ic_expansion x = {0};
    ic_prompt_begin(p, s);
    IC_TRY(ic_expand_last(&x, s, parts, count, expand));
    bool slots = slot_segments(parts, count, &x) > 0;
    bool has_bos = x.count && s->adapter->bos; /* its text begins with one */
    int32_t mark = slots && s->adapter && s->adapter->lm_token ? IC_LM : 0;
    if (!slots && !has_bos && s->model->config.bos >= 0)
        IC_TRY(ic_prompt_ids(p, &s->model->config.bos, 1));
    IC_TRY(add_parts(p, parts, count, &x, mark));
    if (!p->rows)
        rc = ic_fail(ICAE_EINVAL, "there is nothing to continue");
done:
    ic_expansion_free(&x);
    return rc;
}

int icae_continue(icae_session *s, const icae_part *parts, size_t count,
                  const icae_generate_options *options, icae_text_fn write, void *user)
{
    int rc = ICAE_OK;
    ic_generation g;
    output o = {.write = write, .user = user, .session = s};
    ic_prompt p;
    ic_kv *kv = NULL;
    double start = ic_seconds();
    ic_prompt_begin(&p, s);
    IC_TRY(begin(&g, s, options, write));
    IC_TRY(ic_continue_prompt(&p, s, parts, count, options ? options->expand : 0));
    IC_TRY(ic_prompt_fits(&p, 1, "the prompt"));
    start = ic_seconds() - start;
    IC_TRY(generate(s, &p, 0, &kv, &g, &o));
    finish(&g, options, start);
done:
    ic_prompt_free(&p);
    ic_kv_free(kv);
    return rc;
}

/* ---- questions -------------------------------------------------------------------------------- */

struct icae_chat {
    icae_session *session;
    icae_part *parts; /* owned; what they point to is borrowed */
    size_t count;
    ic_prompt prompt; /* as it was last read, replies included */
    int front;        /* its rows in front of the first turn */
    ic_kv *kv;
    int read;   /* prompt rows that are in the cache */
    bool slots; /* some part is slots */
    bool plain; /* v1 adapters: no template, [FT] on both sides */
    int turns;
};

int icae_chat_new(icae_chat **out, icae_session *s, const icae_part *parts, size_t count)
{
    if (!s->model->tokenizer)
        return ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be read",
                       s->model->path);
    for (size_t i = 0; i < count; i++) { /* before anything is asked */
        int rc = parts[i].slots ? icae_slots_check(parts[i].slots, s) : ICAE_OK;
        if (rc < 0)
            return rc;
    }
    icae_chat *c = ic_alloc(1, sizeof *c);
    if (!c || !(c->parts = ic_alloc(IC_MAX(count, 1), sizeof *parts))) {
        icae_chat_free(c);
        return ICAE_ENOMEM;
    }
    for (size_t i = 0; i < count; i++)
        c->parts[i] = parts[i];
    c->count = count;
    c->session = s;
    c->slots = slot_segments(parts, count, NULL) > 0;
    c->plain = c->slots && ic_adapter_plain(s->adapter);
    ic_prompt_begin(&c->prompt, s);
    *out = c;
    return ICAE_OK;
}

void icae_chat_free(icae_chat *c)
{
    if (!c)
        return;
    ic_prompt_free(&c->prompt);
    ic_kv_free(c->kv);
    ic_free(c->parts);
    ic_free(c);
}

/* The template's left side and the parts, with up to `expand` segments expanded for the message. */
static int add_front(ic_prompt *p, const icae_chat *c, const char *message, int expand)
{
    int rc = ICAE_OK;
    icae_session *s = c->session;
    const icae_model *m = s->model;
    ic_ids left = {0}, ids = {0};
    ic_expansion x = {0};
    if (!c->plain)
        IC_TRY(ic_chat_left(&left, m->chat, m->tokenizer, m->config.bos, true));
    if (expand && c->slots) {
        IC_TRY(ic_tokenizer_encode_untrusted(&ids, m->tokenizer, message, strlen(message), false));
        IC_TRY(ic_expand_for(&x, s, c->parts, c->count, &left, &ids, expand));
    }
    IC_TRY(ic_prompt_ids(p, left.ids, left.count));
    IC_TRY(add_parts(p, c->parts, c->count, &x, 0));
    if (c->count && !c->slots)
        IC_TRY(add_text(p, "\n\n", 2));
done:
    ic_ids_free(&left);
    ic_ids_free(&ids);
    ic_expansion_free(&x);
    return rc;
}

/* [FT] message right; a later turn first closes the last reply and opens a new turn. */
static int add_turn(ic_prompt *p, const icae_chat *c, const char *message)
{
    int rc = ICAE_OK;
    const icae_model *m = c->session->model;
    ic_ids ids = {0};
    int32_t eos = m->config.eos_count ? m->config.eos[0] : -1;
    if (c->turns && !c->plain) {
        IC_TRY(ic_chat_reply_end(&ids, m->chat, m->tokenizer, eos));
        IC_TRY(ic_chat_left(&ids, m->chat, m->tokenizer, m->config.bos, false));
        IC_TRY(ic_prompt_ids(p, ids.ids, ids.count));
    }
    if (c->slots && (!c->turns || c->plain))
        IC_TRY(add_special(p, IC_FT));
    IC_TRY(add_text(p, message, strlen(message)));
    if (c->plain) {
        IC_TRY(add_special(p, IC_FT));
    } else {
        ids.count = 0;
        IC_TRY(ic_chat_right(&ids, m->chat, m->tokenizer));
        IC_TRY(ic_prompt_ids(p, ids.ids, ids.count));
    }
done:
    ic_ids_free(&ids);
    return rc;
}

/* All that the decoder reads before it replies: front, what was said, message. *front: rows of the first. */
static int lay_out(ic_prompt *p, int *front, const icae_chat *c, const char *message, int expand)
{
    int rc = ICAE_OK;
    ic_prompt_begin(p, c->session);
    IC_TRY(add_front(p, c, message, expand));
    *front = p->rows;
    if (c->turns)
        IC_TRY(ic_prompt_ids(p, c->prompt.id + c->front, (size_t)(c->prompt.rows - c->front)));
    IC_TRY(add_turn(p, c, message));
done:
    return rc;
}

/* Rows from the start on that are the same in both. */
static int same_rows(const ic_prompt *a, const ic_prompt *b)
{
    int n = 0, most = IC_MIN(a->rows, b->rows);
    size_t slot = (size_t)a->session->model->config.width * sizeof(float);
    while (n < most && a->id[n] == b->id[n] && a->pos[n] == b->pos[n] &&
           (!a->slot[n] || memcmp(a->slot[n], b->slot[n], slot) == 0))
        n++;
    return n;
}

int32_t ic_end_of_turn(const icae_session *s)
{
    const char *token = s->model->chat->end_of_turn;
    return token ? ic_tokenizer_id(s->model->tokenizer, token) : -1;
}

int ic_ask_prompt(ic_prompt *p, icae_session *s, const icae_part *parts, size_t count,
                  const char *question, int expand)
{
    icae_chat *c;
    int front, rc = icae_chat_new(&c, s, parts, count);
    if (rc < 0)
        return rc;
    rc = lay_out(p, &front, c, question, expand);
    if (rc < 0)
        ic_prompt_free(p);
    icae_chat_free(c);
    return rc;
}

int icae_chat_say(icae_chat *c, const char *message, const icae_generate_options *options,
                  icae_text_fn write, void *user)
{
    int rc = ICAE_OK, front;
    icae_session *s = c->session;
    ic_generation g;
    output o = {.write = write, .user = user, .session = s};
    double start = ic_seconds();
    ic_prompt p;
    ic_prompt_begin(&p, s);
    IC_TRY(begin(&g, s, options, write));
    IC_TRY(lay_out(&p, &front, c, message, options ? options->expand : 0));
    IC_TRY(ic_prompt_fits(&p, 1, "the question with its context"));
    c->read = IC_MIN(c->read, same_rows(&c->prompt, &p));
    if (c->kv)
        c->kv->rows = c->read;
    ic_prompt_free(&c->prompt);
    c->prompt = p;
    c->front = front;
    ic_prompt_begin(&p, s);
    g.end_of_turn = ic_end_of_turn(s);
    start = ic_seconds() - start;
    rc = generate(s, &c->prompt, c->read, &c->kv, &g, &o);
    c->turns++;
    c->read = c->kv ? c->kv->rows : c->read;
    IC_TRY(rc);
    finish(&g, options, start);
done:
    ic_prompt_free(&p);
    return rc;
}

int icae_ask(icae_session *s, const icae_part *parts, size_t count, const char *question,
             const icae_generate_options *options, icae_text_fn write, void *user)
{
    icae_chat *c;
    if (!question || !*question)
        return ic_fail(ICAE_EINVAL, "the question is empty");
    int rc = icae_chat_new(&c, s, parts, count);
    if (rc < 0)
        return rc;
    rc = icae_chat_say(c, question, options, write, user);
    icae_chat_free(c);
    return rc;
}
