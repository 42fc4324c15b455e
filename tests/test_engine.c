/*
 * test_engine.c - continuous batched decoding gives each sequence what it gets alone, whoever joins,
 * leaves, fails or is cancelled beside it.
 */
#include "golden.h"

#include "core/engine.h"

#define SMALL ICAE_TEST_DIR "/small/model"

static const char text[] = "The old lighthouse stood at the end of the long pier. Every evening "
                           "the keeper climbed the narrow "
                           "stairs with a lamp in his hand, and every morning he came down again "
                           "and wrote in his book what "
                           "ships had passed. One night a great storm rose from the west, and the "
                           "waves broke over the rocks. "
                           "The keeper saw a small boat far out on the dark water, and he knew "
                           "that he must go and help.\n\n"
                           "He called his daughter, and together they pushed the rowing boat into "
                           "the sea. The wind tore at "
                           "their coats. \"Hold fast,\" cried the old man, and the girl took the "
                           "other oar without a word.";

enum { JOBS = 13 };

typedef struct one {
    ic_job job;
    ic_prompt prompt;
    ic_generation g;
    ic_ids out;
    size_t stop_after; /* 0: never */
    bool finished;
} one;

static icae_model *model;
static icae_adapter *adapter;
static icae_session *session;
static icae_slots *slots[JOBS];

static int open_all(void **state)
{
    (void)state;
    MUST(icae_model_open(&model, SMALL, &(icae_model_options){.compute = ICAE_COMPUTE_F32}));
    MUST(icae_adapter_open(&adapter, NULL, model, NULL));
    MUST(icae_session_new(&session, model, adapter, &(icae_session_options){.threads = 1}));
    for (size_t i = 0; i < JOBS; i++)
        MUST(icae_compress(&slots[i], session, text + 7 * i, 20 + 38 * i, NULL));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    for (size_t i = 0; i < JOBS; i++)
        icae_slots_free(slots[i]);
    icae_session_free(session);
    icae_adapter_free(adapter);
    icae_model_free(model);
    return 0;
}

static int take(void *user, int32_t id)
{
    one *o = user;
    MUST(ic_ids_add(&o->out, id));
    return o->stop_after && o->out.count >= o->stop_after;
}

static void finished(ic_job *job)
{
    one *o = job->user;
    assert_false(o->finished);
    o->finished = true;
}

/* Restorations of all lengths, greedy and sampled. */
static void begin(one *o, size_t i)
{
    ic_span span;
    *o = (one){0};
    assert_true(ic_span_at(&span, slots[i], 0));
    MUST(ic_span_prompt(&o->prompt, session, slots[i], &span));
    o->g = (ic_generation){.end_of_turn = -1, .expected = span.tokens, .take = take, .user = o};
    if (i % 4 == 3)
        o->g.sampling = (icae_sampling){.temperature = 0.8f, .seed = i, .max_tokens = 40};
    o->job = (ic_job){.prompt = &o->prompt, .generation = &o->g, .finished = finished, .user = o};
}

static void end(one *o)
{
    ic_prompt_free(&o->prompt);
    ic_ids_free(&o->out);
}

/* Runs the jobs alone, through ic_generate. */
static void alone(one *o)
{
    for (size_t i = 0; i < JOBS; i++) {
        ic_kv *kv = NULL;
        begin(&o[i], i);
        MUST(ic_generate(session, &o[i].prompt, 0, &kv, &o[i].g));
        ic_kv_free(kv);
    }
}

static void same(const one *a, const one *b)
{
    assert_int_equal(a->out.count, b->out.count);
    assert_memory_equal(a->out.ids, b->out.ids, a->out.count * sizeof *a->out.ids);
    assert_int_equal(a->g.result.tokens, b->g.result.tokens);
    assert_string_equal(a->g.result.stop, b->g.result.stop);
    assert_int_equal(a->g.result.prompt_rows, b->g.result.prompt_rows);
}

/* Whatever the number of places and of rows a step: the same tokens. */
static void test_same_tokens(void **state)
{
    (void)state;
    static const ic_engine_options shapes[] = {{1, 0}, {2, 1}, {3, 7}, {5, 64}, {32, 0}};
    static one wanted[JOBS], got[JOBS];
    alone(wanted);
    for (size_t k = 0; k < IC_COUNT(shapes); k++) {
        ic_engine *e;
        MUST(ic_engine_new(&e, session, &shapes[k]));
        for (size_t i = 0; i < JOBS; i++) {
            begin(&got[i], i);
            ic_engine_add(e, &got[i].job);
            if (i == 6) /* the others come while these run */
                for (int n = 0; n < 9; n++)
                    MUST(ic_engine_step(e));
        }
        MUST(ic_engine_drain(e));
        assert_int_equal(ic_engine_load(e), 0);
        for (size_t i = 0; i < JOBS; i++) {
            assert_true(got[i].finished);
            MUST(got[i].job.rc);
            same(&wanted[i], &got[i]);
            end(&got[i]);
        }
        ic_engine_free(e);
    }
    for (size_t i = 0; i < JOBS; i++)
        end(&wanted[i]);
}

/* One stops itself, one is cancelled at work, one in the queue: the rest do not notice. */
static void test_leaving(void **state)
{
    (void)state;
    static one wanted[JOBS], got[JOBS];
    alone(wanted);
    ic_engine *e;
    MUST(ic_engine_new(&e, session, &(ic_engine_options){.sequences = 4}));
    for (size_t i = 0; i < JOBS; i++) {
        begin(&got[i], i);
        if (i == 1)
            got[i].stop_after = 3;
        ic_engine_add(e, &got[i].job);
    }
    for (int n = 0; n < 3; n++)
        MUST(ic_engine_step(e));
    ic_engine_cancel(e, &got[2].job);
    ic_engine_cancel(e, &got[JOBS - 1].job);
    ic_engine_cancel(e, &got[9].job);
    assert_int_equal(got[2].job.rc, ICAE_ECANCELLED);
    MUST(ic_engine_drain(e));
    for (size_t i = 0; i < JOBS; i++) {
        assert_true(got[i].finished);
        if (i == 1 || i == 2 || i == 9 || i == JOBS - 1) {
            assert_int_equal(got[i].job.rc, ICAE_ECANCELLED);
            assert_true(got[i].out.count <= 3);
        } else {
            MUST(got[i].job.rc);
            same(&wanted[i], &got[i]);
        }
        end(&got[i]);
        end(&wanted[i]);
    }
    ic_engine_free(e);
}

/* Caches of the caller's stay with the caller: a second generation goes on where the first ended. */
static void test_own_cache(void **state)
{
    (void)state;
    ic_kv *kv = NULL, *other = NULL;
    one a, b;
    begin(&a, 8);
    begin(&b, 8);
    a.g.sampling.max_tokens = 5;
    b.g.sampling.max_tokens = 12;
    MUST(ic_generate(session, &a.prompt, 0, &kv, &a.g));
    assert_string_equal(a.g.result.stop, "length");
    a.g.sampling.max_tokens = 7;
    MUST(ic_generate(session, &a.prompt, kv->rows, &kv, &a.g));
    MUST(ic_generate(session, &b.prompt, 0, &other, &b.g));
    assert_int_equal(a.out.count, 12);
    assert_memory_equal(a.out.ids, b.out.ids, 12 * sizeof *a.out.ids);
    ic_kv_free(kv);
    ic_kv_free(other);
    end(&a);
    end(&b);
}

/* Sequences over one beginning, which is read once and then shared, say what each says alone; it stays
 * until the last of them is gone. */
static void test_shared_beginning(void **state)
{
    (void)state;
    enum { REPLIES = 5 };
    static const int shares[] = {0, 1, 16, 37, 1000};
    static one wanted[REPLIES], got[REPLIES];
    size_t longest = JOBS - 1;
    for (size_t n = 0; n < IC_COUNT(shares); n++) {
        ic_engine *e;
        ic_kv *first = NULL, *kv[REPLIES];
        one begun;
        begin(&begun, longest);
        int rows = begun.prompt.rows - 1, shared = IC_MIN(shares[n], rows);
        MUST(ic_kv_new(&first, &model->config, session->act, rows));
        MUST(ic_prompt_read(session, &begun.prompt, 0, rows, first, NULL, 0, NULL, NULL));
        MUST(ic_kv_share(first, shared));
        assert_int_equal(first->shared, shared - shared % IC_SHARED_ROWS);
        MUST(ic_engine_new(&e, session, NULL));
        for (size_t i = 0; i < REPLIES; i++) {
            ic_kv *own = NULL;
            begin(&wanted[i], longest);
            begin(&got[i], longest);
            wanted[i].g.sampling = got[i].g.sampling =
                (icae_sampling){.temperature = i ? 0.8f : 0, .seed = i, .max_tokens = 40};
            MUST(ic_generate(session, &wanted[i].prompt, 0, &own, &wanted[i].g));
            ic_kv_free(own);
            MUST(ic_kv_fork(&kv[i], first, rows));
            got[i].job.kv = &kv[i];
            got[i].job.first = rows;
            ic_engine_add(e, &got[i].job);
        }
        ic_kv_free(first);
        MUST(ic_engine_drain(e));
        for (size_t i = 0; i < REPLIES; i++) {
            MUST(got[i].job.rc);
            assert_int_equal(wanted[i].out.count, got[i].out.count);
            assert_memory_equal(wanted[i].out.ids, got[i].out.ids,
                                got[i].out.count * sizeof *got[i].out.ids);
            end(&wanted[i]);
            end(&got[i]);
            ic_kv_free(kv[i]);
        }
        ic_engine_free(e);
        end(&begun);
    }
}

/* Allocation n fails while rows are shared out: the cache is as it was, nothing leaks. */
static void test_no_memory_to_share(void **state)
{
    (void)state;
    long live = ic_memory_live();
    for (long n = 0;; n++) {
        ic_kv *kv, *fork = NULL;
        MUST(ic_kv_new(&kv, &model->config, IC_F32, 50));
        kv->rows = 40;
        for (int row = 0; row < 40; row++)
            memset(ic_kv_at(kv, 0, 1, row), row, (size_t)kv->width * sizeof(float));
        ic_memory_fail_after(n);
        int rc = ic_kv_share(kv, 40);
        if (rc == ICAE_OK)
            rc = ic_kv_fork(&fork, kv, 40);
        ic_memory_fail_after(-1);
        assert_int_equal(kv->rows, 40);
        assert_int_equal(*(char *)ic_kv_at(kv, 0, 1, 39), 39);
        assert_int_equal(*(char *)ic_kv_at(kv->prefix ? kv->prefix : kv, 0, 1, 31), 31);
        ic_kv_free(kv);
        if (rc == ICAE_OK) {
            assert_int_equal(*(char *)ic_kv_at(fork->prefix, 0, 1, 31), 31);
            assert_int_equal(*(char *)ic_kv_at(fork, 0, 1, 39), 39);
        }
        ic_kv_free(fork);
        assert_int_equal(ic_memory_live(), live);
        if (rc == ICAE_OK)
            break;
        assert_int_equal(rc, ICAE_ENOMEM);
    }
}

/* Allocation n fails: all jobs finish, nothing leaks, the engine can go on. */
static void test_no_memory(void **state)
{
    (void)state;
    long live = ic_memory_live();
    for (long n = 0, step = 1;; n += step, step = 1 + n / 20) {
        static one got[3];
        ic_engine *e = NULL;
        for (size_t i = 0; i < 3; i++) {
            begin(&got[i], 2 + i);
            got[i].g.sampling.max_tokens = 3;
            MUST(ic_ids_add(&got[i].out, 0));
        }
        ic_memory_fail_after(n);
        int rc = ic_engine_new(&e, session, &(ic_engine_options){.sequences = 2});
        if (rc == ICAE_OK) {
            for (size_t i = 0; i < 3; i++)
                ic_engine_add(e, &got[i].job);
            while (ic_engine_load(e)) {
                int now = ic_engine_step(e);
                rc = rc < 0 ? rc : now;
            }
            for (size_t i = 0; i < 3; i++) {
                assert_true(got[i].finished);
                rc = rc < 0 ? rc : got[i].job.rc;
            }
        }
        ic_memory_fail_after(-1);
        ic_engine_free(e);
        for (size_t i = 0; i < 3; i++)
            end(&got[i]);
        assert_int_equal(ic_memory_live(), live);
        if (rc == ICAE_OK)
            break;
        assert_int_equal(rc, ICAE_ENOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_tokens),        cmocka_unit_test(test_leaving),
        cmocka_unit_test(test_own_cache),          cmocka_unit_test(test_shared_beginning),
        cmocka_unit_test(test_no_memory_to_share), cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
