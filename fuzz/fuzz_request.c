/*
 * fuzz_request.c - any bytes as the body of a request, and as values of its query.
 *
 * The first byte chooses what they are: a chat, a completion, a text to compress as JSON, as plain text or
 * as a slots file with values of the query in front, each ended by a 0 byte. What is refused has a message;
 * what is taken is within its limits and borrows nothing that is not there.
 */
#include "serve/contexts.h"
#include "serve/request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)   \
    do {                  \
        if (!(condition)) \
            abort();      \
    } while (0)

static const ic_request_limits limits = {.n = 8, .max_tokens = 4096};

static void check_request(const ic_request *r)
{
    size_t total = 0;
    MUST(r->n >= 1 && r->n <= limits.n);
    MUST(r->sampling.max_tokens >= 1 && r->sampling.max_tokens <= limits.max_tokens);
    MUST(r->sampling.temperature >= 0 && r->sampling.temperature <= 2);
    MUST(r->sampling.top_p > 0 && r->sampling.top_p <= 1);
    MUST(r->stops <= IC_MOST_STOPS && r->top >= 0 && r->top <= IC_MOST_TOP);
    MUST(r->context_count <= IC_MOST_CONTEXTS);
    MUST(r->chat ? r->message_count > 0 : r->piece_count > 0 && !r->message_count);
    for (size_t i = 0; i < r->message_count; i++) {
        MUST(r->messages[i].first == total);
        total += r->messages[i].count;
    }
    MUST(!r->chat || total == r->piece_count);
    for (size_t i = 0; i < r->piece_count; i++) {
        const char *text = r->pieces[i].text ? r->pieces[i].text : r->pieces[i].context;
        MUST(!r->pieces[i].text != !r->pieces[i].context);
        MUST(ic_fields_utf8(text, strlen(text), "a piece") == ICAE_OK);
    }
    for (size_t i = 0; i < r->context_count; i++)
        total += strlen(r->contexts[i]);
    for (size_t i = 0; i < r->stops; i++)
        MUST(*r->stop[i]);
}

static void run_request(bool chat, const char *body, size_t size)
{
    ic_request r;
    ic_set_message("%s", "");
    if (ic_request_parse(&r, chat, body, size, &limits) == ICAE_OK)
        check_request(&r);
    else
        MUST(*icae_error_message() && strlen(r.param) < sizeof r.param);
    ic_request_free(&r);
}

/* The next value of the query; NULL if there is none. */
static const char *take(const char **at, const char *end)
{
    const char *value = *at, *zero = *at < end ? memchr(*at, 0, (size_t)(end - *at)) : NULL;
    if (!zero)
        return NULL;
    *at = zero + 1;
    return *value == '-' && !value[1] ? NULL : value; /* "-" leaves one out */
}

static void run_text(const char *type, const char *body, size_t size)
{
    ic_text_request r;
    const char *end = body + size;
    ic_text_query q = {.name = take(&body, end)};
    q.rate = take(&body, end);
    q.check = take(&body, end);
    q.exact = take(&body, end);
    q.int8 = take(&body, end);
    q.ttl = take(&body, end);
    ic_set_message("%s", "");
    int rc = ic_text_request_parse(&r, type, body, (size_t)(end - body), &q);
    if (rc == ICAE_OK) {
        MUST(r.size > 0 && r.text);
        MUST(r.options.rate == 0 || (r.options.rate >= 1 && r.options.rate <= 65536));
        MUST(!r.name || strlen(r.name) <= 200);
        MUST(r.file || ic_fields_utf8(r.text, r.size, "the text") == ICAE_OK);
    } else {
        MUST(rc < 0 && *icae_error_message());
    }
    ic_text_request_free(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const types[] = {"application/json", "Text/Plain; charset=utf-8",
                                        "application/vnd.icae", "text/html"};
    if (!size)
        return 0;
    size_t n = size - 1;
    char *body = malloc(n ? n : 1); /* exactly: what reads beyond it would be seen */
    if (!body)
        return 0;
    if (n)
        memcpy(body, data + 1, n);
    if (data[0] % 8 < 2)
        run_request(data[0] % 8 == 0, body, n);
    else
        run_text(types[data[0] % 4], body, n);
    free(body);
    return 0;
}
