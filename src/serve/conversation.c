/*
 * conversation.c - from messages to the rows that the decoder reads.
 *
 * The layout is that of icae_chat (core/read.c): the template's left part, slots, [FT], text, right part;
 * a published v1 adapter has no template but [FT] on both sides. Slots may stand anywhere in a user's
 * message; [FT] follows each run of them. Templates here have no part for system messages: those stand
 * before the first user's text. Uses of the session are reads only.
 */
#include "serve/conversation.h"

#include <string.h>

static int add_ids(ic_conversation *c, const int32_t *ids, size_t count)
{
    int rc = ic_prompt_ids(&c->prompt, ids, count);
    return rc < 0 ? rc : ic_buffer_add(&c->seed, ids, count * sizeof *ids);
}

static int add_text(ic_conversation *c, const char *text, size_t size)
{
    ic_ids ids = {0};
    const ic_tokenizer *t = c->prompt.session->model->tokenizer;
    int rc = ic_tokenizer_encode_untrusted(&ids, t, text, size, false);
    if (rc == ICAE_OK)
        rc = add_ids(c, ids.ids, ids.count);
    ic_ids_free(&ids);
    return rc;
}

/* The key takes the vectors themselves: what a file says of itself need not be true. */
static int add_slots(ic_conversation *c, const icae_slots *s)
{
    int rc = ICAE_OK;
    ic_hash *hash = NULL;
    char hex[65];
    IC_TRY(icae_slots_check(s, c->prompt.session));
    c->context_tokens += s->tokens;
    for (uint32_t i = 0, end; i < s->segments; i = end) {
        const ic_ids *text = ic_expansion_at(c->expansion, s, i);
        IC_TRY(ic_prompt_run(&c->prompt, s, i, c->expansion, &end));
        c->context_tokens -= text ? text->count : 0;
        c->expanded += text ? text->count : 0;
    }
    IC_TRY(ic_hash_new(&hash));
    ic_hash_add(hash, s->values, s->count * ic_row_bytes(s->dtype, (size_t)s->width));
    if (s->scales)
        ic_hash_add(hash, s->scales, s->count * sizeof *s->scales);
    for (uint32_t i = 0; i < s->segments; i++)
        ic_hash_add(hash, &s->segment[i].tokens, 2 * sizeof s->segment[i].tokens);
    ic_hash_finish(hash, hex);
    rc = ic_buffer_add(&c->seed, hex, 64);
done:
    return rc;
}

/* Behind a run of slots: its mark (0: none), and the end, so far, of what others may begin with too. */
static int end_slots(ic_conversation *c, int32_t mark)
{
    int rc = mark ? add_ids(c, &mark, 1) : ICAE_OK;
    if (c->expansion->count) /* another question has other rows */
        return rc;
    if (rc == ICAE_OK)
        rc = ic_hash_of(c->key, c->seed.data, c->seed.size);
    c->shared = c->prompt.rows;
    return rc;
}

static int begin(ic_conversation *c, icae_session *s, const ic_expansion *x)
{
    *c = (ic_conversation){.end_of_turn = -1, .expansion = x};
    ic_prompt_begin(&c->prompt, s);
    if (!s->model->tokenizer)
        return ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be read",
                       s->model->path);
    return ICAE_OK;
}

void ic_conversation_free(ic_conversation *c)
{
    ic_prompt_free(&c->prompt);
    ic_buffer_free(&c->seed);
}

int ic_conversation_count(uint64_t *tokens, const icae_session *s, const char *text, size_t size)
{
    ic_ids ids = {0};
    int rc = ic_tokenizer_encode_untrusted(&ids, s->model->tokenizer, text, size, false);
    *tokens = ids.count;
    ic_ids_free(&ids);
    return rc;
}

/* ---- completions ------------------------------------------------------------------------------ */

int ic_conversation_plain(ic_conversation *c, icae_session *s, const icae_part *front,
                          size_t front_count, const char *text, const ic_expansion *x)
{
    int rc = ICAE_OK;
    const ic_config *config = &s->model->config;
    IC_TRY(begin(c, s, x));
    if (!front_count && config->bos >= 0)
        IC_TRY(add_ids(c, &config->bos, 1));
    for (size_t i = 0; i < front_count; i++)
        IC_TRY(add_slots(c, front[i].slots));
    if (front_count)
        IC_TRY(end_slots(c, s->adapter->lm_token ? IC_LM : 0));
    IC_TRY(add_text(c, text, strlen(text)));
    if (!c->prompt.rows)
        return ic_fail(ICAE_EINVAL, "there is nothing to continue");
    IC_TRY(ic_prompt_fits(&c->prompt, 1, "the prompt"));
done:
    return rc;
}

/* ---- chat ------------------------------------------------------------------------------------- */

typedef enum { LEFT, RIGHT, REPLY_END } template_part;

static int add_template(ic_conversation *c, template_part which, bool first)
{
    ic_ids ids = {0};
    const icae_model *m = c->prompt.session->model;
    int32_t eos = m->config.eos_count ? m->config.eos[0] : -1;
    int rc = which == LEFT    ? ic_chat_left(&ids, m->chat, m->tokenizer, m->config.bos, first)
             : which == RIGHT ? ic_chat_right(&ids, m->chat, m->tokenizer)
                              : ic_chat_reply_end(&ids, m->chat, m->tokenizer, eos);
    if (rc >= 0)
        rc = add_ids(c, ids.ids, ids.count);
    ic_ids_free(&ids);
    return rc;
}

static int add_parts(ic_conversation *c, const icae_part *parts, size_t count)
{
    int rc = ICAE_OK;
    for (size_t i = 0; i < count; i++) {
        if (!parts[i].slots) {
            IC_TRY(add_text(c, parts[i].text, parts[i].size));
            continue;
        }
        IC_TRY(add_slots(c, parts[i].slots));
        if (i + 1 == count || !parts[i + 1].slots)
            IC_TRY(end_slots(c, IC_FT));
    }
done:
    return rc;
}

static int add_system(ic_conversation *c, const ic_turn *turns, size_t count)
{
    int rc = ICAE_OK;
    for (size_t i = 0; i < count; i++) {
        if (turns[i].role != IC_SYSTEM)
            continue;
        IC_TRY(add_parts(c, turns[i].parts, turns[i].count));
        IC_TRY(add_text(c, "\n\n", 2));
    }
done:
    return rc;
}

static bool has_slots(const icae_part *front, size_t front_count, const ic_turn *turns,
                      size_t count)
{
    for (size_t i = 0; i < front_count; i++)
        if (front[i].slots)
            return true;
    for (size_t i = 0; i < count; i++)
        if (has_slots(turns[i].parts, turns[i].count, NULL, 0))
            return true;
    return false;
}

/* What opens and closes turns. `plain`: [FT] closes the user's, nothing else. */
typedef struct layout {
    bool plain, open, first; /* open: in a user's turn; first: no turn has begun */
} layout;

static int open_turn(ic_conversation *c, layout *l)
{
    int rc = ICAE_OK;
    if (l->open)
        return add_text(c, "\n\n", 2); /* the user says more */
    if (!l->plain)
        rc = add_template(c, LEFT, l->first);
    l->open = true;
    return rc;
}

static int close_turn(ic_conversation *c, layout *l)
{
    const int32_t mark = IC_FT;
    l->open = false;
    return l->plain ? add_ids(c, &mark, 1) : add_template(c, RIGHT, false);
}

int ic_conversation_chat(ic_conversation *c, icae_session *s, const icae_part *front,
                         size_t front_count, const ic_turn *turns, size_t count,
                         const ic_expansion *x)
{
    int rc = ICAE_OK;
    const int32_t mark = IC_FT;
    bool slots = has_slots(front, front_count, turns, count);
    layout l = {.plain = slots && ic_adapter_plain(s->adapter), .first = true};
    IC_TRY(begin(c, s, x));
    c->end_of_turn = ic_end_of_turn(s);
    for (size_t i = 0; i < count; i++) {
        if (turns[i].role == IC_SYSTEM)
            continue;
        if (turns[i].role == IC_USER || l.first)
            IC_TRY(open_turn(c, &l));
        if (l.first) {
            IC_TRY(add_parts(c, front, front_count));
            IC_TRY(add_system(c, turns, count));
        }
        l.first = false;
        if (turns[i].role == IC_USER) {
            if (l.plain && !(front_count && i == 0) && !turns[i].parts[0].slots)
                IC_TRY(add_ids(c, &mark, 1));
            IC_TRY(add_parts(c, turns[i].parts, turns[i].count));
        } else {
            if (l.open)
                IC_TRY(close_turn(c, &l));
            IC_TRY(add_parts(c, turns[i].parts, turns[i].count));
            if (!l.plain)
                IC_TRY(add_template(c, REPLY_END, false));
        }
    }
    if (l.first) { /* system messages alone */
        IC_TRY(open_turn(c, &l));
        IC_TRY(add_parts(c, front, front_count));
        IC_TRY(add_system(c, turns, count));
    }
    if (l.open)
        IC_TRY(close_turn(c, &l));
    IC_TRY(ic_prompt_fits(&c->prompt, 1, "the conversation"));
done:
    return rc;
}
