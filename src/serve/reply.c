/*
 * reply.c - the replies of one request, from token ids to OpenAI's JSON, streamed or whole.
 *
 * Owns the text that a stop text may still cut off, and log-probabilities. take and look run in the
 * worker's thread, the rest in the handler's when the worker is done. Knows nothing of HTTP.
 */
#include "serve/reply.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct scored {
    int32_t id;
    float logprob;
} scored;

/* A token with its alternatives. */
typedef struct looked {
    scored token, top[IC_MOST_TOP];
    size_t offset; /* of its text in the reply */
} looked;

typedef struct choice {
    ic_reply *reply;
    int index;
    ic_stream_decoder decoder;
    ic_buffer text; /* streams: what was not given yet; else all */
    size_t length;  /* of the whole text so far */
    bool stopped;   /* by a stop text */
    const char *finish;
    looked *looked;
    size_t look_count, look_room;
    int rc;
} choice;

struct ic_reply {
    ic_reply_options o;
    choice *choice;
    int count;
    ic_buffer head, event; /* head: the members that all events begin with */
};

int ic_reply_new(ic_reply **out, const ic_reply_options *options)
{
    int rc = ICAE_OK;
    const ic_request *q = options->request;
    ic_reply *r = ic_alloc(1, sizeof *r);
    if (!r)
        return ICAE_ENOMEM;
    r->o = *options;
    r->count = ic_request_replies(q);
    r->choice = ic_alloc((size_t)r->count, sizeof *r->choice);
    if (!r->choice) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (int i = 0; i < r->count; i++) {
        r->choice[i] = (choice){.reply = r, .index = i};
        ic_stream_begin(&r->choice[i].decoder, options->model->tokenizer, true);
    }
    const char *object = !q->chat         ? "text_completion"
                         : options->write ? "chat.completion.chunk"
                                          : "chat.completion";
    IC_TRY(ic_buffer_addf(
        &r->head, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%" PRId64 ",\"model\":",
        q->chat ? "chatcmpl" : "cmpl", options->id + 4, object, options->created));
    IC_TRY(ic_json_quote(&r->head, options->name, strlen(options->name)));
    IC_TRY(ic_buffer_addf(&r->head, ",\"system_fingerprint\":\"icae-%.12s\"",
                          options->model->identity));
    *out = r;
    r = NULL;
done:
    ic_reply_free(r);
    return rc;
}

void ic_reply_free(ic_reply *r)
{
    if (!r)
        return;
    for (int i = 0; i < r->count; i++) {
        ic_stream_free(&r->choice[i].decoder);
        ic_buffer_free(&r->choice[i].text);
        ic_free(r->choice[i].looked);
    }
    ic_free(r->choice);
    ic_buffer_free(&r->head);
    ic_buffer_free(&r->event);
    ic_free(r);
}

/* ---- log-probabilities ------------------------------------------------------------------------ */

static void look(void *user, const float *logits, int32_t id)
{
    choice *c = user;
    int top = c->reply->o.request->top, vocabulary = c->reply->o.model->config.vocabulary;
    if (c->look_count == c->look_room) {
        size_t room = IC_MAX(2 * c->look_room, 16);
        looked *more = ic_resize(c->looked, room, sizeof *more);
        if (!more) {
            c->rc = ICAE_ENOMEM;
            return;
        }
        c->looked = more;
        c->look_room = room;
    }
    looked *l = &c->looked[c->look_count++];
    *l = (looked){.offset = c->length};
    float most = logits[0];
    for (int i = 1; i < vocabulary; i++)
        most = fmaxf(most, logits[i]);
    double sum = 0;
    for (int i = 0; i < vocabulary; i++)
        sum += (double)expf(logits[i] - most);
    float norm = most + (float)log(sum);
    l->token = (scored){id, logits[id] - norm};
    int found = 0; /* the best so far, in order */
    for (int i = 0; i < vocabulary && top; i++) {
        float p = logits[i] - norm;
        if (found == top && p <= l->top[top - 1].logprob)
            continue;
        int at = found < top ? found++ : top - 1;
        for (; at > 0 && l->top[at - 1].logprob < p; at--)
            l->top[at] = l->top[at - 1];
        l->top[at] = (scored){i, p};
    }
}

static int token_text(ic_buffer *out, const choice *c, int32_t id)
{
    out->size = 0;
    int rc = ic_tokenizer_decode(out, c->reply->o.model->tokenizer, &id, 1, false);
    return rc < 0 ? rc : ic_buffer_grow(out, 1);
}

static int add_scored(ic_buffer *b, const choice *c, const scored *s)
{
    int rc = ICAE_OK;
    ic_buffer text = {0};
    IC_TRY(token_text(&text, c, s->id));
    IC_TRY(ic_buffer_addf(b, "{\"token\":"));
    IC_TRY(ic_json_quote(b, text.data, text.size));
    IC_TRY(ic_buffer_addf(b, ",\"logprob\":%.6g,\"bytes\":[", (double)fmaxf(s->logprob, -9999)));
    for (size_t i = 0; i < text.size; i++)
        IC_TRY(ic_buffer_addf(b, "%s%d", i ? "," : "", (unsigned char)text.data[i]));
    IC_TRY(ic_buffer_addf(b, "]"));
done:
    ic_buffer_free(&text);
    return rc;
}

/* {"content":[{token, logprob, bytes, top_logprobs}]} */
static int add_chat_logprobs(ic_buffer *b, const choice *c)
{
    int rc = ICAE_OK, top = c->reply->o.request->top;
    IC_TRY(ic_buffer_addf(b, "{\"content\":["));
    for (size_t i = 0; i < c->look_count; i++) {
        IC_TRY(ic_buffer_addf(b, i ? "," : ""));
        IC_TRY(add_scored(b, c, &c->looked[i].token));
        IC_TRY(ic_buffer_addf(b, ",\"top_logprobs\":["));
        for (int t = 0; t < top; t++) {
            IC_TRY(ic_buffer_addf(b, t ? "," : ""));
            IC_TRY(add_scored(b, c, &c->looked[i].top[t]));
            IC_TRY(ic_buffer_addf(b, "}"));
        }
        IC_TRY(ic_buffer_addf(b, "]}"));
    }
    IC_TRY(ic_buffer_addf(b, "]}"));
done:
    return rc;
}

static int add_quoted_token(ic_buffer *b, const choice *c, int32_t id)
{
    ic_buffer text = {0};
    int rc = token_text(&text, c, id);
    if (rc >= 0)
        rc = ic_json_quote(b, text.data, text.size);
    ic_buffer_free(&text);
    return rc;
}

/* {"tokens":[],"token_logprobs":[],"top_logprobs":[{}],"text_offset":[]} */
static int add_plain_logprobs(ic_buffer *b, const choice *c)
{
    int rc = ICAE_OK, top = c->reply->o.request->top;
    size_t n = c->look_count;
    IC_TRY(ic_buffer_addf(b, "{\"tokens\":["));
    for (size_t i = 0; i < n; i++) {
        IC_TRY(ic_buffer_addf(b, i ? "," : ""));
        IC_TRY(add_quoted_token(b, c, c->looked[i].token.id));
    }
    IC_TRY(ic_buffer_addf(b, "],\"token_logprobs\":["));
    for (size_t i = 0; i < n; i++)
        IC_TRY(ic_buffer_addf(b, "%s%.6g", i ? "," : "", (double)c->looked[i].token.logprob));
    IC_TRY(ic_buffer_addf(b, "],\"top_logprobs\":["));
    for (size_t i = 0; i < n; i++) {
        IC_TRY(ic_buffer_addf(b, i ? ",{" : "{"));
        for (int t = 0; t < top; t++) {
            IC_TRY(ic_buffer_addf(b, t ? "," : ""));
            IC_TRY(add_quoted_token(b, c, c->looked[i].top[t].id));
            IC_TRY(ic_buffer_addf(b, ":%.6g", (double)c->looked[i].top[t].logprob));
        }
        IC_TRY(ic_buffer_addf(b, "}"));
    }
    IC_TRY(ic_buffer_addf(b, "],\"text_offset\":["));
    for (size_t i = 0; i < n; i++)
        IC_TRY(ic_buffer_addf(b, "%s%zu", i ? "," : "", c->looked[i].offset));
    IC_TRY(ic_buffer_addf(b, "]}"));
done:
    return rc;
}

static int add_logprobs(ic_buffer *b, const choice *c)
{
    const ic_request *q = c->reply->o.request;
    if (!q->logprobs)
        return ic_buffer_addf(b, "null");
    return q->chat ? add_chat_logprobs(b, c) : add_plain_logprobs(b, c);
}

/* ---- events ----------------------------------------------------------------------------------- */

/* One event with a piece of text; `role` and `finish` may be NULL, text NULL is none. */
static int send_piece(choice *c, const char *role, const char *text, size_t size,
                      const char *finish)
{
    int rc = ICAE_OK;
    ic_reply *r = c->reply;
    bool chat = r->o.request->chat;
    ic_buffer *b = &r->event;
    b->size = 0;
    IC_TRY(ic_buffer_add(b, "data: ", 6));
    IC_TRY(ic_buffer_add(b, r->head.data, r->head.size));
    IC_TRY(ic_buffer_addf(b, ",\"choices\":[{\"index\":%d,", c->index));
    if (chat)
        IC_TRY(ic_buffer_addf(b, "\"delta\":{%s", role ? "\"role\":\"assistant\"" : ""));
    if (!chat || text)
        IC_TRY(ic_buffer_addf(b, "%s\"%s\":", role ? "," : "", chat ? "content" : "text"));
    if (!chat || text)
        IC_TRY(ic_json_quote(b, text ? text : "", text ? size : 0));
    IC_TRY(ic_buffer_addf(b, "%s,\"logprobs\":", chat ? "}" : ""));
    if (c->look_count || (finish && r->o.request->logprobs))
        IC_TRY(add_logprobs(b, c));
    else
        IC_TRY(ic_buffer_add(b, "null", 4));
    c->look_count = 0;
    IC_TRY(ic_buffer_addf(b, ",\"finish_reason\":%s%s%s}]%s}\n\n", finish ? "\"" : "",
                          finish ? finish : "null", finish ? "\"" : "",
                          r->o.request->usage ? ",\"usage\":null" : ""));
    rc = r->o.write(r->o.user, b->data, b->size);
done:
    return rc;
}

/* ---- from ids to text ------------------------------------------------------------------------- */

/* Where the first stop text begins; `size` if none does. *safe: bytes that none can reach any more. */
static size_t find_stop(size_t *safe, const ic_request *q, const char *text, size_t size)
{
    size_t first = size;
    *safe = size;
    for (size_t i = 0; i < q->stops; i++) {
        size_t n = strlen(q->stop[i]);
        const char *at = size ? memmem(text, size, q->stop[i], n) : NULL;
        if (at)
            first = IC_MIN(first, (size_t)(at - text));
        for (size_t m = IC_MIN(n - 1, size); m > 0; m--)
            if (memcmp(text + size - m, q->stop[i], m) == 0) {
                *safe = IC_MIN(*safe, size - m);
                break;
            }
    }
    return first;
}

/* Takes more text. 1: a stop text has ended it. */
static int add_text(choice *c, const char *piece, size_t size)
{
    const ic_request *q = c->reply->o.request;
    int rc = ic_buffer_add(&c->text, piece, size);
    if (rc < 0 || !size)
        return rc;
    size_t safe, stop = find_stop(&safe, q, c->text.data, c->text.size);
    c->length += size;
    if (stop < c->text.size) {
        c->length -= c->text.size - stop;
        c->text.size = stop;
        c->stopped = true;
        return 1;
    }
    if (!c->reply->o.write || !safe)
        return ICAE_OK;
    rc = send_piece(c, NULL, c->text.data, safe, NULL);
    memmove(c->text.data, c->text.data + safe, c->text.size - safe);
    c->text.size -= safe;
    return rc;
}

static int take(void *user, int32_t id)
{
    choice *c = user;
    const char *piece;
    size_t size;
    if (c->rc < 0)
        return c->rc;
    c->rc = ic_stream_add(&c->decoder, id, &piece, &size);
    if (c->rc >= 0)
        c->rc = add_text(c, piece, size);
    return c->rc;
}

void ic_reply_generation(ic_reply *r, int index, ic_generation *g)
{
    const ic_request *q = r->o.request;
    *g = (ic_generation){.sampling = q->sampling,
                         .end_of_turn = -1,
                         .take = take,
                         .look = q->logprobs ? look : NULL,
                         .user = &r->choice[index]};
    g->sampling.seed += (uint64_t)(index % q->n) * UINT64_C(0x9e3779b97f4a7c15);
}

/* Of a completion. */
static const char *prompt_of(const choice *c)
{
    const ic_request *q = c->reply->o.request;
    return q->pieces[c->index / q->n].text;
}

/* ---- begin and end ---------------------------------------------------------------------------- */

int ic_reply_begin(ic_reply *r)
{
    int rc = ICAE_OK;
    const ic_request *q = r->o.request;
    for (int i = 0; i < r->count; i++) {
        choice *c = &r->choice[i];
        if (r->o.write && q->chat)
            IC_TRY(send_piece(c, "assistant", "", 0, NULL));
        else if (r->o.write && q->echo)
            IC_TRY(send_piece(c, NULL, prompt_of(c), strlen(prompt_of(c)), NULL));
    }
done:
    return rc;
}

int ic_reply_end(ic_reply *r, int index, const icae_result *result)
{
    choice *c = &r->choice[index];
    const char *piece;
    size_t size;
    int rc = c->rc < 0 ? c->rc : ICAE_OK;
    if (rc == ICAE_OK && !c->stopped) {
        rc = ic_stream_end(&c->decoder, &piece, &size);
        if (rc == ICAE_OK)
            rc = add_text(c, piece, size);
    }
    bool cut = result->stop && (!strcmp(result->stop, "length") || !strcmp(result->stop, "limit"));
    c->finish = cut && !c->stopped ? "length" : "stop";
    if (rc >= 0 && r->o.write)
        rc = send_piece(c, NULL, c->text.size ? c->text.data : NULL, c->text.size, c->finish);
    return IC_MIN(rc, ICAE_OK);
}

static int add_usage(ic_buffer *b, const ic_usage *u)
{
    int rc = ICAE_OK;
    uint64_t prompt = u->text_rows + u->slot_rows;
    IC_TRY(ic_buffer_addf(
        b,
        "{\"prompt_tokens\":%" PRIu64 ",\"completion_tokens\":%" PRIu64 ",\"total_tokens\":%" PRIu64
        ",\"prompt_tokens_details\":{\"cached_tokens\":%" PRIu64
        "},\"icae\":{\"text_tokens\":%" PRIu64 ",\"slots\":%" PRIu64 ",\"context_tokens\":%" PRIu64,
        prompt, u->completion, prompt + u->completion, u->cached_rows, u->text_rows, u->slot_rows,
        u->context_tokens));
    if (u->expanded)
        IC_TRY(ic_buffer_addf(b, ",\"expanded_tokens\":%" PRIu64, u->expanded));
    if (u->compressed)
        IC_TRY(ic_buffer_addf(b,
                              ",\"compressed\":{\"messages\":%" PRIu64 ",\"tokens\":%" PRIu64
                              ",\"slots\":%" PRIu64 "}",
                              u->messages, u->tokens, u->slots));
    rc = ic_buffer_addf(b, "}}");
done:
    return rc;
}

int ic_reply_close(ic_reply *r, const ic_usage *usage)
{
    int rc = ICAE_OK;
    ic_buffer *b = &r->event;
    b->size = 0;
    if (r->o.request->usage) {
        IC_TRY(ic_buffer_add(b, "data: ", 6));
        IC_TRY(ic_buffer_add(b, r->head.data, r->head.size));
        IC_TRY(ic_buffer_addf(b, ",\"choices\":[],\"usage\":"));
        IC_TRY(add_usage(b, usage));
        IC_TRY(ic_buffer_addf(b, "}\n\n"));
    }
    IC_TRY(ic_buffer_addf(b, "data: [DONE]\n\n"));
    rc = r->o.write(r->o.user, b->data, b->size);
done:
    return rc;
}

static int add_choice(ic_buffer *out, const choice *c)
{
    int rc = ICAE_OK;
    const ic_request *q = c->reply->o.request;
    ic_buffer echoed = {0};
    IC_TRY(ic_buffer_addf(out, "%s{\"index\":%d,", c->index ? "," : "", c->index));
    IC_TRY(ic_buffer_addf(out, q->chat ? "\"message\":{\"role\":\"assistant\",\"content\":"
                                       : "\"text\":"));
    if (q->echo)
        IC_TRY(ic_buffer_add(&echoed, prompt_of(c), strlen(prompt_of(c))));
    IC_TRY(ic_buffer_add(&echoed, c->text.data ? c->text.data : "", c->text.size));
    IC_TRY(ic_json_quote(out, echoed.data ? echoed.data : "", echoed.size));
    IC_TRY(ic_buffer_addf(out, "%s,\"logprobs\":", q->chat ? "}" : ""));
    IC_TRY(add_logprobs(out, c));
    IC_TRY(ic_buffer_addf(out, ",\"finish_reason\":\"%s\"}", c->finish));
done:
    ic_buffer_free(&echoed);
    return rc;
}

int ic_reply_whole(ic_buffer *out, ic_reply *r, const ic_usage *usage)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_add(out, r->head.data, r->head.size));
    IC_TRY(ic_buffer_addf(out, ",\"choices\":["));
    for (int i = 0; i < r->count; i++)
        IC_TRY(add_choice(out, &r->choice[i]));
    IC_TRY(ic_buffer_addf(out, "],\"usage\":"));
    IC_TRY(add_usage(out, usage));
    IC_TRY(ic_buffer_addf(out, "}\n"));
done:
    return rc;
}
