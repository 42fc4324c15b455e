/*
 * test_icae.c - the main job through the public interface, on the model of tests/small and golden ones:
 * compress, restore, ask, continue, chat; batches, exactness, limits, mismatches, no memory.
 */
#include "golden.h"

#define SMALL ICAE_TEST_DIR "/small/model"

static const char text[] =
    "The old lighthouse stood at the end of the long pier. Every evening the keeper climbed the "
    "narrow "
    "stairs with a lamp in his hand, and every morning he came down again and wrote in his book "
    "what "
    "ships had passed. One night a great storm rose from the west, and the waves broke over the "
    "rocks. "
    "The keeper saw a small boat far out on the dark water, and he knew that he must go and "
    "help.\n\n"
    "He called his daughter, and together they pushed the rowing boat into the sea.";

typedef struct whole {
    icae_model *model;
    icae_adapter *adapter;
    icae_session *session;
} whole;

static whole open_whole(const char *path, icae_compute compute, int threads, uint64_t memory)
{
    whole w;
    MUST(icae_model_open(&w.model, path, &(icae_model_options){.compute = compute}));
    MUST(icae_adapter_open(&w.adapter, NULL, w.model, NULL));
    MUST(icae_session_new(&w.session, w.model, w.adapter,
                          &(icae_session_options){.threads = threads, .memory = memory}));
    return w;
}

static void close_whole(whole *w)
{
    icae_session_free(w->session);
    icae_adapter_free(w->adapter);
    icae_model_free(w->model);
}

static int gather(void *user, const char *piece, size_t size)
{
    return ic_buffer_add(user, piece, size);
}

static int stop_at_once(void *user, const char *piece, size_t size)
{
    (void)user, (void)piece, (void)size;
    return 1;
}

static icae_slots *compress(whole *w, const char *s, size_t n, const icae_compress_options *o)
{
    icae_slots *slots;
    MUST(icae_compress(&slots, w->session, s, n, o));
    return slots;
}

/* ---- the main job ----------------------------------------------------------------------------- */

static void test_main_job(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_AUTO, 2, 0);
    icae_slots *s = compress(&w, text, strlen(text), &(icae_compress_options){.check = true});
    icae_slots_info i = icae_slots_describe(s);
    assert_true(i.slots * 4 >= i.tokens && i.slots <= i.tokens / 4 + i.segments);
    assert_int_equal(i.text_size, strlen(text));
    assert_true(i.fidelity.measured && i.fidelity.tokens == i.tokens);
    assert_true(i.fidelity.accuracy >
                0.9); /* ordinary prose: the bundled adapter was made for it */
    uint64_t tokens = 0;
    for (size_t k = 0; k < i.segments; k++)
        tokens += icae_slots_segment(s, k).tokens;
    assert_int_equal(tokens, i.tokens);

    ic_buffer out = {0};
    icae_result r;
    MUST(icae_restore(w.session, s, &(icae_generate_options){.result = &r}, gather, &out));
    assert_true(out.size > strlen(text) / 2);
    assert_memory_equal(out.data, text, 20);
    assert_true(r.tokens <= i.tokens && r.prompt_slots == i.slots);
    ic_buffer_free(&out);

    icae_part parts[] = {{.slots = s}, {.text = "The storm ended.", .size = 16}};
    icae_generate_options few = {.sampling.max_tokens = 12, .result = &r};
    MUST(icae_ask(w.session, parts, 1, "Who climbed the stairs?", &few, gather, &out));
    assert_true(r.tokens <= 12);
    MUST(icae_ask(w.session, parts, 2, "What ended?", &few, gather, &out));
    MUST(icae_ask(w.session, parts + 1, 1, "What ended?", &few, gather, &out));
    MUST(icae_continue(w.session, parts, 1, &few, gather, &out));
    assert_int_equal(icae_restore(w.session, s, NULL, stop_at_once, NULL), ICAE_ECANCELLED);
    ic_buffer_free(&out);
    icae_slots_free(s);
    close_whole(&w);
}

static void test_chat(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_F32, 2, 0);
    icae_slots *s = compress(&w, text, strlen(text), NULL);
    icae_part part = {.slots = s};
    icae_generate_options few = {.sampling.max_tokens = 8};
    ic_buffer chat = {0}, ask = {0};
    icae_chat *c;
    MUST(icae_chat_new(&c, w.session, &part, 1));
    MUST(icae_chat_say(c, "Who climbed the stairs?", &few, gather, &chat));
    /* the session may serve others between replies */
    MUST(icae_ask(w.session, &part, 1, "Who climbed the stairs?", &few, gather, &ask));
    assert_int_equal(chat.size, ask.size);
    assert_memory_equal(chat.data, ask.data, ask.size);
    MUST(icae_chat_say(c, "And then?", &few, gather, &chat));
    icae_chat_free(c);
    MUST(icae_chat_new(&c, w.session, NULL, 0)); /* about nothing */
    MUST(icae_chat_say(c, "Who climbed the stairs?", &few, gather, &chat));
    icae_chat_free(c);
    ic_buffer_free(&chat);
    ic_buffer_free(&ask);
    icae_slots_free(s);
    close_whole(&w);
}

/* ---- expansion -------------------------------------------------------------------------------- */

/* The evidence of every segment by the plain rule, each read by itself. */
static void evidence_of(double *evidence, whole *w, const icae_slots *slots, const char *question)
{
    ic_ids left = {0}, ids = {0};
    const icae_model *m = w->model;
    const int32_t ft = IC_FT;
    double p[8][64];
    MUST(ic_chat_left(&left, m->chat, m->tokenizer, m->config.bos, true));
    MUST(ic_tokenizer_encode(&ids, m->tokenizer, question, strlen(question), false));
    assert_true(slots->segments <= 8 && ids.count <= 64);
    for (uint32_t i = 0; i < slots->segments; i++) {
        ic_prompt prompt;
        ic_score scores[64];
        ic_prompt_begin(&prompt, w->session);
        MUST(ic_prompt_ids(&prompt, left.ids, left.count));
        MUST(ic_prompt_slots(&prompt, slots, i, 1, NULL));
        MUST(ic_prompt_ids(&prompt, &ft, 1));
        MUST(ic_prompt_ids(&prompt, ids.ids, ids.count - 1));
        MUST(ic_prompt_read(w->session, &prompt, 0, prompt.rows, NULL, ids.ids, (int)ids.count,
                            scores, NULL));
        ic_prompt_free(&prompt);
        evidence[i] = 0;
        for (size_t t = 0; t < ids.count; t++)
            p[i][t] = exp(-(double)scores[t].nll);
    }
    for (size_t t = 0; t < ids.count; t++) {
        double mean = 0;
        for (uint32_t i = 0; i < slots->segments; i++)
            mean += p[i][t] / slots->segments;
        for (uint32_t i = 0; i < slots->segments; i++)
            evidence[i] += p[i][t] > mean ? log(p[i][t] / mean) : 0;
    }
    ic_ids_free(&left);
    ic_ids_free(&ids);
}

/* Which segments, in the text's order, and that their ids are those of the text. */
static void test_expansion(void **state)
{
    (void)state;
    whole w = open_whole(SMALL, ICAE_COMPUTE_F32, 1, 0);
    static const char question[] = "What did the keeper of the lighthouse climb with a lamp?";
    icae_slots *s = compress(&w, text, strlen(text), &(icae_compress_options){.refine = 40});
    ic_ids ids = {0}, left = {0}, asked = {0};
    ic_expansion x;
    icae_part parts[] = {{.slots = s}, {.text = "A raw text.", .size = 11}, {.slots = s}};
    MUST(ic_tokenizer_encode(&ids, w.model->tokenizer, text, strlen(text), false));
    MUST(ic_tokenizer_encode(&asked, w.model->tokenizer, question, strlen(question), false));
    MUST(ic_chat_left(&left, w.model->chat, w.model->tokenizer, w.model->config.bos, true));
    assert_true(s->segments >= 3);

    MUST(ic_expand_last(&x, w.session, parts, 1, 2));
    assert_int_equal(x.count, 2);
    size_t at = ids.count;
    for (size_t i = x.count; i--;) {
        const ic_expanded *o = &x.item[i];
        assert_int_equal(o->segment, s->segments - x.count + i);
        assert_int_equal(o->ids.count, s->segment[o->segment].tokens);
        at -= o->ids.count;
        assert_memory_equal(o->ids.ids, ids.ids + at, o->ids.count * sizeof *ids.ids);
        assert_ptr_equal(ic_expansion_at(&x, s, o->segment), &o->ids);
    }
    assert_null(ic_expansion_at(&x, s, 0));
    ic_expansion_free(&x);
    MUST(ic_expand_last(&x, w.session, parts, 2, 2)); /* a text is last */
    assert_int_equal(x.count, 0);
    MUST(ic_expand_last(&x, w.session, parts, 3, 99)); /* only of the last part */
    assert_int_equal(x.count, s->segments);
    for (size_t i = 0; i < x.count; i++)
        assert_true(x.item[i].slots == s && x.item[i].segment == i);
    ic_expansion_free(&x);

    double evidence[8];
    evidence_of(evidence, &w, s, question);
    for (int most = 1; most < (int)s->segments; most++) {
        MUST(ic_expand_for(&x, w.session, parts, 1, &left, &asked, most));
        assert_int_equal(x.count, most);
        for (uint32_t i = 0; i < s->segments; i++) {
            int better = 0;
            for (uint32_t j = 0; j < s->segments; j++)
                better += evidence[j] > evidence[i];
            assert_int_equal(ic_expansion_at(&x, s, i) != NULL, better < most);
        }
        for (size_t i = 1; i < x.count; i++)
            assert_true(x.item[i - 1].segment < x.item[i].segment);
        ic_expansion_free(&x);
    }
    MUST(ic_expand_for(&x, w.session, parts, 3, &left, &asked, 1000));
    assert_int_equal(x.count, s->segments); /* they stand there twice */
    ic_expansion_free(&x);
    ic_ids_free(&ids);
    ic_ids_free(&left);
    ic_ids_free(&asked);
    icae_slots_free(s);
    close_whole(&w);
}

static int stop_progress(void *user, const char *unit, uint64_t done, uint64_t total)
{
    (void)user, (void)unit, (void)done, (void)total;
    return 1;
}

/* Through the public interface: a text that is all expanded is read as the text itself. */
static void test_expanded_reading(void **state)
{
    (void)state;
    whole w = open_whole(SMALL, ICAE_COMPUTE_F32, 1, 0);
    icae_slots *s = compress(&w, text, strlen(text), &(icae_compress_options){.refine = 40});
    icae_slots_info i = icae_slots_describe(s);
    icae_segment_info last = icae_slots_segment(s, i.segments - 1);
    icae_part slots = {.slots = s}, raw = {.text = text, .size = strlen(text)};
    icae_result r, plain;
    icae_generate_options all = {.sampling.max_tokens = 12, .result = &r, .expand = 1000};
    icae_generate_options one = {.sampling.max_tokens = 12, .result = &r, .expand = 1};
    icae_generate_options none = {.sampling.max_tokens = 12, .result = &plain};
    ic_buffer a = {0}, b = {0}, c = {0};
    MUST(icae_continue(w.session, &slots, 1, &all, gather, &a));
    MUST(icae_continue(w.session, &raw, 1, &none, gather, &b));
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    assert_int_equal(r.prompt_rows, plain.prompt_rows);
    assert_int_equal(r.prompt_slots, 0);

    MUST(icae_continue(w.session, &slots, 1, &none, gather, &b));
    MUST(icae_continue(w.session, &slots, 1, &one, gather, &a));
    assert_int_equal(r.prompt_rows, plain.prompt_rows - last.slots + last.tokens);
    assert_int_equal(r.prompt_slots, i.slots - last.slots);
    assert_true(r.prompt_seconds > 0 && r.seconds >= r.prompt_seconds);

    MUST(icae_ask(w.session, &slots, 1, "Who climbed the stairs?", &none, gather, &a));
    MUST(icae_ask(w.session, &slots, 1, "Who climbed the stairs?", &all, gather, &a));
    assert_int_equal(r.prompt_rows, plain.prompt_rows - i.slots + i.tokens);
    MUST(icae_ask(w.session, &slots, 1, "Who climbed the stairs?", &one, gather, &a));
    assert_true(r.prompt_rows > plain.prompt_rows && r.prompt_slots < i.slots && r.prompt_slots);
    b.size = 0;
    icae_generate_options text_alone = {.sampling.max_tokens = 12, .result = &r, .expand = 3};
    MUST(icae_ask(w.session, &raw, 1, "Who climbed the stairs?", &none, gather, &b));
    MUST(icae_ask(w.session, &raw, 1, "Who climbed the stairs?", &text_alone, gather, &c));
    assert_int_equal(b.size, c.size); /* a text has no segments */
    assert_memory_equal(b.data, c.data, c.size);

    /* more than the model can hold, before anything is read; a question longer than what chooses */
    int most = w.model->config.max_positions;
    size_t count = (size_t)most / i.tokens + 1;
    icae_part *many = ic_alloc(count, sizeof *many);
    assert_non_null(many);
    for (size_t k = 0; k < count; k++)
        many[k] = slots;
    assert_int_equal(icae_ask(w.session, many, count, "Who?", &one, gather, &a), ICAE_ELIMIT);
    ic_free(many);
    ic_buffer long_question = {0};
    for (int k = 0; k < 100; k++)
        assert_int_equal(ic_buffer_addf(&long_question, "and who is number %d? ", k), 0);
    MUST(icae_ask(w.session, &slots, 1, long_question.data, &one, gather, &a));
    assert_true(r.prompt_slots < i.slots);
    ic_buffer_free(&long_question);

    icae_generate_options bad = {.expand = -1};
    assert_int_equal(icae_ask(w.session, &slots, 1, "Who?", &bad, gather, &a), ICAE_EINVAL);
    assert_int_equal(icae_continue(w.session, &slots, 1, &bad, gather, &a), ICAE_EINVAL);
    w.session->progress = stop_progress;
    assert_int_equal(icae_ask(w.session, &slots, 1, "Who?", &one, gather, &a), ICAE_ECANCELLED);
    assert_int_equal(icae_continue(w.session, &slots, 1, &one, gather, &a), ICAE_ECANCELLED);
    ic_buffer_free(&a);
    ic_buffer_free(&b);
    ic_buffer_free(&c);
    icae_slots_free(s);
    close_whole(&w);
}

/* What a conversation replies depends on what was said and is expanded now, not on what it has read before. */
static void test_expanded_chat(void **state)
{
    (void)state;
    whole w = open_whole(SMALL, ICAE_COMPUTE_F32, 1, 0);
    icae_slots *s = compress(&w, text, strlen(text), NULL);
    icae_part part = {.slots = s};
    const char *const question[] = {"Who climbed the stairs?", "And who else?", "Why?"};
    static const int expand[][3] = {{0, 0, 0},          {1000, 0, 0}, {0, 1000, 1000},
                                    {1000, 1000, 1000}, {0, 0, 1},    {1000, 1, 1}};
    ic_buffer reply[IC_COUNT(expand)][3] = {0}, ask = {0};
    icae_result r[IC_COUNT(expand)][3];
    for (size_t i = 0; i < IC_COUNT(expand); i++) {
        icae_chat *c;
        MUST(icae_chat_new(&c, w.session, &part, 1));
        for (int turn = 0; turn < 3; turn++) { /* short at first, so that the same is said */
            icae_generate_options o = {.sampling.max_tokens = turn < 2 ? 1 : 12,
                                       .result = &r[i][turn],
                                       .expand = expand[i][turn]};
            MUST(icae_chat_say(c, question[turn], &o, gather, &reply[i][turn]));
        }
        icae_chat_free(c);
    }
    for (size_t i = 0; i < IC_COUNT(expand); i += 2) {
        for (int turn = 0; turn < 3; turn++) {
            assert_int_equal(reply[i][turn].size, reply[i + 1][turn].size);
            assert_memory_equal(reply[i][turn].data, reply[i + 1][turn].data, reply[i][turn].size);
        }
        assert_int_equal(r[i][2].prompt_slots, r[i + 1][2].prompt_slots);
    }
    /* what is read as before is not read again */
    assert_true(r[0][1].prompt_rows < icae_slots_describe(s).slots);
    assert_true(r[3][1].prompt_rows < icae_slots_describe(s).slots);
    icae_generate_options all = {.sampling.max_tokens = 1, .expand = 1000};
    MUST(icae_ask(w.session, &part, 1, question[0], &all, gather, &ask));
    assert_int_equal(ask.size, reply[3][0].size);
    assert_memory_equal(ask.data, reply[3][0].data, ask.size);
    for (size_t i = 0; i < IC_COUNT(expand); i++)
        for (int turn = 0; turn < 3; turn++)
            ic_buffer_free(&reply[i][turn]);
    ic_buffer_free(&ask);
    icae_slots_free(s);
    close_whole(&w);
}

/* Sampling with a seed repeats itself; another seed differs. */
static void test_sampling(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_F32, 1, 0);
    icae_part part = {.text = text, .size = strlen(text)};
    ic_buffer out[3] = {{0}};
    for (int i = 0; i < 3; i++) {
        icae_generate_options o = {.sampling = {.temperature = 1.2f,
                                                .top_k = 200,
                                                .top_p = 0.98f,
                                                .seed = i == 2 ? 7 : 3,
                                                .max_tokens = 30,
                                                .ignore_eos = true}};
        MUST(icae_continue(w.session, &part, 1, &o, gather, &out[i]));
    }
    assert_int_equal(out[0].size, out[1].size);
    assert_memory_equal(out[0].data, out[1].data, out[0].size);
    assert_true(out[2].size != out[0].size || memcmp(out[2].data, out[0].data, out[0].size));
    icae_generate_options bad = {.sampling = {.top_p = 1.5f}};
    assert_int_equal(icae_continue(w.session, &part, 1, &bad, gather, &out[0]), ICAE_EINVAL);
    for (int i = 0; i < 3; i++)
        ic_buffer_free(&out[i]);
    close_whole(&w);
}

/* ---- batches ---------------------------------------------------------------------------------- */

/* Slots of a segment do not depend on what is beside it, on the memory bound or on the run. */
static void test_batches(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_F32, 2, 0);
    ic_ids ids = {0};
    float *all, *again, *one;
    uint64_t n, m;
    int d = w.model->config.width;
    MUST(ic_session_tokenize(&ids, w.session, text, strlen(text)));
    MUST(ic_encode(&all, &n, w.session, ids.ids, ids.count, 4));
    MUST(ic_encode(&again, &m, w.session, ids.ids, ids.count, 4));
    assert_memory_equal(all, again, n * (uint64_t)d * sizeof(float));
    int length = ic_segment_tokens(w.adapter, 4, ids.count, 0);
    assert_true(ic_segment_count(w.adapter, 4, ids.count) > 2);
    MUST(ic_encode(&one, &m, w.session, ids.ids + length, (uint64_t)length, 4));
    golden_limit("batch", "slots of a segment alone",
                 golden_max_error(one, all + m * (uint64_t)d, m * (uint64_t)d), 1e-5);
    ic_free(again);
    w.session->memory = 3 << 20; /* a few segments at a time */
    MUST(ic_encode(&again, &m, w.session, ids.ids, ids.count, 4));
    assert_int_equal(m, n);
    golden_limit("batch", "slots in small batches", golden_max_error(again, all, n * (uint64_t)d),
                 1e-5);
    w.session->memory = 10000;
    float *none;
    assert_int_equal(ic_encode(&none, &m, w.session, ids.ids, ids.count, 4), ICAE_ENOMEM);
    ic_free(all);
    ic_free(again);
    ic_free(one);
    ic_ids_free(&ids);
    close_whole(&w);
}

/* In steps, with other work of the session between them, a text becomes what it becomes at once; joined
 * slots are both, one behind the other, and still restore. */
static void test_steps(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_F32, 2, 0);
    icae_compress_options o = {.check = true, .span = 100};
    icae_slots *at_once = compress(&w, text, strlen(text), &o), *other, *slots, *joined;
    ic_compression *c;
    uint64_t done = 0, before = 0, total;
    int steps = 0, rc;
    MUST(ic_compression_new(&c, w.session, text, strlen(text), &o));
    while ((rc = ic_compression_step(c, 40)) > 0) {
        int stage = ic_compression_stage(c, &done, &total);
        assert_true(total == at_once->tokens && done <= total && (stage || done > before));
        before = done;
        other = compress(&w, "Something else.", 15, NULL);
        icae_slots_free(other);
        steps++;
    }
    assert_int_equal(rc, ICAE_OK);
    assert_true(steps > 4);
    MUST(ic_compression_take(&slots, c));
    ic_compression_free(c);
    float *a, *b;
    MUST(icae_slots_values(&a, at_once));
    MUST(icae_slots_values(&b, slots));
    assert_int_equal(slots->count, at_once->count);
    golden_limit("steps", "slots", golden_max_error(a, b, slots->count * (uint64_t)slots->width),
                 1e-2); /* bf16 */
    icae_fidelity f = icae_slots_describe(slots).fidelity,
                  g = icae_slots_describe(at_once).fidelity;
    assert_true(f.measured && f.tokens == g.tokens && f.exact_prefix == g.exact_prefix);
    assert_float_equal((float)f.loss, (float)g.loss, 1e-3f);
    assert_string_equal(slots->text_sha256, at_once->text_sha256);

    MUST(ic_slots_join(&joined, at_once, slots));
    assert_int_equal(joined->count, 2 * slots->count);
    assert_int_equal(joined->text_size, 2 * strlen(text));
    assert_int_equal(joined->doubtful_count, at_once->doubtful_count + slots->doubtful_count);
    ic_buffer one = {0}, both = {0};
    MUST(icae_restore(w.session, at_once, NULL, gather, &one));
    MUST(icae_restore(w.session, joined, NULL, gather, &both));
    assert_true(both.size >= 2 * one.size - 8 && memcmp(both.data, one.data, one.size / 2) == 0);
    other = compress(&w, text, strlen(text), &(icae_compress_options){.int8 = true});
    assert_int_equal(ic_slots_join(&joined, at_once, other), ICAE_EMISMATCH);
    ic_free(a);
    ic_free(b);
    ic_buffer_free(&one);
    ic_buffer_free(&both);
    icae_slots_free(at_once);
    icae_slots_free(slots);
    icae_slots_free(other);
    icae_slots_free(joined);
    close_whole(&w);
}

/* ---- refining --------------------------------------------------------------------------------- */

static double loss_of(const icae_slots *s)
{
    icae_fidelity f = icae_slots_describe(s).fidelity;
    assert_true(f.measured);
    return f.loss;
}

/* Refined slots restore better, at once as in steps, in one span or several, exactly, as int8; say so
 * in their file; and do not take more memory than they may. */
static void test_refining(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_F32, 2, 0);
    const char *odd =
        "e3b0c44298fc1c149afb, 北京 Straße; {\"k\":[7,0.25]} ΑΒΓ qwfpgjluy arstdhneio "
        "zxcvbkm ZXCVBKM = 0x7fffe1c0 ~/.profile";
    size_t n = strlen(odd);
    icae_slots *plain = compress(&w, odd, n, &(icae_compress_options){.check = true, .span = 64});
    icae_slots *s = compress(&w, odd, n, &(icae_compress_options){.check = true, .refine = 30});
    icae_slots_info i = icae_slots_describe(s);
    assert_true(loss_of(plain) > 0.1 && loss_of(s) < loss_of(plain) / 2);
    assert_true(i.fidelity.accuracy > icae_slots_describe(plain).fidelity.accuracy);
    assert_true(i.refined == 30 && i.before_refining.measured &&
                icae_slots_describe(plain).refined == 0);
    assert_int_equal(i.span, 64); /* a segment */
    assert_float_equal((float)i.before_refining.loss, (float)loss_of(plain), 1e-4f);

    char *bytes;
    size_t size;
    icae_slots *read;
    MUST(icae_slots_write(&bytes, &size, s));
    MUST(icae_slots_read(&read, bytes, size, "refined"));
    assert_int_equal(icae_slots_describe(read).refined, 30);
    icae_free(bytes);
    icae_slots_free(read);
    icae_slots_free(s);

    s = compress(&w, odd, n,
                 &(icae_compress_options){.check = true, .refine = 30, .span = 1000, .int8 = true});
    assert_true(loss_of(s) < loss_of(plain));
    icae_slots_free(s);
    s = compress(&w, odd, n, &(icae_compress_options){.exact = true, .refine = 30});
    ic_buffer out = {0};
    MUST(icae_restore(w.session, s, NULL, gather, &out));
    assert_true(out.size == n && memcmp(out.data, odd, n) == 0);
    assert_true(s->correction_count < plain->doubtful_count);
    ic_buffer_free(&out);
    icae_slots_free(s);
    icae_slots_free(plain);

    icae_compress_options o = {.check = true, .refine = 4, .span = 30};
    ic_compression *c;
    uint64_t done = 0, total, last[3] = {0};
    int rc;
    MUST(ic_compression_new(&c, w.session, odd, n, &o));
    while ((rc = ic_compression_step(c, 16)) > 0) {
        int stage = ic_compression_stage(c, &done, &total);
        assert_true(stage >= 0 && stage < 3 && done >= last[stage] && done <= total);
        last[stage] = done;
    }
    MUST(rc);
    assert_true(last[1] > 0);
    ic_compression_free(c);
    assert_int_equal(icae_compress(&s, w.session, odd, n, &(icae_compress_options){.refine = -1}),
                     ICAE_EINVAL);
    close_whole(&w);

    w = open_whole(NULL, ICAE_COMPUTE_F32, 1, 3 << 20);
    assert_int_equal(icae_compress(&s, w.session, text, strlen(text),
                                   &(icae_compress_options){.refine = 1, .span = 1000}),
                     ICAE_ENOMEM);
    close_whole(&w);
}

/* ---- exactness -------------------------------------------------------------------------------- */

static void check_exact(whole *w, const char *s, size_t n)
{
    icae_slots *slots = compress(w, s, n, &(icae_compress_options){.exact = true});
    char path[] = "/tmp/test-icae-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    MUST(icae_slots_save(slots, path));
    icae_slots_free(slots);
    MUST(icae_slots_open(&slots, path));
    static const char *const isa[] = {"", "avx512", "avx2", "generic"};
    for (size_t i = 0; i < IC_COUNT(isa); i++) {
        icae_session *other;
        setenv("ICAE_ISA", isa[i], 1);
        if (!*isa[i])
            unsetenv("ICAE_ISA");
        int rc = icae_session_new(&other, w->model, w->adapter,
                                  &(icae_session_options){.threads = 1 + (int)i % 2});
        if (rc == ICAE_EUNSUPPORTED) /* this CPU has no such instructions */
            continue;
        MUST(rc);
        ic_buffer out = {0};
        icae_result r;
        MUST(icae_restore(other, slots, &(icae_generate_options){.result = &r}, gather, &out));
        assert_true(r.exact);
        assert_int_equal(out.size, n);
        assert_memory_equal(out.data, s, n);
        ic_buffer_free(&out);
        icae_session_free(other);
    }
    unsetenv("ICAE_ISA");
    icae_slots_free(slots);
    remove(path);
}

static void test_exact(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_AUTO, 2, 0);
    check_exact(&w, text, strlen(text));
    check_exact(&w, "a", 1);
    static const char broken[] = "broken \xff\xfe bytes \xe2\x82 and\0zero\r\n\xc3\x28 end";
    static const char marks[] = "<|endoftext|> <|user|> is text here, caf\xc3\xa9 \xf0\x9f\x98\x80";
    check_exact(&w, broken, sizeof broken - 1);
    check_exact(&w, marks, sizeof marks - 1);
    char noise[700];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)(ic_random_unit(5, 0, i) * 256);
    check_exact(&w, noise, sizeof noise);
    close_whole(&w);
}

/* Spoiled corrections must be noticed: the wrong bytes are not written. */
static void test_inexact(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_AUTO, 2, 0);
    icae_slots *s = compress(&w, text, strlen(text), &(icae_compress_options){.exact = true});
    s->text_sha256[0] = s->text_sha256[0] == '0' ? '1' : '0';
    ic_buffer out = {0};
    assert_int_equal(icae_restore(w.session, s, NULL, gather, &out), ICAE_EINEXACT);
    assert_int_equal(out.size, 0);
    icae_slots_free(s);
    close_whole(&w);
}

/* A text longer than a span is restored span by span. */
static void test_spans(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_AUTO, 2, 0);
    icae_slots *s =
        compress(&w, text, strlen(text), &(icae_compress_options){.exact = true, .span = 80});
    ic_span span;
    assert_true(ic_span_at(&span, s, 0) && span.segments < s->segments && span.tokens <= 80);
    ic_buffer out = {0};
    MUST(icae_restore(w.session, s, NULL, gather, &out));
    assert_int_equal(out.size, strlen(text));
    assert_memory_equal(out.data, text, out.size);
    ic_buffer_free(&out);
    icae_fidelity f;
    MUST(icae_verify(&f, w.session, s, text, strlen(text)));
    assert_true(f.accuracy > 0.9);
    icae_slots_free(s);
    close_whole(&w);
}

/* ---- what must be refused --------------------------------------------------------------------- */

static void test_refusals(void **state)
{
    (void)state;
    whole w = open_whole(NULL, ICAE_COMPUTE_AUTO, 2, 0);
    icae_slots *s;
    assert_int_equal(icae_compress(&s, w.session, "", 0, NULL), ICAE_EINVAL);
    assert_int_equal(icae_compress(&s, w.session, text, 9, &(icae_compress_options){.rate = 5}),
                     ICAE_EINVAL);
    size_t n = 40000;
    char *longer = ic_alloc(n, 1);
    assert_non_null(longer);
    for (size_t i = 0; i < n; i++)
        longer[i] = text[i % (sizeof text - 1)];
    assert_int_equal(icae_compress(&s, w.session, longer, n, NULL), ICAE_ELIMIT);
    assert_non_null(strstr(icae_error_message(), "4096"));
    ic_free(longer);

    s = compress(&w, text, strlen(text), NULL);
    ic_buffer out = {0};
    icae_part part = {.slots = s};
    assert_int_equal(icae_ask(w.session, &part, 1, "", NULL, gather, &out), ICAE_EINVAL);
    memset(s->base, 'a', 64);
    assert_int_equal(icae_restore(w.session, s, NULL, gather, &out), ICAE_EMISMATCH);
    assert_non_null(strstr(icae_error_message(), "aaaa"));
    memcpy(s->base, w.model->identity, 65);
    memset(s->adapter, 'b', 64);
    assert_int_equal(icae_ask(w.session, &part, 1, "Who?", NULL, gather, &out), ICAE_EMISMATCH);
    icae_chat *c;
    assert_int_equal(icae_chat_new(&c, w.session, &part, 1), ICAE_EMISMATCH);
    icae_session *bare;
    MUST(icae_session_new(&bare, w.model, NULL, NULL));
    assert_int_equal(icae_restore(bare, s, NULL, gather, &out), ICAE_EINVAL);
    for (int expand = 0; expand < 2; expand++) {
        icae_generate_options o = {.expand = expand};
        assert_int_equal(icae_continue(bare, &part, 1, &o, gather, &out), ICAE_EINVAL);
        assert_int_equal(icae_ask(bare, &part, 1, "Who?", &o, gather, &out), ICAE_EINVAL);
    }
    icae_session_free(bare);
    icae_slots_free(s);
    close_whole(&w);
}

/* ---- no memory -------------------------------------------------------------------------------- */

static int whole_job(void)
{
    int rc = ICAE_OK;
    icae_model *model = NULL;
    icae_adapter *adapter = NULL;
    icae_session *session = NULL;
    icae_slots *slots = NULL;
    ic_buffer out = {0};
    icae_generate_options few = {.sampling.max_tokens = 2, .expand = 1};
    IC_TRY(icae_model_open(&model, SMALL, NULL));
    IC_TRY(icae_adapter_open(&adapter, NULL, model, NULL));
    IC_TRY(icae_session_new(&session, model, adapter, &(icae_session_options){.threads = 1}));
    IC_TRY(icae_compress(&slots, session, text, 30,
                         &(icae_compress_options){.exact = true, .refine = 1}));
    IC_TRY(icae_restore(session, slots, NULL, gather, &out));
    const icae_part parts[] = {{.slots = slots}, {.slots = slots}}; /* two segments */
    IC_TRY(icae_ask(session, parts, 2, "Who?", &few, gather, &out));
    IC_TRY(icae_continue(session, parts, 2, &few, gather, &out));
done:
    ic_buffer_free(&out);
    icae_slots_free(slots);
    icae_session_free(session);
    icae_adapter_free(adapter);
    icae_model_free(model);
    return rc;
}

/* The n-th allocation fails: the right code, nothing leaked, whatever n. The tokenizer alone takes
 * thousands of allocations, so most n are sampled. */
static void test_no_memory(void **state)
{
    (void)state;
    MUST(whole_job()); /* what is made once a process */
    long live = ic_memory_live();
    for (long n = 0, step = 1;; n += step, step = 1 + n / 40) {
        ic_memory_fail_after(n);
        int rc = whole_job();
        ic_memory_fail_after(-1);
        if (ic_memory_live() != live) {
            print_error("allocation %ld fails: %ld allocations leaked\n", n,
                        ic_memory_live() - live);
            fail();
        }
        if (rc == ICAE_OK)
            break;
        if (rc != ICAE_ENOMEM) {
            print_error("allocation %ld fails: code %d: %s\n", n, rc, icae_error_message());
            fail();
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_main_job),      cmocka_unit_test(test_chat),
        cmocka_unit_test(test_expansion),     cmocka_unit_test(test_expanded_reading),
        cmocka_unit_test(test_expanded_chat), cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_batches),       cmocka_unit_test(test_steps),
        cmocka_unit_test(test_refining),      cmocka_unit_test(test_exact),
        cmocka_unit_test(test_inexact),       cmocka_unit_test(test_spans),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
