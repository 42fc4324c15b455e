/*
 * answers.c - /v1/chat/completions and /v1/completions: from a request to a reply.
 *
 * The order of things: parse, look up contexts, wait for a place, compress what is to be compressed, lay
 * out the prompt, let the worker generate. What can be refused is refused before a stream begins.
 */
#include "serve/expand.h"
#include "serve/shorten.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

typedef struct loaded {
    const char *id;
    icae_slots *slots;
} loaded;

typedef struct answer {
    ic_call *call;
    ic_request request;
    loaded *contexts; /* every one once */
    size_t context_count;
    icae_part *front, *parts; /* parts: of all messages, one behind the other */
    ic_turn *turns;
    ic_shortening shortening;
    ic_conversation *conversation; /* one, or one for each prompt of a completion */
    size_t conversation_count;
    ic_reply *reply;
    ic_task *task;         /* one a conversation */
    ic_sequence *sequence; /* n a conversation */
    ic_usage usage;
    bool admitted;
    char param[64];
} answer;

static void end_answer(answer *a)
{
    if (a->admitted)
        ic_call_leave(a->call);
    ic_free(a->sequence);
    ic_free(a->task);
    ic_reply_free(a->reply);
    for (size_t i = 0; i < a->conversation_count; i++)
        ic_conversation_free(&a->conversation[i]);
    ic_free(a->conversation);
    ic_shortening_free(&a->shortening);
    ic_free(a->turns);
    ic_free(a->parts);
    ic_free(a->front);
    for (size_t i = 0; i < a->context_count; i++)
        icae_slots_free(a->contexts[i].slots);
    ic_free(a->contexts);
    ic_request_free(&a->request);
}

/* ---- contexts --------------------------------------------------------------------------------- */

static int load(icae_slots **out, answer *a, const char *id)
{
    const ic_call *c = a->call;
    for (size_t i = 0; i < a->context_count; i++)
        if (strcmp(a->contexts[i].id, id) == 0) {
            *out = a->contexts[i].slots;
            return ICAE_OK;
        }
    if (a->context_count == IC_MOST_CONTEXTS)
        return ic_fail(ICAE_EINVAL, "more than %d contexts in a request", IC_MOST_CONTEXTS);
    if (!c->server->store)
        return ic_fail(ICAE_ENOTFOUND, "there is no context %.60s", id);
    int rc = icae_store_get(out, NULL, c->server->store, c->owner, id, c->server->session);
    if (rc == ICAE_OK)
        a->contexts[a->context_count++] = (loaded){id, *out};
    return rc;
}

/* All parts that the request names, in its order. */
static int gather(answer *a)
{
    int rc = ICAE_OK;
    const ic_request *q = &a->request;
    icae_slots *slots;
    a->contexts = ic_alloc(IC_MOST_CONTEXTS, sizeof *a->contexts);
    a->front = ic_alloc(IC_MOST_CONTEXTS, sizeof *a->front);
    a->parts = ic_alloc(IC_MAX(q->piece_count, 1), sizeof *a->parts);
    a->turns = ic_alloc(IC_MAX(q->message_count, 1), sizeof *a->turns);
    if (!a->contexts || !a->front || !a->parts || !a->turns)
        return ICAE_ENOMEM;
    snprintf(a->param, sizeof a->param, "icae.contexts");
    for (size_t i = 0; i < q->context_count; i++) {
        IC_TRY(load(&slots, a, q->contexts[i]));
        a->front[i].slots = slots;
    }
    snprintf(a->param, sizeof a->param, "messages");
    for (size_t i = 0; i < q->piece_count; i++) {
        const ic_piece *p = &q->pieces[i];
        if (p->text) {
            a->parts[i] = (icae_part){.text = p->text, .size = strlen(p->text)};
            continue;
        }
        IC_TRY(load(&slots, a, p->context));
        a->parts[i].slots = slots;
    }
    for (size_t i = 0; i < q->message_count; i++)
        a->turns[i] = (ic_turn){.role = q->messages[i].role,
                                .parts = a->parts + q->messages[i].first,
                                .count = q->messages[i].count};
    *a->param = 0;
done:
    return rc;
}

/* ---- the prompt ------------------------------------------------------------------------------- */

static int lay_out_chat(answer *a, ic_conversation *v)
{
    int rc = ICAE_OK;
    const ic_request *q = &a->request;
    icae_session *s = a->call->server->session;
    ic_shortening *h = &a->shortening;
    const icae_part *front = a->front;
    const ic_turn *turns = a->turns;
    size_t front_count = q->context_count, count = q->message_count;
    ic_expansion x = {0};
    if (q->compress_over && s->adapter) {
        IC_TRY(ic_shorten(h, a->call, a->front, front_count, a->turns, count, q->compress_over,
                          &a->usage));
        front = h->front;
        front_count = h->front_count;
        turns = h->turns;
        count = h->count;
    }
    IC_TRY(ic_serve_expand(&x, a->call, front, front_count, turns, count, NULL, q->expand));
    IC_TRY(ic_conversation_chat(v, s, front, front_count, turns, count, &x));
done:
    ic_expansion_free(&x);
    return rc;
}

static int lay_out_plain(answer *a, ic_conversation *v, const char *text)
{
    int rc = ICAE_OK;
    const ic_request *q = &a->request;
    ic_expansion x = {0};
    IC_TRY(ic_serve_expand(&x, a->call, a->front, q->context_count, NULL, 0, text, q->expand));
    IC_TRY(
        ic_conversation_plain(v, a->call->server->session, a->front, q->context_count, text, &x));
done:
    ic_expansion_free(&x);
    return rc;
}

static int lay_out(answer *a)
{
    int rc = ICAE_OK;
    const ic_request *q = &a->request;
    size_t count = q->chat ? 1 : q->piece_count;
    ic_conversation *v = a->conversation = ic_alloc(count, sizeof *v);
    if (!v)
        return ICAE_ENOMEM;
    a->conversation_count = count;
    snprintf(a->param, sizeof a->param, q->chat ? "messages" : "prompt");
    for (size_t i = 0; i < count; i++)
        IC_TRY(q->chat ? lay_out_chat(a, &v[i]) : lay_out_plain(a, &v[i], q->pieces[i].text));
    for (size_t i = 0; i < count; i++) {
        a->usage.slot_rows += (uint64_t)v[i].prompt.slots;
        a->usage.text_rows += (uint64_t)(v[i].prompt.rows - v[i].prompt.slots);
        a->usage.context_tokens += v[i].context_tokens;
        a->usage.expanded += v[i].expanded;
    }
    *a->param = 0;
done:
    return rc;
}

static int write_event(void *user, const char *data, size_t size)
{
    return ic_exchange_write(user, data, size);
}

static int prepare(answer *a)
{
    int rc = ICAE_OK;
    ic_call *c = a->call;
    ic_request *q = &a->request;
    if (!q->seeded && getrandom(&q->sampling.seed, sizeof q->sampling.seed, 0) < 0)
        q->sampling.seed = (uint64_t)(ic_seconds() * 1e9);
    IC_TRY(ic_reply_new(&a->reply, &(ic_reply_options){.request = q,
                                                       .model = c->server->session->model,
                                                       .id = ic_exchange_id(c->x),
                                                       .name = c->server->name,
                                                       .created = (int64_t)time(NULL),
                                                       .write = q->stream ? write_event : NULL,
                                                       .user = c->x}));
    a->sequence = ic_alloc((size_t)ic_request_replies(q), sizeof *a->sequence);
    a->task = ic_alloc(a->conversation_count, sizeof *a->task);
    if (!a->sequence || !a->task)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < a->conversation_count; i++) {
        ic_conversation *v = &a->conversation[i];
        a->task[i] = (ic_task){.client = c->client,
                               .gone = ic_exchange_gone(c->x),
                               .prompt = &v->prompt,
                               .sequence = a->sequence + i * (size_t)q->n,
                               .count = q->n,
                               .shared = v->shared};
        memcpy(a->task[i].key, v->key, sizeof v->key);
    }
    for (int i = 0; i < ic_request_replies(q); i++) {
        ic_reply_generation(a->reply, i, &a->sequence[i].generation);
        a->sequence[i].generation.end_of_turn = a->conversation[i / q->n].end_of_turn;
    }
done:
    return rc;
}

/* ---- the reply -------------------------------------------------------------------------------- */

static int generate(answer *a)
{
    int rc = ICAE_OK;
    ic_call *c = a->call;
    const ic_request *q = &a->request;
    if (q->stream) {
        ic_exchange_begin(c->x, 200, "text/event-stream");
        IC_TRY(ic_reply_begin(a->reply));
    }
    IC_TRY(ic_worker_do(c->server->worker, a->task, (int)a->conversation_count));
    for (int i = 0; i < ic_request_replies(q); i++) {
        const icae_result *result = &a->sequence[i].generation.result;
        IC_TRY(ic_reply_end(a->reply, i, result));
        a->usage.completion += result->tokens;
    }
    for (size_t i = 0; i < a->conversation_count; i++)
        a->usage.cached_rows += (uint64_t)a->task[i].cached;
    c->waited = a->task->waited;
    c->first = c->waited + a->sequence[0].generation.result.prompt_seconds;
done:
    return rc;
}

static int deliver(answer *a)
{
    int rc = ICAE_OK;
    ic_call *c = a->call;
    ic_buffer json = {0};
    if (a->request.stream) {
        IC_TRY(ic_reply_close(a->reply, &a->usage));
        ic_exchange_end(c->x, true);
    } else {
        IC_TRY(ic_reply_whole(&json, a->reply, &a->usage));
        ic_call_json(c, 200, &json);
    }
done:
    ic_buffer_free(&json);
    return rc;
}

static void count(const answer *a)
{
    ic_metrics *m = &a->call->server->metrics;
    const ic_usage *u = &a->usage;
    atomic_fetch_add(&m->prompt_text, u->text_rows);
    atomic_fetch_add(&m->prompt_slots, u->slot_rows);
    atomic_fetch_add(&m->prompt_cached, u->cached_rows);
    atomic_fetch_add(&m->completion, u->completion);
    atomic_fetch_add(&m->first_tokens, 1);
    atomic_fetch_add(&m->first_token_us, (unsigned long long)(a->call->first * 1e6));
    a->call->rows = u->text_rows + u->slot_rows;
    a->call->tokens = u->completion;
}

static int answer_all(answer *a)
{
    int rc = ICAE_OK;
    IC_TRY(lay_out(a));
    IC_TRY(prepare(a));
    IC_TRY(generate(a));
    count(a);
    IC_TRY(deliver(a));
done:
    return rc;
}

static void answer_request(ic_call *c, bool chat)
{
    answer a = {.call = c};
    size_t size;
    const char *body = ic_exchange_body(c->x, &size);
    const icae_serve_options *o = &c->server->options;
    const icae_adapter *adapter = c->server->session->adapter;
    ic_request_limits limits = {.n = o->max_n, .max_tokens = o->max_tokens};
    int rc = ic_request_parse(&a.request, chat, body, size, &limits);
    if (rc < 0) {
        ic_call_failed(c, rc, a.request.param);
        goto done;
    }
    if (a.request.expand == IC_ADAPTERS)
        a.request.expand = adapter ? IC_MIN(adapter->expand, IC_MOST_EXPANDED) : 0;
    if (a.request.unknown.size)
        ic_buffer_add(&c->ignored, a.request.unknown.data, a.request.unknown.size);
    if (a.request.model && strcmp(a.request.model, c->server->name))
        ic_buffer_addf(&c->ignored, "%smodel=%.64s", c->ignored.size ? "," : "", a.request.model);
    rc = gather(&a);
    if (rc < 0) {
        ic_call_failed(c, rc, a.param);
        goto done;
    }
    if (!ic_call_admit(c))
        goto done;
    a.admitted = true;
    rc = answer_all(&a);
    if (rc < 0)
        ic_call_failed(c, rc, a.param);
done:
    end_answer(&a);
}

void ic_serve_chat(ic_call *c)
{
    answer_request(c, true);
}

void ic_serve_completion(ic_call *c)
{
    answer_request(c, false);
}
