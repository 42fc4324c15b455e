/*
 * bench_eval.c - restoring many texts together against one by one: tokens a second of both in turn, from
 * the same slots; then the whole autoencoding measurement (compress, loss, restore, BLEU) of all texts.
 *
 *     bench_eval [texts] [tokens] [sequences at a time] [threads]
 *
 * Seconds of the CPU stand beside those of the clock, because other work on the machine slows only these.
 */
#include "eval/eval.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MUST(call)                                         \
    do {                                                   \
        if ((call) < 0) {                                  \
            fprintf(stderr, "%s\n", icae_error_message()); \
            exit(1);                                       \
        }                                                  \
    } while (0)

enum { SOME = 32, ROUNDS = 3 };

static double cpu_now(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

typedef struct tally {
    double tokens, seconds, cpu;
} tally;

static int take(void *user, int32_t id)
{
    (void)id;
    ((tally *)user)->tokens++;
    return 0;
}

/* Restores texts from their slots, `sequences` at a time; 1: through ic_generate, one after another. */
static void restore(tally *t, icae_session *s, icae_slots *const *slots, int count, int sequences)
{
    ic_prompt prompt[SOME];
    ic_generation g[SOME];
    ic_job job[SOME];
    ic_engine *engine = NULL;
    for (int i = 0; i < count; i++) {
        ic_span span;
        ic_span_at(&span, slots[i], 0);
        MUST(ic_span_prompt(&prompt[i], s, slots[i], &span));
        g[i] = (ic_generation){.expected = span.tokens, .end_of_turn = -1, .take = take, .user = t};
        job[i] = (ic_job){.prompt = &prompt[i], .generation = &g[i]};
    }
    double start = ic_seconds(), cpu = cpu_now();
    if (sequences > 1) {
        MUST(ic_engine_new(&engine, s, &(ic_engine_options){.sequences = sequences}));
        for (int i = 0; i < count; i++)
            ic_engine_add(engine, &job[i]);
        MUST(ic_engine_drain(engine));
    }
    for (int i = 0; i < count; i++) {
        ic_kv *kv = NULL;
        if (sequences == 1)
            MUST(ic_generate(s, &prompt[i], 0, &kv, &g[i]));
        else
            MUST(job[i].rc);
        ic_kv_free(kv);
    }
    t->seconds += ic_seconds() - start;
    t->cpu += cpu_now() - cpu;
    ic_engine_free(engine);
    for (int i = 0; i < count; i++)
        ic_prompt_free(&prompt[i]);
}

/* ---- the whole measurement -------------------------------------------------------------------- */

typedef struct source {
    const ic_piece *piece;
    size_t count, at;
    int length;
    double tokens, bleu;
    const ic_system *system;
} source;

static bool next(void *user, ic_restoration *r)
{
    source *s = user;
    if (s->at == s->count)
        return false;
    r->ids = s->piece[s->at++].ids;
    r->count = s->length;
    return true;
}

static int done(void *user, const ic_restoration *r)
{
    source *s = user;
    ic_buffer reference = {0}, restored = {0};
    ic_bleu bleu = {0};
    s->tokens += (double)r->restored.count;
    MUST(ic_eval_decode(&reference, s->system, r->ids, (size_t)r->count));
    MUST(ic_eval_decode(&restored, s->system, r->restored.ids, r->restored.count));
    MUST(ic_bleu_add(&bleu, restored.data, restored.size, reference.data, reference.size));
    s->bleu += ic_bleu_score(&bleu, true);
    ic_buffer_free(&reference);
    ic_buffer_free(&restored);
    return ICAE_OK;
}

int main(int argc, char **argv)
{
    size_t texts = argc > 1 ? (size_t)atoi(argv[1]) : 200, count;
    int length = argc > 2 ? atoi(argv[2]) : 512, sequences = argc > 3 ? atoi(argv[3]) : 32;
    icae_eval_options options = {0};
    icae_session_options session = {.threads = argc > 4 ? atoi(argv[4]) : 0};
    ic_system s = {.name = "bundled"};
    ic_eval e = {.options = &options, .system = &s, .systems = 1, .seed = 1};
    char *folder;
    ic_piece *piece;
    MUST(ic_bundled_path(&folder, "eval"));
    MUST(ic_data_add(&e.data, folder));
    MUST(icae_model_open(&s.model, NULL, NULL));
    MUST(icae_adapter_open(&s.adapter, NULL, s.model, NULL));
    MUST(icae_session_new(&s.session, s.model, s.adapter, &session));
    s.ids = ic_alloc(e.data.documents, sizeof *s.ids);
    MUST(s.ids ? ic_eval_pieces(&piece, &count, &e, &s, NULL, length, texts) : ICAE_ENOMEM);

    icae_slots *slots[SOME];
    int some = (int)IC_MIN(count, (size_t)SOME), few = IC_MIN(some, 4);
    for (int i = 0; i < some; i++)
        MUST(ic_compress_ids(
            &slots[i], s.session,
            &(ic_ids){(int32_t *)(uintptr_t)piece[i].ids, (size_t)length, (size_t)length},
            &(icae_compress_options){0}));
    tally one = {0}, many = {0}, warm = {0};
    restore(&warm, s.session, slots, 1, 1);
    for (int i = 0; i < ROUNDS; i++) { /* in turn, so that both see the same machine */
        restore(&one, s.session, slots, few, 1);
        restore(&many, s.session, slots, some, sequences);
    }
    double a = one.tokens / one.seconds, b = many.tokens / many.seconds, c = one.tokens / one.cpu,
           d = many.tokens / many.cpu;
    printf("restoration   tokens/s   tokens/s of CPU\none by one    %8.0f   %8.0f\n%2d together   "
           "%8.0f   %8.0f\n"
           "ratio         %8.1f   %8.1f\n",
           a, c, sequences, b, d, b / a, d / c);

    source from = {.piece = piece, .count = count, .length = length, .system = &s};
    double start = ic_seconds(), cpu = cpu_now();
    MUST(ic_restore_all(
        &s, &(ic_restore_plan){.next = next, .done = done, .user = &from, .sequences = sequences}));
    double seconds = ic_seconds() - start;
    printf("whole measurement, %zu texts of %d tokens: %.1f s (%.1f of CPU), %.0f tokens/s, mean "
           "BLEU %.4f\n",
           count, length, seconds, cpu_now() - cpu, from.tokens / seconds,
           from.bleu / (double)count);
    for (int i = 0; i < some; i++)
        icae_slots_free(slots[i]);
    ic_free(piece);
    ic_free(folder);
    for (size_t i = 0; i < e.data.documents; i++)
        ic_ids_free(&s.ids[i]);
    ic_free(s.ids);
    ic_data_free(&e.data);
    icae_session_free(s.session);
    icae_adapter_free(s.adapter);
    icae_model_free(s.model);
    return 0;
}
