/*
 * expand.c - icae.expand: the segments that a request asks about are restored and read as text.
 *
 * Knows what of a request is the question; which segments, and how they come back, is core/expand.c's.
 * Runs as steps between those of replies.
 */
#include "serve/expand.h"

#include <string.h>

/* In the worker's thread. */
static int step(void *user, int rows)
{
    return ic_expanding_step(user, rows);
}

/* Slots of the front and of all messages, in order. */
static size_t gather(icae_part *out, const icae_part *front, size_t front_count,
                     const ic_turn *turns, size_t count)
{
    size_t n = 0;
    for (size_t i = 0; i < front_count; i++)
        if (front[i].slots)
            out[n++] = front[i];
    for (size_t i = 0; i < count; i++)
        n += gather(out + n, turns[i].parts, turns[i].count, NULL, 0);
    return n;
}

/* The text of the last message that is the user's. */
static int question_of(ic_buffer *out, const ic_turn *turns, size_t count)
{
    int rc = ICAE_OK;
    while (count && turns[count - 1].role != IC_USER)
        count--;
    for (size_t i = 0; count && i < turns[count - 1].count; i++) {
        const icae_part *p = &turns[count - 1].parts[i];
        if (!p->slots)
            IC_TRY(ic_buffer_add(out, p->text, p->size));
    }
done:
    return rc;
}

int ic_serve_expand(ic_expansion *out, ic_call *c, const icae_part *front, size_t front_count,
                    const ic_turn *turns, size_t count, const char *prompt, int most)
{
    int rc = ICAE_OK;
    icae_session *s = c->server->session;
    const icae_model *m = s->model;
    size_t n = front_count;
    for (size_t i = 0; i < count; i++)
        n += turns[i].count;
    ic_ids left = {0}, ids = {0};
    ic_buffer question = {0};
    ic_expanding *e = NULL;
    *out = (ic_expansion){0};
    icae_part *parts = ic_alloc(IC_MAX(n, 1), sizeof *parts);
    if (!parts)
        return ICAE_ENOMEM;
    n = gather(parts, front, front_count, turns, count);
    if (!n || !most)
        goto done;
    if (prompt)
        IC_TRY(ic_buffer_add(&question, prompt, strlen(prompt)));
    else
        IC_TRY(question_of(&question, turns, count));
    if (!question.size)
        goto done;
    if (!prompt && !ic_adapter_plain(s->adapter))
        IC_TRY(ic_chat_left(&left, m->chat, m->tokenizer, m->config.bos, true));
    IC_TRY(ic_tokenizer_encode_untrusted(&ids, m->tokenizer, question.data, question.size, false));
    IC_TRY(ic_expanding_for(&e, s, parts, n, &left, &ids, most));
    ic_task task = {.client = c->client, .gone = ic_exchange_gone(c->x), .step = step, .user = e};
    IC_TRY(ic_worker_do(c->server->worker, &task, 1));
    ic_expanding_take(out, e);
done:
    ic_expanding_free(e);
    ic_ids_free(&left);
    ic_ids_free(&ids);
    ic_buffer_free(&question);
    ic_free(parts);
    return rc;
}
