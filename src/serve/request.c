/*
 * request.c - reads the bodies of /v1/chat/completions and /v1/completions, as docs/openapi.yaml has them.
 *
 * Pure: a text in, a struct or one line of complaint out. Knows nothing of models, stores or HTTP.
 */
#include "serve/request.h"

#include <stdio.h>
#include <string.h>

/* Members that OpenAI's clients send and that change nothing here are known, so that they are not logged
 * at every request. */
static const char *const common_members[] = {
    "model", "temperature",  "top_p",  "n",        "max_tokens",     "max_completion_tokens",
    "stop",  "seed",         "stream", "messages", "stream_options", "logprobs",
    "icae",  "top_logprobs", "user",   "prompt",   "echo",           NULL};
static const char *const icae_members[] = {"contexts", "compress_over", "expand",
                                           "top_k",    "min_p",         NULL};

static int add_piece(ic_request *r, ic_piece piece)
{
    if ((r->piece_count & (r->piece_count - 1)) == 0) { /* a power of two: full */
        ic_piece *more = ic_resize(r->pieces, IC_MAX(2 * r->piece_count, 1), sizeof *more);
        if (!more)
            return ICAE_ENOMEM;
        r->pieces = more;
    }
    r->pieces[r->piece_count++] = piece;
    return ICAE_OK;
}

static int wrong(ic_request *r, const char *param, const char *expected)
{
    ic_fields f = {0};
    int rc = ic_fields_wrong(&f, param, expected);
    memcpy(r->param, f.param, sizeof r->param);
    return rc;
}

/* ---- messages --------------------------------------------------------------------------------- */

static int read_part(ic_request *r, const ic_json *part, const char *where)
{
    const char *type = ic_json_string(ic_json_get(part, "type"));
    const char *text = ic_json_string(ic_json_get(part, "text"));
    const char *id = ic_json_string(ic_json_get(part, "id"));
    if (type && strcmp(type, "text") == 0)
        return text ? add_piece(r, (ic_piece){.text = text})
                    : wrong(r, where, "\"text\" in a part of type text");
    if (type && strcmp(type, "icae_context") == 0)
        return id && *id ? add_piece(r, (ic_piece){.context = id})
                         : wrong(r, where, "\"id\" in a part of type icae_context");
    return wrong(r, where, "parts of type text or icae_context");
}

static int read_content(ic_request *r, const ic_json *content, const char *where)
{
    int rc = ICAE_OK;
    if (ic_json_string(content))
        return add_piece(r, (ic_piece){.text = ic_json_string(content)});
    if (!ic_json_is_array(content))
        return wrong(r, where, "a string or an array of parts");
    for (const ic_json *p = ic_json_first(content); p; p = ic_json_next(p))
        IC_TRY(read_part(r, p, where));
done:
    return rc;
}

static int read_role(ic_role *out, const char *name)
{
    static const char *const names[] = {"system", "developer", "user", "assistant"};
    static const ic_role roles[] = {IC_SYSTEM, IC_SYSTEM, IC_USER, IC_ASSISTANT};
    for (size_t i = 0; i < IC_COUNT(names); i++)
        if (name && strcmp(name, names[i]) == 0) {
            *out = roles[i];
            return ICAE_OK;
        }
    return ICAE_EINVAL;
}

static int read_messages(ic_request *r, const ic_json *list)
{
    int rc = ICAE_OK;
    char where[48];
    if (!ic_json_is_array(list) || !ic_json_first(list))
        return wrong(r, "messages", "an array of at least one message");
    r->messages = ic_alloc(ic_json_count(list), sizeof *r->messages);
    if (!r->messages)
        return ICAE_ENOMEM;
    for (const ic_json *m = ic_json_first(list); m; m = ic_json_next(m)) {
        ic_message *one = &r->messages[r->message_count];
        snprintf(where, sizeof where, "messages[%zu].role", r->message_count);
        if (read_role(&one->role, ic_json_string(ic_json_get(m, "role"))) < 0)
            return wrong(r, where, "system, developer, user or assistant");
        snprintf(where, sizeof where, "messages[%zu].content", r->message_count);
        one->first = r->piece_count;
        IC_TRY(read_content(r, ic_json_get(m, "content"), where));
        one->count = r->piece_count - one->first;
        for (size_t i = 0; i < one->count && one->role != IC_USER; i++)
            if (r->pieces[one->first + i].context)
                return wrong(r, where, "contexts in messages of the user only");
        r->message_count++;
    }
    if (r->messages[r->message_count - 1].role == IC_ASSISTANT)
        return wrong(r, where, "the last message to be the user's");
done:
    return rc;
}

/* Several prompts are several completions. */
static int read_prompts(ic_request *r, const ic_json *prompt, int most)
{
    int rc = ICAE_OK;
    char expected[96];
    bool many = ic_json_is_array(prompt);
    const ic_json *one = many ? ic_json_first(prompt) : prompt;
    snprintf(expected, sizeof expected, "a string, or strings that with n make at most %d replies",
             most);
    if (!one)
        return wrong(r, "prompt", expected);
    for (; one; one = many ? ic_json_next(one) : NULL) {
        const char *text = ic_json_string(one);
        if (!text || ((int)r->piece_count + 1) * r->n > most)
            return wrong(r, "prompt", expected);
        IC_TRY(add_piece(r, (ic_piece){.text = text}));
    }
done:
    return rc;
}

/* ---- settings --------------------------------------------------------------------------------- */

static int read_stop(ic_request *r, const ic_json *stop)
{
    static const char expected[] = "a string or up to 4 strings, none of them empty";
    if (ic_json_is_null(stop))
        return ICAE_OK;
    const ic_json *one = ic_json_is_array(stop) ? ic_json_first(stop) : stop;
    for (; one; one = ic_json_is_array(stop) ? ic_json_next(one) : NULL) {
        const char *text = ic_json_string(one);
        if (!text || !*text || r->stops == IC_MOST_STOPS)
            return wrong(r, "stop", expected);
        r->stop[r->stops++] = text;
    }
    return ICAE_OK;
}

static int read_sampling(ic_request *r, ic_fields *f, const ic_request_limits *limits)
{
    int rc = ICAE_OK;
    double temperature = 1, top_p = 1;
    int64_t n = 1, tokens = r->chat ? (int64_t)limits->max_tokens : 16, seed = 0;
    IC_TRY(ic_fields_real(f, "temperature", &temperature, 0, 2));
    IC_TRY(ic_fields_real(f, "top_p", &top_p, 0, 1));
    IC_TRY(ic_fields_whole(f, "n", &n, 1, limits->n));
    tokens = (int64_t)IC_MIN((uint64_t)tokens, limits->max_tokens);
    IC_TRY(ic_fields_whole(f, "max_tokens", &tokens, 1, (int64_t)limits->max_tokens));
    IC_TRY(ic_fields_whole(f, "max_completion_tokens", &tokens, 1, (int64_t)limits->max_tokens));
    IC_TRY(ic_fields_whole(f, "seed", &seed, INT64_MIN / 1024, INT64_MAX / 1024));
    r->seeded = rc > 0;
    r->n = (int)n;
    r->sampling.temperature = (float)temperature;
    r->sampling.top_p = (float)IC_MAX(top_p, 1e-6); /* 0 is the best only, not "off" */
    r->sampling.max_tokens = (uint64_t)tokens;
    r->sampling.seed = (uint64_t)seed;
    rc = read_stop(r, ic_json_get(f->object, "stop"));
done:
    return rc;
}

static int read_logprobs(ic_request *r, ic_fields *f)
{
    int rc = ICAE_OK;
    int64_t top = 0;
    if (r->chat) {
        IC_TRY(ic_fields_flag(f, "logprobs", &r->logprobs));
        IC_TRY(ic_fields_whole(f, "top_logprobs", &top, 0, IC_MOST_TOP));
        if (top && !r->logprobs)
            return wrong(r, "top_logprobs", "logprobs to be true with it");
    } else {
        IC_TRY(ic_fields_whole(f, "logprobs", &top, 0, IC_MOST_TOP));
        r->logprobs = rc > 0;
        IC_TRY(ic_fields_flag(f, "echo", &r->echo));
    }
    r->top = (int)top;
    rc = ICAE_OK;
done:
    return rc;
}

static int read_icae(ic_request *r, const ic_json *object)
{
    int rc = ICAE_OK;
    ic_fields f = {.object = object};
    const ic_json *contexts = NULL;
    int64_t top_k = 0, over = 0, expand = IC_ADAPTERS;
    double min_p = 0;
    IC_TRY(ic_fields_whole(&f, "top_k", &top_k, 0, 1 << 30));
    IC_TRY(ic_fields_real(&f, "min_p", &min_p, 0, 1));
    IC_TRY(ic_fields_whole(&f, "compress_over", &over, 1, 1 << 30));
    IC_TRY(ic_fields_whole(&f, "expand", &expand, 0, IC_MOST_EXPANDED));
    IC_TRY(ic_fields_array(&f, "contexts", &contexts));
    for (const ic_json *c = ic_json_first(contexts); c; c = ic_json_next(c)) {
        if (!ic_json_string(c) || r->context_count == IC_MOST_CONTEXTS) {
            rc = ic_fields_wrong(&f, "contexts", "up to 64 ids of contexts");
            goto done;
        }
        r->contexts[r->context_count++] = ic_json_string(c);
    }
    r->sampling.top_k = (int)top_k;
    r->sampling.min_p = (float)min_p;
    r->compress_over = (uint64_t)over;
    r->expand = (int)expand;
    rc = ic_fields_unknown(&r->unknown, object, icae_members, "icae.");
done:
    if (rc < 0)
        snprintf(r->param, sizeof r->param, "icae.%.50s", f.param);
    return rc;
}

static int read_settings(ic_request *r, const ic_request_limits *limits)
{
    int rc = ICAE_OK;
    ic_fields f = {.object = r->root};
    const ic_json *options = NULL, *ours = NULL;
    IC_TRY(ic_fields_text(&f, "model", &r->model));
    IC_TRY(read_sampling(r, &f, limits));
    IC_TRY(read_logprobs(r, &f));
    IC_TRY(ic_fields_flag(&f, "stream", &r->stream));
    IC_TRY(ic_fields_object(&f, "stream_options", &options));
    ic_fields of_stream = {.object = options};
    IC_TRY(ic_fields_flag(&of_stream, "include_usage", &r->usage));
    IC_TRY(ic_fields_object(&f, "icae", &ours));
    IC_TRY(ic_fields_unknown(&r->unknown, r->root, common_members, ""));
    IC_TRY(read_icae(r, ours));
    rc = ICAE_OK;
done:
    if (rc < 0 && *f.param)
        memcpy(r->param, f.param, sizeof r->param);
    return rc;
}

int ic_request_parse(ic_request *r, bool chat, const char *body, size_t size,
                     const ic_request_limits *limits)
{
    int rc = ICAE_OK;
    *r = (ic_request){.chat = chat, .expand = IC_ADAPTERS};
    IC_TRY(ic_fields_parse(&r->root, body, size));
    IC_TRY(read_settings(r, limits));
    if (chat)
        IC_TRY(read_messages(r, ic_json_get(r->root, "messages")));
    else
        IC_TRY(read_prompts(r, ic_json_get(r->root, "prompt"), limits->n));
done:
    return rc;
}

void ic_request_free(ic_request *r)
{
    ic_free(r->messages);
    ic_free(r->pieces);
    ic_json_free(r->root);
    ic_buffer_free(&r->unknown);
    *r = (ic_request){0};
}
