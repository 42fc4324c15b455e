/*
 * test_eval.c - the evaluation: statistics, journal, data, batches, a whole small run, resuming it, the
 * page, and what must be refused. The bundled model in f32.
 */
#include "golden.h"

#include "core/fidelity.h"
#include "eval/eval.h"

#include <sys/stat.h>
#include <unistd.h>

#define SUITE ICAE_TEST_DIR "/data/eval/suite.json"
#define TEXTS ICAE_TEST_DIR "/../demo/eval"

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/test-eval-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static char *in_folder(const char *name)
{
    static char path[4][256];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", folder, name);
    return path[at];
}

static char *write_text(const char *name, const char *text)
{
    char *path = in_folder(name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    return path;
}

static ic_buffer read_file(const char *path)
{
    ic_map map;
    ic_buffer b = {0};
    MUST(ic_map_open(&map, path));
    MUST(ic_buffer_add(&b, map.data, map.size));
    ic_map_close(&map);
    return b;
}

/* ---- statistics ------------------------------------------------------------------------------- */

static void test_stats(void **state)
{
    (void)state;
    ic_stats s = {0};
    assert_true(isnan(ic_stats_mean(&s)) && isnan(ic_stats_quantile(&s, 0.5)));
    for (int i = 5; i >= 1; i--)
        MUST(ic_stats_add(&s, i));
    MUST(ic_stats_add(&s, (double)NAN));
    assert_int_equal(s.count, 5);
    assert_float_equal(ic_stats_mean(&s), 3, 1e-12);
    assert_float_equal(ic_stats_quantile(&s, 0.5), 3, 1e-12);
    assert_float_equal(ic_stats_quantile(&s, 0.1), 1.4, 1e-12);
    assert_float_equal(ic_stats_quantile(&s, 1), 5, 1e-12);
    assert_float_equal(ic_stats_half(&s), 1.3859038F, 1e-5F); /* 1.96 sqrt(2.5 / 5) */
    ic_stats_free(&s);
    double low, high;
    ic_wilson(&low, &high, 50, 100); /* as tables print it */
    assert_float_equal(low, 0.4038, 1e-4);
    assert_float_equal(high, 0.5962, 1e-4);
    ic_wilson(&low, &high, 0, 10);
    assert_float_equal(low, 0, 1e-12);
    assert_float_equal(high, 0.2775, 1e-4);
    ic_wilson(&low, &high, 0, 0);
    assert_true(low == 0 && high == 1);
}

/* ---- journal ---------------------------------------------------------------------------------- */

static void test_journal(void **state)
{
    (void)state;
    ic_journal *j;
    char *path = in_folder("journal");
    ic_buffer value = {0};
    MUST(ic_buffer_addf(&value, "{\"a\":\n1.5}"));
    MUST(ic_journal_open(&j, path, "one", false));
    for (int i = 0; i < 3000; i++) {
        char key[32];
        snprintf(key, sizeof key, "key %d", i);
        MUST(ic_journal_put(j, key, &value));
    }
    assert_null(ic_journal_get(j, "key 3000"));
    MUST(ic_journal_close(j));
    FILE *f = fopen(path, "a"); /* the process died while it wrote */
    fputs("{\"key\":\"torn\",\"value", f);
    fclose(f);
    MUST(ic_journal_open(&j, path, "one", true));
    assert_float_equal(ic_record_number(ic_journal_get(j, "key 2999"), "a"), 1.5, 0);
    assert_null(ic_journal_get(j, "torn"));
    MUST(ic_journal_put(j, "torn", &value));
    MUST(ic_journal_close(j));
    MUST(ic_journal_open(&j, path, "one", true));
    assert_non_null(ic_journal_get(j, "torn"));
    MUST(ic_journal_close(j));
    assert_int_equal(ic_journal_open(&j, path, "two", true), ICAE_EMISMATCH);
    write_text("journal", "{\"settings\":\"one\"}\nnonsense\n");
    assert_int_equal(ic_journal_open(&j, path, "one", true), ICAE_EFORMAT);
    assert_non_null(strstr(icae_error_message(), "journal:2"));
    ic_buffer_free(&value);
}

/* ---- data ------------------------------------------------------------------------------------- */

static void refuse(const char *name, const char *text, const char *message)
{
    ic_data d = {0};
    int rc = ic_data_add(&d, write_text(name, text));
    if (rc != ICAE_EFORMAT || !strstr(icae_error_message(), message)) {
        print_error("%s: %d %s\n", name, rc, icae_error_message());
        fail();
    }
    ic_data_free(&d);
}

static void test_data(void **state)
{
    (void)state;
    ic_data d = {0};
    MUST(ic_data_add(&d, TEXTS));
    assert_true(d.documents > 50 && d.questions > 50 && d.sets == 2);
    ic_data_free(&d);
    MUST(ic_data_add(
        &d, write_text("ok.jsonl",
                       "{\"text\":\"a\"}\n\n{\"input\":\"b\",\"prompt\":\"c\",\"answer\":\"d\"}")));
    MUST(ic_data_add(&d, write_text("plain.txt", "some text")));
    assert_true(d.documents == 2 && d.questions == 1 && d.sets == 2);
    assert_string_equal(d.set[1], "plain");
    ic_data_free(&d);
    refuse("bad1.jsonl", "{\"text\":\"a\"}\n{\"text\":", "bad1.jsonl:2");
    refuse("bad2.jsonl", "{\"text\":\"a\"}\n\n{\"context\":\"a\",\"prompt\":\"b\"}\n",
           "bad2.jsonl:3");
    refuse("bad3.jsonl", "{\"text\":7}\n", "bad3.jsonl:1");
    refuse("bad4.jsonl", "[1,2]\n", "bad4.jsonl:1");
    assert_true(ic_data_add(&d, in_folder("absent.txt")) < 0);
    ic_data_free(&d);
}

/* ---- batches ---------------------------------------------------------------------------------- */

enum { TEXTS_MADE = 44, LENGTH = 700 };

/* Texts, some longer than what is restored at a time; and ids drawn at random, where guesses fail. */
typedef struct outcome {
    int32_t ids[TEXTS_MADE][LENGTH];
    int count[TEXTS_MADE];
    size_t at, delivered;
    ic_ids restored[TEXTS_MADE];
    icae_fidelity fidelity[TEXTS_MADE];
} outcome;

static bool next(void *user, ic_restoration *r)
{
    outcome *o = user;
    if (o->at == TEXTS_MADE)
        return false;
    r->tag = o->at;
    r->count = o->count[o->at];
    r->ids = o->ids[o->at++];
    return true;
}

static int done(void *user, const ic_restoration *r)
{
    outcome *o = user;
    assert_null(r->skipped);
    o->delivered++;
    o->fidelity[r->tag] = r->fidelity;
    return ic_ids_append(&o->restored[r->tag], r->restored.ids, r->restored.count);
}

static int take(void *user, int32_t id)
{
    return ic_ids_add(user, id);
}

/* As icae_restore does it: one text, one token after the other. */
static void one_by_one(ic_ids *out, icae_fidelity *f, icae_session *s, int32_t *ids, int n)
{
    icae_slots *slots;
    ic_span span;
    ic_score scores[LENGTH];
    MUST(ic_compress_ids(&slots, s, &(ic_ids){ids, (size_t)n, (size_t)n},
                         &(icae_compress_options){0}));
    MUST(ic_slots_score(scores, s, slots, ids));
    ic_fidelity_add(f, scores, ids, (uint64_t)n);
    for (uint32_t at = 0; ic_span_at(&span, slots, at); at += span.segments) {
        ic_prompt prompt;
        ic_kv *kv = NULL;
        ic_generation g = {.expected = span.tokens, .end_of_turn = -1, .take = take, .user = out};
        MUST(ic_span_prompt(&prompt, s, slots, &span));
        MUST(ic_generate(s, &prompt, 0, &kv, &g));
        ic_kv_free(kv);
        ic_prompt_free(&prompt);
    }
    icae_slots_free(slots);
}

static void fill(outcome *o, ic_eval *e, ic_system *s)
{
    for (size_t i = 0; i < TEXTS_MADE; i++) {
        ic_piece *piece;
        size_t count, n = i < 36 ? 24 + 2 * i : i < 38 ? LENGTH : 40;
        MUST(ic_eval_pieces(&piece, &count, e, s, NULL, (int)n, 40));
        assert_true(count >= 36);
        o->count[i] = (int)n;
        memcpy(o->ids[i], piece[i % count].ids, n * sizeof *o->ids[i]);
        for (size_t t = 0; i >= 38 && t < n; t++)
            o->ids[i][t] = (int32_t)(3 + (i * 131 + t * t * 7 + t) % 1000);
        ic_free(piece);
    }
}

static int refuse_third(void *user, const ic_restoration *r)
{
    (void)r;
    return ++*(int *)user < 3 ? ICAE_OK : ic_fail(ICAE_EIO, "no third");
}

static bool any(void *user, ic_restoration *r)
{
    static const int32_t ids[40] = {5, 6, 7};
    (void)user;
    *r = (ic_restoration){.ids = ids, .count = 40};
    static int left = 12;
    return left-- > 0;
}

/* Restores them all with so many threads. */
static void all_together(outcome *o, ic_system *s, int threads)
{
    icae_session *own = s->session;
    o->at = o->delivered = 0;
    for (size_t i = 0; i < TEXTS_MADE; i++)
        o->restored[i].count = 0;
    MUST(icae_session_new(&s->session, s->model, s->adapter,
                          &(icae_session_options){.threads = threads}));
    MUST(ic_restore_all(s, &(ic_restore_plan){.next = next, .done = done, .user = o}));
    assert_int_equal(o->delivered, TEXTS_MADE);
    icae_session_free(s->session);
    s->session = own;
}

/* Together as one by one, in one thread and in several: the same tokens, the same figures. */
static void test_batches(void **state)
{
    (void)state;
    static icae_eval_options options;
    static outcome several, o;
    ic_system s = {.name = "bundled"};
    ic_eval e = {.options = &options, .system = &s, .systems = 1, .seed = 3};
    size_t wrong = 0;
    MUST(ic_data_add(&e.data, TEXTS));
    MUST(icae_model_open(&s.model, NULL, &(icae_model_options){.compute = ICAE_COMPUTE_F32}));
    MUST(icae_adapter_open(&s.adapter, NULL, s.model, NULL));
    MUST(icae_session_new(&s.session, s.model, s.adapter, &(icae_session_options){.threads = 1}));
    s.ids = ic_alloc(e.data.documents, sizeof *s.ids);
    fill(&o, &e, &s);
    fill(&several, &e, &s);
    all_together(&o, &s, 1);
    all_together(&several, &s, 3);
    for (size_t i = 0; i < TEXTS_MADE; i++) {
        ic_ids alone = {0};
        icae_fidelity f = {0};
        one_by_one(&alone, &f, s.session, o.ids[i], o.count[i]);
        assert_int_equal(o.restored[i].count, alone.count);
        assert_memory_equal(o.restored[i].ids, alone.ids, alone.count * sizeof *alone.ids);
        assert_int_equal(several.restored[i].count, alone.count);
        assert_memory_equal(several.restored[i].ids, alone.ids, alone.count * sizeof *alone.ids);
        assert_float_equal(several.fidelity[i].loss, f.loss, 1e-5);
        assert_float_equal(o.fidelity[i].loss, f.loss, 1e-5);
        assert_float_equal(o.fidelity[i].accuracy, f.accuracy, 0);
        assert_int_equal(o.fidelity[i].exact_prefix, f.exact_prefix);
        wrong += alone.count != (size_t)o.count[i] ||
                 memcmp(alone.ids, o.ids[i], alone.count * sizeof *alone.ids) != 0;
        ic_ids_free(&alone);
        ic_ids_free(&o.restored[i]);
        ic_ids_free(&several.restored[i]);
    }
    assert_true(wrong > 6); /* else there was nothing to decode */
    int taken = 0;          /* an error of the caller ends all threads */
    s.session->be->threads = 3;
    ic_restore_plan refused = {.next = any, .done = refuse_third, .user = &taken};
    assert_int_equal(ic_restore_all(&s, &refused), ICAE_EIO);
    assert_string_equal(icae_error_message(), "no third");
    assert_int_equal(taken, 3);
    s.session->be->threads = 1;
    for (size_t i = 0; i < e.data.documents; i++)
        ic_ids_free(&s.ids[i]);
    ic_free(s.ids);
    ic_data_free(&e.data);
    icae_session_free(s.session);
    icae_adapter_free(s.adapter);
    icae_model_free(s.model);
}

/* ---- a whole run ------------------------------------------------------------------------------ */

typedef struct watch {
    int left; /* progress calls until it stops; negative: never */
    int notes;
    bool said; /* that samples are missing or a length was left out */
} watch;

static int progress(void *user, const char *unit, uint64_t at, uint64_t total)
{
    watch *w = user;
    assert_true(*unit && at <= total);
    return w->left >= 0 && w->left-- == 0;
}

static void note(void *user, const char *line)
{
    watch *w = user;
    w->notes++;
    w->said |= strstr(line, "cannot hold 100000 tokens") != NULL;
}

static icae_eval_options run_options(const char *out, watch *w)
{
    return (icae_eval_options){.suite = SUITE,
                               .out = out,
                               .seed = 5,
                               .model.compute = ICAE_COMPUTE_F32,
                               .session = {.threads = 1, .progress = progress, .user = w},
                               .note = note,
                               .user = w};
}

/* The report without what differs from run to run: seconds. */
static char *without_latency(const char *path)
{
    ic_buffer b = read_file(path);
    char *key = strstr(b.data, "\"section\":\"latency\""), *after = key ? strchr(key, '}') : NULL;
    assert_non_null(after);
    memmove(key, after, strlen(after) + 1);
    char *at = strstr(b.data, "\"id\":\"latency\""),
         *end = at ? strstr(at, "\"id\":\"span\"") : NULL;
    assert_non_null(end);
    memmove(at, end, strlen(end) + 1);
    return b.data;
}

static void test_run(void **state)
{
    (void)state;
    watch w = {.left = -1};
    icae_eval_options o = run_options(in_folder("whole"), &w);
    MUST(icae_eval(&o));
    assert_true(w.said);
    ic_buffer html = read_file(in_folder("whole/report.html")),
              csv = read_file(in_folder("whole/report.csv"));
    assert_non_null(strstr(html.data, "<svg"));
    assert_non_null(strstr(html.data, "prefers-color-scheme:dark"));
    assert_null(strstr(html.data, "<script")); /* self-contained, nothing fetched */
    assert_null(strstr(html.data, "src="));
    assert_null(strstr(html.data, "url("));
    assert_non_null(strstr(csv.data, "autoencoding,By length and rate,1,Tokens,32"));
    ic_buffer_free(&html);
    ic_buffer_free(&csv);

    /* the same, stopped again and again: the same report */
    int rc, runs = 0;
    do {
        w.left = 4;
        o = run_options(in_folder("pieces"), &w);
        o.resume = true;
        rc = icae_eval(&o);
        assert_true(rc == ICAE_OK || rc == ICAE_ECANCELLED);
    } while (rc != ICAE_OK && ++runs < 30);
    assert_true(rc == ICAE_OK && runs > 1);
    char *a = without_latency(in_folder("whole/report.json")),
         *b = without_latency(in_folder("pieces/report.json"));
    assert_string_equal(a, b);
    ic_free(a);
    ic_free(b);

    o.seed = 6; /* other settings must not be mixed in */
    assert_int_equal(icae_eval(&o), ICAE_EMISMATCH);

    const char *reports[] = {in_folder("whole/report.json"), in_folder("pieces/report.json")};
    MUST(icae_eval_compare(in_folder("both.html"), reports, 2));
    html = read_file(in_folder("both.html"));
    assert_non_null(strstr(html.data, "<th>Run</th>"));
    assert_non_null(strstr(html.data, "<td>pieces</td>"));
    ic_buffer_free(&html);
    reports[1] = SUITE;
    assert_int_equal(icae_eval_compare(in_folder("both.html"), reports, 2), ICAE_EFORMAT);
}

/* An adapter that serves two rates: every figure at both, and at those alone that the suite names. */
static void test_rates(void **state)
{
    (void)state;
    watch w = {.left = -1};
    icae_model *model;
    icae_adapter *adapter;
    MUST(icae_model_open(&model, NULL, NULL));
    MUST(icae_adapter_open(&adapter, NULL, model, NULL));
    adapter->rates[0] = 4;
    adapter->rates[1] = 8;
    adapter->rates_count = 2;
    MUST(icae_adapter_save(adapter, in_folder("rates.safetensors")));
    icae_adapter_free(adapter);
    icae_model_free(model);
    icae_eval_options o = run_options(in_folder("rates"), &w);
    char file[128];
    snprintf(file, sizeof file, "%s", in_folder("rates.safetensors"));
    const icae_eval_system systems[] = {{.adapter = file}};
    o.systems = systems;
    o.system_count = 1;
    o.samples = 2;
    o.suite = write_text("rates.json", "{\"rates\":[8,4,16],\"autoencoding\":{\"lengths\":[32]},"
                                       "\"continuation\":{\"contexts\":[32],\"tokens\":8},"
                                       "\"instruct\":{\"max_tokens\":2}}");
    MUST(icae_eval(&o));
    ic_buffer csv = read_file(in_folder("rates/report.csv"));
    assert_non_null(strstr(csv.data, "autoencoding,By length and rate,1,Slots,8"));
    assert_non_null(strstr(csv.data, "autoencoding,By length and rate,2,Slots,4"));
    assert_non_null(strstr(csv.data, "continuation,By length of context,2,Rate,8"));
    assert_non_null(strstr(csv.data, "instruct,By what the decoder reads,2,Reads,Slots at 8"));
    assert_non_null(strstr(csv.data, "by F1\",4,Reads,Slots at 8"));
    assert_non_null(strstr(csv.data, "systems,Systems,2,Rate,8"));
    assert_non_null(strstr(csv.data, "autoencoding,Median BLEU by rate,2,rates: x,8"));
    assert_non_null(
        strstr(csv.data, "continuation,\"Perplexity above full context, by rate\",1,rates: x,4"));
    ic_buffer_free(&csv);
    ic_buffer html = read_file(in_folder("rates/report.html"));
    assert_non_null(strstr(html.data, "does not serve 16\u00d7"));
    ic_buffer_free(&html);
    o.suite = write_text("rates8.json", "{\"rates\":[8],\"autoencoding\":{\"lengths\":[32]}}");
    o.out = in_folder("rates8");
    MUST(icae_eval(&o));
    csv = read_file(in_folder("rates8/report.csv"));
    assert_non_null(strstr(csv.data, "autoencoding,By length and rate,1,Slots,4"));
    assert_null(strstr(csv.data, "autoencoding,By length and rate,2,"));
    ic_buffer_free(&csv);
}

/* Losses behind text and behind slots are the reference's, position by position. Slots are kept as bf16,
 * the reference's are not. */
static void test_perplexity(void **state)
{
    (void)state;
    static const char *const cases[] = {"llama", "llama-spread", "qwen3-spread-proportional"};
    for (size_t i = 0; i < IC_COUNT(cases); i++) {
        char *path = golden_path(ICAE_TEST_DIR "/golden", cases[i]);
        char *file = golden_path(path, "golden.safetensors"),
             *adapter = golden_path(path, "icae.safetensors");
        ic_json *facts = golden_json(path, "golden.json"),
                *icae = (ic_json *)(uintptr_t)ic_json_get(facts, "icae");
        ic_safetensors golden;
        ic_system s = {.name = "golden"};
        ic_score scores[64];
        size_t n, nc, count;
        double rows;
        MUST(ic_safetensors_open(&golden, file));
        MUST(icae_model_open(&s.model, path, &(icae_model_options){.compute = ICAE_COMPUTE_F32}));
        MUST(icae_adapter_open(
            &s.adapter, adapter, s.model,
            &(icae_adapter_options){.k = (int)ic_record_number(icae, "mem_size"),
                                    .rate = (float)ic_record_number(icae, "rate"),
                                    .alpha = (float)ic_record_number(icae, "lora_alpha"),
                                    .positions = ic_json_string(ic_json_get(icae, "positions")),
                                    .slots = ic_json_string(ic_json_get(icae, "slots")),
                                    .lm_token = true}));
        MUST(icae_session_new(&s.session, s.model, s.adapter, NULL));
        s.model->config.bos = -1; /* the reference puts none before these ids */
        const int32_t *ids = golden_ids(&golden, "plain.input_ids", &n);
        float *nll = golden_floats(&golden, "plain.nll", &count);
        MUST(ic_score_text(scores, &s, ids, 20, ids + 20, (int)n - 20));
        double sum = 0, all = 0;
        for (size_t k = 20; k < count; k++) {
            golden_limit(cases[i], "loss behind text", fabs((double)(scores[k - 20].nll - nll[k])),
                         1e-4);
            sum += (double)nll[k];
        }
        golden_limit(
            cases[i], "perplexity",
            fabs(exp(ic_mean_loss(scores, (int)count - 20)) / exp(sum / (double)(count - 20)) - 1),
            1e-4);
        ic_free(nll);
        const int32_t *context = golden_ids(&golden, "lm_token.context", &nc),
                      *after = golden_ids(&golden, "lm_token.after", &n);
        nll = golden_floats(&golden, "lm_token.nll", &count);
        MUST(ic_score_slots(scores, &rows, &s, 0, context, (int)nc, after + 1, (int)n - 1));
        size_t skip = n - 1 - count; /* tokens that the reference gives without a loss */
        for (size_t k = 0; k < count; k++) {
            double mine = (double)scores[skip - 1 + k].nll;
            golden_limit(cases[i], "loss behind slots", fabs(mine - (double)nll[k]), 5e-2);
            all += mine - (double)nll[k];
        }
        golden_limit(cases[i], "mean loss behind slots", fabs(all / (double)count), 1e-2);
        ic_free(nll);
        icae_session_free(s.session);
        icae_adapter_free(s.adapter);
        icae_model_free(s.model);
        ic_safetensors_close(&golden);
        ic_json_free(facts);
        ic_free(path);
        ic_free(file);
        ic_free(adapter);
    }
}

/* Two systems: the pairs and the summary have both. */
static void test_systems(void **state)
{
    (void)state;
    watch w = {.left = -1};
    icae_eval_options o = run_options(in_folder("two"), &w);
    const icae_eval_system systems[] = {{.name = "first <b>"}, {.name = "second"}};
    o.systems = systems;
    o.system_count = 2;
    o.samples = 1;
    o.suite = write_text("two.json",
                         "{\"autoencoding\":{\"lengths\":[32]},\"instruct\":{\"max_tokens\":3}}");
    MUST(icae_eval(&o));
    ic_buffer json = read_file(in_folder("two/report.json")),
              html = read_file(in_folder("two/report.html"));
    assert_non_null(strstr(json.data, "\"ablations\""));
    assert_non_null(strstr(json.data, "\"ROUGE-L\""));
    assert_non_null(strstr(html.data, "first &lt;b&gt;"));
    assert_null(strstr(html.data, "first <b>"));
    ic_buffer_free(&json);
    ic_buffer_free(&html);
}

/* ---- what must be refused or said ------------------------------------------------------------- */

static void fails(const char *suite, const char *text, int code, const char *message)
{
    watch w = {.left = -1};
    icae_eval_options o = run_options(in_folder("bad"), &w);
    o.suite = suite;
    o.texts = &text;
    o.text_count = text != NULL;
    int rc = icae_eval(&o);
    if (rc != code || !strstr(icae_error_message(), message)) {
        print_error("%d %s; wanted %d %s\n", rc, icae_error_message(), code, message);
        fail();
    }
}

static void test_refusals(void **state)
{
    (void)state;
    fails(SUITE, write_text("empty.txt", ""), ICAE_EINVAL, "nothing to measure");
    fails(SUITE, in_folder("absent"), ICAE_ENOTFOUND, "absent");
    fails(write_text("s1.json", "{\"autoencodng\":{}}"), NULL, ICAE_EFORMAT,
          "unknown key \"autoencodng\"");
    fails(write_text("s2.json", "[]"), NULL, ICAE_EFORMAT, "JSON object");
    fails(write_text("s3.json", "{\"samples\":0}"), NULL, ICAE_EINVAL, "samples");
    fails(write_text("s4.json", "{\"span\":7}"), NULL, ICAE_EFORMAT, "must be an object");
    fails(write_text("s5.json", "{\"span\":{}}"), NULL, ICAE_EFORMAT, "needs \"lengths\"");
    fails(write_text("s6.json", "{\"content\":{\"lengths\":[1]}}"), NULL, ICAE_EFORMAT,
          "no setting");
    fails(write_text("s7.json", "{\"autoencoding\":{\"lengths\":[64,0]}}"), NULL, ICAE_EFORMAT,
          "a list of 1 to 32");
    fails(write_text("s8.json", "{\"latency\":{\"shapes\":[[8,\"x\"]]}}"), NULL, ICAE_EFORMAT,
          "a list of 1 to 32");
    fails(write_text("s9.json", "{\"instruct\":{\"max_tokens\":[8]}}"), NULL, ICAE_EFORMAT,
          "a number from 1 on");
    icae_eval_options o = {0};
    assert_int_equal(icae_eval(&o), ICAE_EINVAL);

    /* a text that is too short for a length: no figure without its number of samples */
    watch w = {.left = -1};
    const char *text = write_text(
        "short.txt",
        "A short text about a ship and the sea and the wind, which is soon over and done.");
    o = run_options(in_folder("short"), &w);
    o.texts = &text;
    o.text_count = 1;
    o.suite = write_text(
        "short.json", "{\"samples\":4,\"autoencoding\":{\"lengths\":[16,2000]},\"instruct\":{}}");
    MUST(icae_eval(&o));
    assert_true(w.notes >= 3);
    ic_buffer json = read_file(in_folder("short/report.json"));
    assert_non_null(strstr(json.data, "measured on 0 samples of the 4 asked for"));
    assert_non_null(strstr(json.data, "there are no questions"));
    ic_buffer_free(&json);
    json = read_file(in_folder("short/report.html"));
    assert_non_null(strstr(json.data, "<td class=\"n few\">only 0</td>"));
    ic_buffer_free(&json);
}

/* Texts, contexts and questions longer than the model: left out and said, not an error. */
static void test_too_long(void **state)
{
    (void)state;
    watch w = {.left = -1};
    ic_buffer text = {0};
    while (text.size < 60000)
        MUST(ic_buffer_addf(&text, "The ship went on and on over the sea, and nobody saw land. "));
    ic_buffer line = {0};
    MUST(ic_buffer_addf(&line, "{\"context\":\"%s\",\"prompt\":\"Where?\",\"answer\":\"At sea\"}\n",
                        text.data));
    const char *texts[] = {write_text("long.txt", text.data), write_text("long.jsonl", line.data)};
    icae_eval_options o = run_options(in_folder("long"), &w);
    o.texts = texts;
    o.text_count = 2;
    o.suite = write_text("long.json",
                         "{\"samples\":1,\"autoencoding\":{\"lengths\":[16,5000]},\"continuation\":"
                         "{\"contexts\":[32,5000],\"tokens\":16},\"instruct\":{\"max_tokens\":2},"
                         "\"latency\":{\"shapes\":[[1,5000]],\"tokens\":2,\"repeats\":1},"
                         "\"span\":{\"lengths\":[5000],\"tokens\":16}}");
    MUST(icae_eval(&o));
    ic_buffer csv = read_file(in_folder("long/report.csv")),
              html = read_file(in_folder("long/report.html"));
    assert_non_null(strstr(csv.data, "autoencoding,By length and rate,1,Samples,1"));
    assert_non_null(strstr(csv.data, "autoencoding,By length and rate,2,Samples,0"));
    assert_non_null(strstr(csv.data, "continuation,By length of context,2,Samples,0"));
    assert_non_null(strstr(csv.data, "instruct,By what the decoder reads,1,Questions,0"));
    assert_non_null(strstr(csv.data, "instruct,By what the decoder reads,3,Questions,1"));
    assert_non_null(strstr(html.data,
                           "5000 tokens: measured on 0 samples of the 1 asked for: the text "
                           "has 5000 tokens"));
    assert_non_null(strstr(html.data, "1 x 5000: left out"));
    assert_non_null(strstr(html.data, "cannot hold 5000 tokens"));
    ic_buffer_free(&csv);
    ic_buffer_free(&html);
    ic_buffer_free(&text);
    ic_buffer_free(&line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats),      cmocka_unit_test(test_journal),
        cmocka_unit_test(test_data),       cmocka_unit_test(test_batches),
        cmocka_unit_test(test_perplexity), cmocka_unit_test(test_run),
        cmocka_unit_test(test_rates),      cmocka_unit_test(test_systems),
        cmocka_unit_test(test_refusals),   cmocka_unit_test(test_too_long),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
