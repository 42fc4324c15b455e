/*
 * bench_eval.c - the autoencoding measurement (compress, loss, greedy restoration, BLEU) of the bundled
 * model on bundled texts: one text after the other, token by token, against ic_restore_all.
 *
 *     bench_eval [texts] [tokens] [threads] [texts one by one]
 *
 * Prints one line of JSON. `seconds` is the whole measurement of all texts. Restoration alone, in tokens
 * a second: `one_by_one`, and `tokens_per_second` (which includes the loss); `ratio` is the second over
 * the first, `whole_ratio` that of the whole measurement. `same`: share of texts whose restorations are
 * equal (in bf16 a near tie may fall either way).
 */
#include "eval/eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define MUST(call)                                         \
    do {                                                   \
        if ((call) < 0) {                                  \
            fprintf(stderr, "%s\n", icae_error_message()); \
            exit(1);                                       \
        }                                                  \
    } while (0)

typedef struct bench {
    ic_system system;
    ic_eval e;
    ic_piece *piece;
    size_t count, at, some;
    int length;
    ic_ids *alone; /* [some] restored one by one */
    size_t same;
    double tokens, seconds, bleu; /* seconds: of restoring */
} bench;

static int take(void *user, int32_t id)
{
    return ic_ids_add(user, id);
}

/* Compresses, scores and restores one text; the clock counts restoration alone. */
static void one_by_one(bench *b, size_t i)
{
    icae_session *s = b->system.session;
    ic_ids ids = {(int32_t *)(uintptr_t)b->piece[i].ids, (size_t)b->length, (size_t)b->length};
    ic_score *scores = ic_alloc(ids.count, sizeof *scores);
    icae_slots *slots;
    ic_span span;
    MUST(scores ? ic_compress_ids(&slots, s, &ids, &(icae_compress_options){0}) : ICAE_ENOMEM);
    MUST(ic_slots_score(scores, s, slots, ids.ids));
    double start = ic_seconds();
    for (uint32_t at = 0; ic_span_at(&span, slots, at); at += span.segments) {
        ic_prompt prompt;
        ic_kv *kv = NULL;
        ic_generation g = {
            .expected = span.tokens, .end_of_turn = -1, .take = take, .user = &b->alone[i]};
        MUST(ic_span_prompt(&prompt, s, slots, &span));
        MUST(ic_generate(s, &prompt, 0, &kv, &g));
        ic_kv_free(kv);
        ic_prompt_free(&prompt);
    }
    b->seconds += ic_seconds() - start;
    b->tokens += (double)b->alone[i].count;
    icae_slots_free(slots);
    ic_free(scores);
}

static bool next(void *user, ic_restoration *r)
{
    bench *b = user;
    if (b->at == b->count)
        return false;
    r->tag = b->at;
    r->ids = b->piece[b->at++].ids;
    r->count = b->length;
    return true;
}

static int done(void *user, const ic_restoration *r)
{
    bench *b = user;
    ic_buffer reference = {0}, restored = {0};
    ic_bleu bleu = {0};
    const ic_ids *a = r->tag < b->some ? &b->alone[r->tag] : NULL;
    b->tokens += (double)r->restored.count;
    if (a && a->count == r->restored.count)
        b->same += !memcmp(a->ids, r->restored.ids, a->count * sizeof *a->ids);
    MUST(ic_eval_decode(&reference, &b->system, r->ids, (size_t)r->count));
    MUST(ic_eval_decode(&restored, &b->system, r->restored.ids, r->restored.count));
    MUST(ic_bleu_add(&bleu, restored.data, restored.size, reference.data, reference.size));
    b->bleu += ic_bleu_score(&bleu, true);
    ic_buffer_free(&reference);
    ic_buffer_free(&restored);
    return ICAE_OK;
}

static void open_all(bench *b, size_t texts, int threads)
{
    static const icae_eval_options options;
    char *folder;
    ic_system *s = &b->system;
    s->name = "bundled";
    b->e = (ic_eval){.options = &options, .system = s, .systems = 1, .seed = 1};
    MUST(ic_bundled_path(&folder, "eval"));
    MUST(ic_data_add(&b->e.data, folder));
    MUST(icae_model_open(&s->model, NULL, NULL));
    MUST(icae_adapter_open(&s->adapter, NULL, s->model, NULL));
    MUST(icae_session_new(&s->session, s->model, s->adapter,
                          &(icae_session_options){.threads = threads}));
    s->ids = ic_alloc(b->e.data.documents, sizeof *s->ids);
    MUST(s->ids ? ic_eval_pieces(&b->piece, &b->count, &b->e, s, NULL, b->length, texts)
                : ICAE_ENOMEM);
    ic_free(folder);
}

static void close_all(bench *b)
{
    for (size_t i = 0; i < b->some; i++)
        ic_ids_free(&b->alone[i]);
    for (size_t i = 0; i < b->e.data.documents; i++)
        ic_ids_free(&b->system.ids[i]);
    ic_free(b->alone);
    ic_free(b->piece);
    ic_free(b->system.ids);
    ic_data_free(&b->e.data);
    icae_session_free(b->system.session);
    icae_adapter_free(b->system.adapter);
    icae_model_free(b->system.model);
}

static int argument(int argc, char **argv, int i, int otherwise)
{
    return argc > i ? atoi(argv[i]) : otherwise;
}

int main(int argc, char **argv)
{
    bench b = {.length = argument(argc, argv, 2, 512)};
    open_all(&b, (size_t)argument(argc, argv, 1, 200), argument(argc, argv, 3, 0));
    b.some = IC_MIN(b.count, (size_t)argument(argc, argv, 4, 12));
    MUST((b.alone = ic_alloc(b.some + 1, sizeof *b.alone)) ? 0 : ICAE_ENOMEM);
    double start = ic_seconds();
    for (size_t i = 0; i < b.some; i++)
        one_by_one(&b, i);
    double alone = b.tokens / b.seconds, whole_alone = b.tokens / (ic_seconds() - start);
    b.tokens = 0;
    start = ic_seconds();
    ic_restore_plan plan = {.next = next, .done = done, .user = &b};
    MUST(ic_restore_all(&b.system, &plan));
    double seconds = ic_seconds() - start, together = b.tokens / plan.seconds;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf(
        "{\"task\": \"eval\", \"texts\": %zu, \"tokens\": %d, \"threads\": %d, \"seconds\": %.2f, "
        "\"tokens_per_second\": %.0f, \"one_by_one\": %.0f, \"ratio\": %.2f, \"whole_ratio\": "
        "%.2f, "
        "\"same\": %.3f, \"bleu\": %.4f, \"peak_rss_mb\": %.1f}\n",
        b.count, b.length, b.system.session->be->threads, seconds, together, alone,
        together / alone, b.tokens / seconds / whole_alone,
        (double)b.same / (double)IC_MAX(b.some, (size_t)1),
        b.bleu / (double)IC_MAX(b.count, (size_t)1), (double)usage.ru_maxrss / 1024);
    close_all(&b);
    return 0;
}
