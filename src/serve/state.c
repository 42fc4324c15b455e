/*
 * state.c - what the server tells of itself: the model, its health, its metrics, the page.
 */
#include "serve/serve.h"

#include <inttypes.h>
#include <string.h>

/* page.html, put here by the assembler. */
__asm__(".section .rodata\n"
        ".global ic_page_start\n.hidden ic_page_start\nic_page_start:\n"
        ".incbin \"" ICAE_PAGE "\"\n"
        ".global ic_page_end\n.hidden ic_page_end\nic_page_end:\n.byte 0\n"
        ".previous\n");
extern const char ic_page_start[], ic_page_end[];

/* ---- the page --------------------------------------------------------------------------------- */

static int add_base64(ic_buffer *b, const unsigned char *data, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    int rc = ICAE_OK;
    for (size_t i = 0; i < size; i += 3) {
        uint32_t v = (uint32_t)data[i] << 16 | (i + 1 < size ? (uint32_t)data[i + 1] << 8 : 0) |
                     (i + 2 < size ? data[i + 2] : 0);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63], digits[v >> 6 & 63], digits[v & 63]};
        for (size_t j = size - i + 1; j < 4; j++)
            four[j] = '=';
        IC_TRY(ic_buffer_add(b, four, 4));
    }
done:
    return rc;
}

/* 'sha256-…' of what stands in the first element of a name. */
static int add_hash(ic_buffer *b, const char *open, const char *close)
{
    size_t size = (size_t)(ic_page_end - ic_page_start);
    const char *from = memmem(ic_page_start, size, open, strlen(open));
    const char *to = from ? memmem(from, (size_t)(ic_page_end - from), close, strlen(close)) : NULL;
    char hex[65];
    unsigned char raw[32];
    if (!to)
        return ic_buffer_addf(b, "'none'");
    from += strlen(open);
    int rc = ic_hash_of(hex, from, (size_t)(to - from));
    for (int i = 0; i < 32 && rc == ICAE_OK; i++) {
        unsigned high = (unsigned)(hex[2 * i] > '9' ? hex[2 * i] - 'a' + 10 : hex[2 * i] - '0');
        unsigned low =
            (unsigned)(hex[2 * i + 1] > '9' ? hex[2 * i + 1] - 'a' + 10 : hex[2 * i + 1] - '0');
        raw[i] = (unsigned char)(high << 4 | low);
    }
    IC_TRY(rc);
    IC_TRY(ic_buffer_addf(b, "'sha256-"));
    IC_TRY(add_base64(b, raw, sizeof raw));
    IC_TRY(ic_buffer_addf(b, "'"));
done:
    return rc;
}

int ic_page_policy(char **out)
{
    int rc = ICAE_OK;
    ic_buffer b = {0};
    IC_TRY(ic_buffer_addf(&b, "default-src 'none'; style-src "));
    IC_TRY(add_hash(&b, "<style>", "</style>"));
    IC_TRY(ic_buffer_addf(&b, "; script-src "));
    IC_TRY(add_hash(&b, "<script>", "</script>"));
    IC_TRY(ic_buffer_addf(&b, "; connect-src 'self'; img-src data:; base-uri 'none'; "
                              "form-action 'none'; frame-ancestors 'none'"));
    *out = ic_strdup(b.data);
    rc = *out ? ICAE_OK : ICAE_ENOMEM;
done:
    ic_buffer_free(&b);
    return rc;
}

void ic_serve_page(ic_call *c)
{
    ic_exchange_set(c->x, "Content-Security-Policy", c->server->page_policy);
    ic_exchange_set(c->x, "Referrer-Policy", "no-referrer");
    ic_exchange_reply(c->x, 200, "text/html; charset=utf-8", ic_page_start,
                      (size_t)(ic_page_end - ic_page_start));
}

/* ---- the model -------------------------------------------------------------------------------- */

void ic_serve_models(ic_call *c)
{
    int rc = ICAE_OK;
    const ic_server *s = c->server;
    const icae_model *m = s->session->model;
    const icae_adapter *a = s->session->adapter;
    ic_buffer b = {0};
    IC_TRY(ic_buffer_addf(&b, "{\"object\":\"list\",\"data\":[{\"id\":"));
    IC_TRY(ic_json_quote(&b, s->name, strlen(s->name)));
    IC_TRY(ic_buffer_addf(&b,
                          ",\"object\":\"model\",\"created\":%" PRId64
                          ",\"owned_by\":\"icae\",\"icae\":{\"base\":\"%s\",\"adapter\":",
                          s->started, m->identity));
    if (a)
        IC_TRY(ic_buffer_addf(&b, "\"%s\"", a->identity));
    else
        IC_TRY(ic_buffer_addf(&b, "null"));
    IC_TRY(ic_buffer_addf(&b,
                          ",\"max_positions\":%d,\"slots_per_segment\":%d,\"rate\":%.6g,\"refine\":"
                          "%d,\"expand\":%d,\"exact\":%s,"
                          "\"max_body\":%" PRIu64 ",\"max_tokens\":%" PRIu64 ",\"max_n\":%d}}]}\n",
                          m->config.max_positions, a ? a->k : 0, a ? (double)a->rate : 0.0,
                          a ? a->refine : 0, a ? a->expand : 0, a ? "true" : "false",
                          s->options.max_body, s->options.max_tokens, s->options.max_n));
    ic_call_json(c, 200, &b);
done:
    if (rc < 0)
        ic_call_failed(c, rc, NULL);
    ic_buffer_free(&b);
}

/* ---- health ----------------------------------------------------------------------------------- */

void ic_serve_health(ic_call *c)
{
    ic_server *s = c->server;
    bool store = !s->store || icae_store_ping(s->store) == ICAE_OK;
    bool draining = atomic_load(&s->draining);
    ic_worker_load load = ic_worker_describe(s->worker);
    ic_buffer b = {0};
    int rc = ic_buffer_addf(
        &b,
        "{\"status\":\"%s\",\"version\":\"%s\",\"store\":\"%s\",\"running\":%d,\"waiting\":%d}\n",
        draining ? "draining"
        : store  ? "ok"
                 : "store_unavailable",
        ICAE_VERSION, store ? "ok" : "unavailable", load.running, load.waiting + load.steps);
    if (rc < 0)
        ic_call_failed(c, rc, NULL);
    else
        ic_call_json(c, store && !draining ? 200 : 503, &b);
    ic_buffer_free(&b);
}

/* ---- metrics ---------------------------------------------------------------------------------- */

typedef struct metric {
    const char *name, *type, *help;
    double value;
} metric;

static uint64_t resident_bytes(void)
{
    ic_map map;
    unsigned long long pages = 0;
    if (ic_map_open(&map, "/proc/self/statm") < 0)
        return 0;
    size_t i = 0;
    while (i < map.size && map.data[i] != ' ')
        i++;
    for (i++; i < map.size && map.data[i] >= '0' && map.data[i] <= '9'; i++)
        pages = 10 * pages + (unsigned)(map.data[i] - '0');
    ic_map_close(&map);
    return pages * 4096;
}

static int add_metrics(ic_buffer *b, const metric *m, size_t count)
{
    int rc = ICAE_OK;
    for (size_t i = 0; i < count; i++)
        IC_TRY(ic_buffer_addf(b, "# HELP icae_%s %s\n# TYPE icae_%s %s\nicae_%s %.17g\n", m[i].name,
                              m[i].help, m[i].name, m[i].type, m[i].name, m[i].value));
done:
    return rc;
}

#define COUNTER(name, help, value)             \
    {                                          \
        name, "counter", help, (double)(value) \
    }
#define GAUGE(name, help, value)             \
    {                                        \
        name, "gauge", help, (double)(value) \
    }

void ic_serve_metrics(ic_call *c)
{
    int rc = ICAE_OK;
    ic_server *s = c->server;
    ic_metrics *m = &s->metrics;
    ic_worker_load load = ic_worker_describe(s->worker);
    ic_buffer b = {0};
    const metric all[] = {
        COUNTER("prompt_text_rows_total", "text tokens read", m->prompt_text),
        COUNTER("prompt_slot_rows_total", "slots read", m->prompt_slots),
        COUNTER("prompt_cached_rows_total", "rows that were cached", m->prompt_cached),
        COUNTER("completion_tokens_total", "tokens of replies", m->completion),
        COUNTER("generated_tokens_total", "tokens generated, restorations included", load.tokens),
        COUNTER("compressed_texts_total", "texts compressed", m->compressed_texts),
        COUNTER("compressed_tokens_total", "tokens of them", m->compressed_tokens),
        COUNTER("compressed_slots_total", "slots made of them", m->compressed_slots),
        COUNTER("clients_gone_total", "requests whose client did not wait", m->gone),
        COUNTER("refused_total", "requests refused because the queue was full", m->refused),
        COUNTER("request_seconds_total", "time of all requests", (double)m->seconds_us / 1e6),
        COUNTER("first_token_seconds_total", "time to the first token of all replies",
                (double)m->first_token_us / 1e6),
        COUNTER("first_tokens_total", "replies counted in it", m->first_tokens),
        COUNTER("batches_total", "steps of the batch", load.batches),
        COUNTER("prefix_hits_total", "prompts whose slots were read already", load.prefix_hits),
        COUNTER("prefix_misses_total", "prompts whose slots were read", load.prefix_misses),
        GAUGE("running_sequences", "replies in the batch", load.running),
        GAUGE("waiting_requests", "requests that wait for a place", load.waiting),
        GAUGE("running_compressions", "compressions at work", load.steps),
        GAUGE("prefix_bytes", "of cached keys and values", load.prefix_bytes),
        GAUGE("resident_bytes", "memory of the process", resident_bytes()),
        GAUGE("start_time_seconds", "Unix time of the start", s->started),
    };
    IC_TRY(ic_buffer_addf(&b, "# HELP icae_requests_total requests by status\n"
                              "# TYPE icae_requests_total counter\n"));
    for (int i = 2; i < 6; i++)
        IC_TRY(ic_buffer_addf(&b, "icae_requests_total{status=\"%dxx\"} %llu\n", i,
                              (unsigned long long)m->requests[i]));
    IC_TRY(add_metrics(&b, all, IC_COUNT(all)));
    ic_exchange_reply(c->x, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.size);
done:
    if (rc < 0)
        ic_call_failed(c, rc, NULL);
    ic_buffer_free(&b);
}
