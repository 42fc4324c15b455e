/*
 * restore.c - GET /v1/contexts/{id}/text: the text of a context, while it is restored.
 *
 * As core/read.c restores, span after span, but through the worker's batch. An exact context is gathered,
 * mended and verified before a byte of it goes out.
 */
#include "serve/contexts.h"
#include "serve/fields.h"

#include <inttypes.h>
#include <string.h>

typedef struct restoring {
    ic_call *call;
    const icae_slots *slots;
    ic_stream_decoder decoder;
    bool exact;
    ic_buffer text, event; /* text: of an exact context */
    uint64_t done;         /* tokens */
    int rc;
} restoring;

static int deliver(restoring *r, const char *text, size_t size)
{
    int rc = ICAE_OK;
    if (!size)
        return ICAE_OK;
    if (r->exact)
        return ic_buffer_add(&r->text, text, size);
    if (!r->call->events)
        return ic_exchange_write(r->call->x, text, size);
    r->event.size = 0;
    IC_TRY(ic_buffer_addf(&r->event, "{\"text\":"));
    IC_TRY(ic_json_quote(&r->event, text, size));
    IC_TRY(ic_buffer_addf(&r->event, "}"));
    rc = ic_call_event(r->call, "text", &r->event);
done:
    return rc;
}

static void tell_progress(restoring *r)
{
    r->event.size = 0;
    if (ic_buffer_addf(&r->event,
                       "{\"object\":\"context.progress\",\"stage\":\"restore\",\"done\":%" PRIu64
                       ",\"total\":%" PRIu64 ",\"unit\":\"tokens\"}",
                       r->done, r->slots->tokens) == ICAE_OK)
        ic_call_event(r->call, "progress", &r->event);
}

/* In the worker's thread. */
static int take(void *user, int32_t id)
{
    restoring *r = user;
    const char *piece;
    size_t size;
    r->rc = ic_stream_add(&r->decoder, id, &piece, &size);
    if (r->rc >= 0)
        r->rc = deliver(r, piece, size);
    r->done++;
    if (r->exact && r->call->events && r->done % 32 == 0)
        tell_progress(r);
    return r->rc;
}

/* Corrections of one span, renumbered from its first token. */
static void choose_corrections(ic_generation *g, ic_correction *all, size_t count,
                               const ic_span *span)
{
    size_t i = 0;
    while (i < count && all[i].at < span->first_token)
        i++;
    g->corrections = all + i;
    for (; i < count && all[i].at < span->first_token + span->tokens; i++, g->correction_count++)
        all[i].at -= (uint32_t)span->first_token;
}

static int restore_span(restoring *r, const ic_span *span, ic_correction *corrections, size_t count,
                        uint64_t left)
{
    int rc = ICAE_OK;
    ic_prompt prompt = {0};
    ic_sequence sequence = {0};
    ic_call *c = r->call;
    ic_generation *g = &sequence.generation;
    *g = (ic_generation){.expected = span->tokens, .end_of_turn = -1, .take = take, .user = r};
    g->through_eos = r->exact;
    g->sampling.max_tokens = left;
    choose_corrections(g, corrections, count, span);
    ic_task task = {.client = c->client,
                    .gone = ic_exchange_gone(c->x),
                    .prompt = &prompt,
                    .sequence = &sequence,
                    .count = 1,
                    .f32 = r->exact};
    IC_TRY(ic_span_prompt(&prompt, c->server->session, r->slots, span));
    IC_TRY(ic_prompt_fits(&prompt, 1, "the restoration"));
    IC_TRY(ic_worker_do(c->server->worker, &task, 1));
    IC_TRY(r->rc);
    c->rows += (uint64_t)prompt.rows;
    c->tokens += g->result.tokens;
done:
    ic_prompt_free(&prompt);
    return rc;
}

/* `most` tokens; 0: all. */
static int restore_spans(restoring *r, ic_correction *corrections, size_t count, uint64_t most)
{
    int rc = ICAE_OK;
    ic_span span;
    const char *piece;
    size_t size;
    ic_stream_begin(&r->decoder, r->call->server->session->model->tokenizer, true);
    for (uint32_t at = 0; ic_span_at(&span, r->slots, at); at += span.segments) {
        if (most && r->done >= most)
            break;
        IC_TRY(restore_span(r, &span, corrections, count, most ? most - r->done : 0));
    }
    IC_TRY(ic_stream_end(&r->decoder, &piece, &size));
    rc = deliver(r, piece, size);
done:
    ic_stream_free(&r->decoder);
    return rc;
}

static int restore_exact(restoring *r)
{
    int rc = ICAE_OK;
    size_t count = 0;
    ic_correction *corrections = NULL;
    ic_buffer original = {0};
    char sha[65];
    const icae_slots *s = r->slots;
    const ic_buffer *patch = &s->corrections;
    IC_TRY(ic_exact_decode_corrections(&corrections, &count, patch->data, patch->size,
                                       r->call->server->session->model->config.vocabulary,
                                       s->tokens));
    IC_TRY(restore_spans(r, corrections, count, 0));
    IC_TRY(ic_exact_apply_patch(&original, patch->data, patch->size,
                                r->text.data ? r->text.data : "", r->text.size, s->text_size));
    IC_TRY(ic_hash_of(sha, original.data, original.size));
    if (strcmp(sha, s->text_sha256)) {
        rc = ic_fail(ICAE_EINEXACT, "the restored text is not the original (SHA-256 differs): this "
                                    "machine decodes differently");
        goto done;
    }
    r->exact = false; /* now it may go out */
    if (!r->call->events)
        ic_exchange_begin(r->call->x, 200, "text/plain; charset=utf-8");
    rc = deliver(r, original.data, original.size);
    r->exact = true;
done:
    ic_free(corrections);
    ic_buffer_free(&original);
    return rc;
}

static void end(restoring *r)
{
    r->event.size = 0;
    if (r->call->events &&
        ic_buffer_addf(&r->event,
                       "{\"object\":\"context.restored\",\"id\":\"%s\",\"tokens\":%" PRIu64
                       ",\"exact\":%s}",
                       r->call->id, r->done, r->exact ? "true" : "false") == ICAE_OK)
        ic_call_event(r->call, "done", &r->event);
    ic_exchange_end(r->call->x, true);
}

void ic_serve_context_text(ic_call *c)
{
    ic_fields f = {0};
    int64_t most = 0;
    icae_slots *slots = NULL;
    if (!c->server->store) {
        ic_set_message("this server has no store: start it with --store");
        ic_call_error(c, 503, "server_error", "store_unavailable", NULL);
        return;
    }
    int rc = ic_query_whole(&f, "max_tokens", ic_exchange_query(c->x, "max_tokens"), &most, 1,
                            INT32_MAX);
    if (rc < 0) {
        ic_call_failed(c, rc, f.param);
        return;
    }
    rc = icae_store_get(&slots, NULL, c->server->store, c->owner, c->id, c->server->session);
    if (rc < 0) {
        ic_context_failed(c, rc);
        return;
    }
    restoring r = {.call = c, .slots = slots, .exact = slots->corrections.size && !most};
    if (ic_call_admit(c)) {
        if (c->events)
            ic_exchange_begin(c->x, 200, "text/event-stream");
        else if (!r.exact)
            ic_exchange_begin(c->x, 200, "text/plain; charset=utf-8");
        rc = r.exact ? restore_exact(&r) : restore_spans(&r, NULL, 0, (uint64_t)most);
        if (rc >= 0)
            end(&r);
        else if (c->events || !ic_exchange_status(c->x))
            ic_call_failed(c, rc, NULL);
        else
            ic_exchange_end(c->x, false); /* the client sees that it is not whole */
        ic_call_leave(c);
    }
    ic_buffer_free(&r.text);
    ic_buffer_free(&r.event);
    icae_slots_free(slots);
}
