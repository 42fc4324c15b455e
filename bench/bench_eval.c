/*
 * bench_eval.c - the autoencoding measurement (compress, loss, greedy restoration, BLEU) of the model
 * and texts in ICAE_DATA: one text after the other, token by token, against ic_restore_all.
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
    ic_ids *alone, *together; /* [some] restored one by one; with all */
    double tokens, bleu;
    /* one by one; seconds of restoring, of everything */
    double alone_tokens, alone_seconds, alone_whole;
} bench;

static int take(void *user, int32_t id)
{
    return ic_ids_add(user, id);
}

/* Compresses, scores and restores one text. */
static void one_by_one(bench *b, size_t i)
{
    double begin = ic_seconds();
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
    icae_slots_free(slots);
    ic_free(scores);
    b->alone_seconds += ic_seconds() - start;
    b->alone_whole += ic_seconds() - begin;
    b->alone_tokens += (double)b->alone[i].count;
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
    b->tokens += (double)r->restored.count;
    if (r->tag < b->some)
        MUST(ic_ids_append(&b->together[r->tag], r->restored.ids, r->restored.count));
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
    for (size_t i = 0; i < b->some; i++) {
        ic_ids_free(&b->alone[i]);
        ic_ids_free(&b->together[i]);
    }
    for (size_t i = 0; i < b->e.data.documents; i++)
        ic_ids_free(&b->system.ids[i]);
    ic_free(b->alone);
    ic_free(b->together);
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

static double share_equal(const bench *b)
{
    size_t same = 0;
    for (size_t i = 0; i < b->some; i++) {
        const ic_ids *x = &b->alone[i], *y = &b->together[i];
        same += x->count == y->count && !memcmp(x->ids, y->ids, x->count * sizeof *x->ids);
    }
    return (double)same / (double)IC_MAX(b->some, (size_t)1);
}

int main(int argc, char **argv)
{
    bench b = {.length = argument(argc, argv, 2, 512)};
    open_all(&b, (size_t)argument(argc, argv, 1, 200), argument(argc, argv, 3, 0));
    b.some = IC_MIN(b.count, (size_t)argument(argc, argv, 4, 24));
    b.alone = ic_alloc(b.some + 1, sizeof *b.alone);
    b.together = ic_alloc(b.some + 1, sizeof *b.together);
    MUST(b.alone && b.together ? ICAE_OK : ICAE_ENOMEM);
    size_t i = 0;
    while (i < b.some / 2) /* half before and half after, so that a drifting machine hits both */
        one_by_one(&b, i++);
    double start = ic_seconds();
    ic_restore_plan plan = {.next = next, .done = done, .user = &b};
    MUST(ic_restore_all(&b.system, &plan));
    double seconds = ic_seconds() - start, together = b.tokens / plan.seconds;
    while (i < b.some)
        one_by_one(&b, i++);
    double alone = b.alone_tokens / b.alone_seconds;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf(
        "{\"task\": \"eval\", \"texts\": %zu, \"tokens\": %d, \"threads\": %d, \"seconds\": %.2f, "
        "\"tokens_per_second\": %.0f, \"one_by_one\": %.0f, \"ratio\": %.2f, \"whole_ratio\": "
        "%.2f, "
        "\"same\": %.3f, \"bleu\": %.4f, \"peak_rss_mb\": %.1f}\n",
        b.count, b.length, b.system.session->be->threads, seconds, together, alone,
        together / alone, b.tokens / seconds * b.alone_whole / b.alone_tokens, share_equal(&b),
        b.bleu / (double)IC_MAX(b.count, (size_t)1), (double)usage.ru_maxrss / 1024);
    close_all(&b);
    return 0;
}
