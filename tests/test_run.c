/*
 * test_run.c - configurations, schedules, checkpoints, and whole runs of a tiny model: resumed exactly,
 * and safe against what goes wrong.
 */
#include "train/run.h"

#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/icae-test-run-XXXXXX";

static char *in_folder(const char *name)
{
    char *path = ic_path_join(folder, name);
    assert_non_null(path);
    return path;
}

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

/* ---- configuration ---------------------------------------------------------------------------- */

static int read_config(icae_train_config **c, const char *text)
{
    char *path = in_folder("config");
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(icae_train_config_new(c, ICAE_PRETRAIN), ICAE_OK);
    int rc = icae_train_config_read(*c, path);
    ic_free(path);
    return rc;
}

static void test_config_files(void **state)
{
    (void)state;
    icae_train_config *c;
    assert_int_equal(
        read_config(&c, "# a comment\n"
                        "k = 64   # slots\n"
                        "lr = 2.5e-4\n"
                        "data = [\n  'a\\b.jsonl', # one\n  \"c\\u00e9 \\\"d\\\".txt:2\",\n]\n"
                        "rates = [2, 4.5]\n"
                        "lm_token = true\n"
                        "max-tokens = 1_024\n"
                        "positions = \"spread\"\nmemory = \"2G\"\nrecompute = 2\n"),
        ICAE_OK);
    assert_int_equal(c->s.k, 64);
    assert_true(c->s.lr == 2.5e-4);
    assert_int_equal(c->s.data.count, 2);
    assert_string_equal(c->s.data.item[0], "a\\b.jsonl");
    assert_string_equal(c->s.data.item[1], "c\xc3\xa9 \"d\".txt:2");
    assert_true(c->s.rates.count == 2 && c->s.rates.v[1] == 4.5);
    assert_true(c->s.lm_token);
    assert_int_equal(c->s.max_tokens, 1024);
    assert_string_equal(c->s.positions, "spread");
    assert_int_equal(c->s.memory, 2147483648u);
    assert_string_equal(c->s.recompute, "2");
    /* flags win over files, and lists of flags add up */
    assert_int_equal(icae_train_config_set(c, "k", "32"), ICAE_OK);
    assert_int_equal(icae_train_config_set(c, "data", "x,y"), ICAE_OK);
    assert_int_equal(icae_train_config_set(c, "data", "[\"z,1\"]"), ICAE_OK);
    assert_int_equal(c->s.data.count, 3);
    assert_string_equal(c->s.data.item[2], "z,1");
    icae_train_config_free(c);

    assert_int_equal(
        read_config(&c, " {\"k\": 8, \"data\": [\"a\"], \"lm_token\": true, \"lr\": 0.001, "
                        "\"schedule\": \"linear\"}"),
        ICAE_OK);
    assert_int_equal(c->s.k, 8);
    assert_true(c->s.lr == 0.001 && c->s.lm_token);
    icae_train_config_free(c);
}

static void test_bad_config(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
        int code;
    } bad[] = {
        {"learning_rate = 1\n", "there is no key \"learning_rate\"", ICAE_EINVAL},
        {"\n\nmax_token = 5\n",
         "line 3: there is no key \"max_token\"; did you mean \"max_tokens\"?", ICAE_EINVAL},
        {"chekpoint_every = 5\n", "did you mean \"checkpoint_every\"?", ICAE_EINVAL},
        {"k = 0\n", "k: 0 is not possible; from 1 to 65536", ICAE_EINVAL},
        {"k = 2.5\n", "k: 2.5 is not a whole number", ICAE_EINVAL},
        {"k = \"8\"\n", "k: expected a whole number", ICAE_EINVAL},
        {"lr = fast\n", "line 1: neither a number", ICAE_EFORMAT},
        {"[train]\nk = 8\n", "line 1: sections are not used", ICAE_EFORMAT},
        {"k 8\n", "expected =", ICAE_EFORMAT},
        {"k = 8 9\n", "something follows the value", ICAE_EFORMAT},
        {"data = [\"a\"\n", "expected , or ] in an array", ICAE_EFORMAT},
        {"out = \"a\n\"", "a string without end", ICAE_EFORMAT},
        {"schedule = \"square\"\n",
         "schedule: there is no \"square\"; it is one of cosine|linear|constant", ICAE_EINVAL},
        {"strict = \"yes\"\n", "strict: expected a yes/no", ICAE_EINVAL},
        {"rates = [2, 0.5]\n", "rates: 0.5 is not possible", ICAE_EINVAL},
        {"{\"k\": {}}", "k: neither a text", ICAE_EFORMAT},
        {"{\"kk\": 1}", "there is no key \"kk\"", ICAE_EINVAL},
        {"{", "not valid JSON", ICAE_EFORMAT},
    };
    for (size_t i = 0; i < IC_COUNT(bad); i++) {
        icae_train_config *c;
        int rc = read_config(&c, bad[i].text);
        if (rc != bad[i].code)
            fail_msg("%s: code %d (%s)", bad[i].text, rc, icae_error_message());
        assert_message(bad[i].message);
        icae_train_config_free(c);
    }
    icae_train_config *c;
    assert_int_equal(icae_train_config_new(&c, ICAE_PRETRAIN), ICAE_OK);
    assert_int_equal(icae_train_config_check(c), ICAE_EINVAL);
    assert_message("data: no training text");
    assert_int_equal(icae_train_config_set(c, "data", "a"), ICAE_OK);
    assert_int_equal(icae_train_config_check(c), ICAE_OK);
    assert_int_equal(icae_train_config_set(c, "targets", "q_proj,x_proj"), ICAE_OK);
    assert_int_equal(icae_train_config_check(c), ICAE_EINVAL);
    assert_message("x_proj");
    icae_train_config_free(c);
}

static int gather(void *user, const char *text, size_t size)
{
    return ic_buffer_add(user, text, size);
}

/* What is printed reads back as the same, presets fill in what is not set, defaults depend on the stage. */
static void test_print_and_presets(void **state)
{
    (void)state;
    icae_train_config *a, *b;
    ic_buffer first = {0}, second = {0}, changes = {0}, json = {0};
    ic_json *stored;
    icae_train_key key;
    assert_int_equal(icae_train_config_new(&a, ICAE_FINETUNE), ICAE_OK);
    /* without a base the bundled one's preset holds; a base of one's own has none */
    assert_true(a->s.k == 8 && strcmp(a->s.positions, "spread") == 0 &&
                strcmp(a->s.adapter, "demo") == 0);
    assert_int_equal(icae_train_config_set(a, "base", "somewhere"), ICAE_OK);
    assert_true(a->s.k == 128 && strcmp(a->s.positions, "sequential") == 0 && !*a->s.adapter);
    assert_true(a->s.lr == 5e-5 && a->s.ft_weight == 1 && a->s.ae_weight == 0);
    assert_int_equal(icae_train_config_set(a, "clip", "3"), ICAE_OK);
    assert_int_equal(icae_train_config_set(a, "preset", "paper"), ICAE_OK);
    assert_true(a->s.batch == 256 && a->s.warmup == 300 && a->s.clip == 3 && a->s.lr == 5e-5);
    assert_int_equal(icae_train_config_set(a, "preset", "none"), ICAE_OK);
    assert_true(a->s.batch == 16 && a->s.warmup == 100);
    assert_int_equal(icae_train_config_set(a, "out", "with \"quotes\" and \\"), ICAE_OK);
    assert_int_equal(icae_train_config_set(a, "rates", "2,3.3,8"), ICAE_OK);
    assert_int_equal(icae_train_config_set(a, "lr", "0.1"), ICAE_OK);
    assert_int_equal(icae_train_config_print(a, gather, &first), ICAE_OK);
    assert_int_equal(read_config(&b, first.data), ICAE_OK);
    assert_int_equal(icae_train_config_print(b, gather, &second), ICAE_OK);
    assert_string_equal(first.data, second.data);

    assert_int_equal(ic_settings_to_json(b, &json), ICAE_OK);
    assert_int_equal(ic_json_parse(&stored, json.data, json.size, "stored"), ICAE_OK);
    assert_int_equal(ic_settings_changes(b, stored, &changes), ICAE_OK);
    assert_int_equal(changes.size, 0);
    assert_int_equal(icae_train_config_set(b, "lr", "0.2"), ICAE_OK);
    assert_int_equal(icae_train_config_set(b, "threads", "2"), ICAE_OK);
    assert_int_equal(icae_train_config_set(b, "rates", "2"), ICAE_OK);
    assert_int_equal(ic_settings_changes(b, stored, &changes), ICAE_OK);
    assert_string_equal(changes.data, "rates [2, 3.3, 8] -> [2], lr 0.1 -> 0.2");
    size_t keys = 0;
    while (icae_train_config_key(&key, a, keys))
        assert_true(*key.name && *key.type && *key.help && ++keys);
    assert_true(keys > 50);
    ic_json_free(stored);
    ic_buffer_free(&first);
    ic_buffer_free(&second);
    ic_buffer_free(&changes);
    ic_buffer_free(&json);
    icae_train_config_free(a);
    icae_train_config_free(b);
}

static void test_schedule(void **state)
{
    (void)state;
    ic_settings s = {
        .lr = 1, .min_lr = 0.1, .warmup = 10, .steps = 110, .schedule = (char *)"cosine"};
    ic_state t = {0};
    assert_true(ic_training_lr(&s, &t) == 0.1);
    t.step = 9;
    assert_true(ic_training_lr(&s, &t) == 1);
    t.step = 60;
    assert_true(fabs(ic_training_lr(&s, &t) - 0.55) < 1e-12);
    t.step = 110;
    assert_true(fabs(ic_training_lr(&s, &t) - 0.1) < 1e-12);
    assert_true(ic_training_progress(&s, &t) == 1);
    s.schedule = (char *)"linear";
    t.step = 60;
    assert_true(fabs(ic_training_lr(&s, &t) - 0.55) < 1e-12);
    s = (ic_settings){.lr = 1, .tokens = 1000, .schedule = (char *)"linear"};
    t = (ic_state){.step = 3, .tokens = 250};
    assert_true(fabs(ic_training_lr(&s, &t) - 0.75) < 1e-12);
    s = (ic_settings){.lr = 1, .hours = 2, .schedule = (char *)"constant"};
    t = (ic_state){.seconds = 3600};
    assert_true(ic_training_progress(&s, &t) == 0.5 && ic_training_lr(&s, &t) == 1);
}

/* ---- runs ------------------------------------------------------------------------------------- */

typedef struct watch {
    uint64_t stop_at, steps, skipped; /* stop after this step; 0: never */
    double first, last, eval;
    icae_train_report evaluated;
    bool stop;
    char warning[2000], notice[2000];
    void (*at_step)(struct watch *w, uint64_t step);
    icae_train_config *config;
} watch;

static void report(void *user, const icae_train_report *r)
{
    watch *w = user;
    double loss = isfinite(r->loss[0])   ? r->loss[0]
                  : isfinite(r->loss[1]) ? r->loss[1]
                                         : r->loss[2];
    w->first = w->steps ? w->first : loss;
    w->last = loss;
    w->steps++;
    w->skipped += r->skipped;
    if (r->evaluated)
        w->evaluated = *r;
    if (r->evaluated)
        w->eval = isfinite(r->eval_loss[0]) ? r->eval_loss[0] : r->eval_loss[2];
    if (w->at_step)
        w->at_step(w, r->step);
    w->stop |= w->stop_at && r->step >= w->stop_at;
}

static void notice(void *user, bool warning, const char *line)
{
    watch *w = user;
    snprintf(warning ? w->warning : w->notice, sizeof w->warning, "%s", line);
}

static bool stop(void *user)
{
    return ((watch *)user)->stop;
}

static icae_train_config *config_of(icae_train_stage stage, const char *out, const char *more)
{
    icae_train_config *c;
    char *path = in_folder(out),
         *data = in_folder(stage == ICAE_FINETUNE ? "triples.jsonl" : "text.jsonl");
    const char *fixed[] = {"base",
                           ICAE_TEST_DIR "/golden/llama",
                           "data",
                           data,
                           "eval_data",
                           data,
                           "cache",
                           folder,
                           "out",
                           path,
                           "k",
                           "4",
                           "rank",
                           "2",
                           "max_tokens",
                           "32",
                           "continuation",
                           "66",
                           "batch",
                           "3",
                           "steps",
                           "8",
                           "eval_every",
                           "4",
                           "eval_samples",
                           "4",
                           "warmup",
                           "2",
                           "lr",
                           "1e-2",
                           "threads",
                           "1",
                           "checkpoint_every",
                           "2",
                           NULL};
    char text[400], *at = text, *word;
    assert_int_equal(icae_train_config_new(&c, stage), ICAE_OK);
    for (const char **f = fixed; *f; f += 2)
        if (icae_train_config_set(c, f[0], f[1]) < 0)
            fail_msg("%s", icae_error_message());
    snprintf(text, sizeof text, "%s", more);
    while ((word = strsep(&at, " ")) && *word) { /* "key=value key=value" */
        char *equal = strchr(word, '=');
        *equal = 0;
        if (icae_train_config_set(c, word, equal + 1) < 0)
            fail_msg("%s", icae_error_message());
    }
    ic_free(path);
    ic_free(data);
    return c;
}

static int run_with(watch *w, icae_train_stage stage, const char *out, const char *more)
{
    icae_train_callbacks callbacks = {report, notice, stop, NULL, w};
    w->config = config_of(stage, out, more);
    w->steps = w->skipped = 0;
    w->stop = false;
    int rc = icae_train_run(w->config, &callbacks);
    icae_train_config_free(w->config);
    return rc;
}

static void assert_run(watch *w, icae_train_stage stage, const char *out, const char *more)
{
    int rc = run_with(w, stage, out, more);
    if (rc < 0)
        fail_msg("%s (%d)", icae_error_message(), rc);
}

static char *file_of(const char *run, const char *name)
{
    char *both = ic_format("%s/%s/%s", folder, run, name);
    assert_non_null(both);
    return both;
}

static void assert_same_file(const char *a, const char *b, const char *name)
{
    ic_map x, y;
    char *pa = file_of(a, name), *pb = file_of(b, name);
    assert_int_equal(ic_map_open(&x, pa), ICAE_OK);
    assert_int_equal(ic_map_open(&y, pb), ICAE_OK);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    ic_map_close(&x);
    ic_map_close(&y);
    ic_free(pa);
    ic_free(pb);
}

/* The metrics but for what a clock decides. */
static void read_metrics(ic_buffer *out, const char *run)
{
    char line[4096], *path = file_of(run, "metrics.jsonl");
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    out->size = 0;
    while (fgets(line, sizeof line, f)) {
        char *clock = strstr(line, ", \"seconds\"");
        assert_int_equal(ic_buffer_addf(out, "%.*s\n",
                                        (int)(clock ? (size_t)(clock - line) : strlen(line) - 1),
                                        line),
                         0);
    }
    fclose(f);
    ic_free(path);
}

static void assert_same_run(const char *a, const char *b)
{
    ic_buffer x = {0}, y = {0};
    assert_same_file(a, b, "last.safetensors");
    assert_same_file(a, b, "best.safetensors");
    read_metrics(&x, a);
    read_metrics(&y, b);
    assert_string_equal(x.data, y.data);
    ic_buffer_free(&x);
    ic_buffer_free(&y);
}

static const char plain[] = "dropout=0.1";

static void test_resume(void **state)
{
    (void)state;
    watch w = {0};
    assert_run(&w, ICAE_PRETRAIN, "whole", plain);
    assert_int_equal(w.steps, 8);
    assert_true(w.last < w.first && isfinite(w.eval));
    /* stopped after every other step: at an evaluation, at a checkpoint, in between */
    w = (watch){0};
    for (uint64_t at = 1; at < 8; at++) {
        w.stop_at = at;
        assert_int_equal(
            run_with(&w, ICAE_PRETRAIN, "parts", at == 1 ? plain : "dropout=0.1 resume=true"),
            ICAE_ECANCELLED);
        assert_message("--resume goes on");
    }
    w = (watch){0};
    assert_run(&w, ICAE_PRETRAIN, "parts", "dropout=0.1 resume=true");
    assert_same_run("whole", "parts");
    /* nothing left to do */
    assert_run(&w, ICAE_PRETRAIN, "parts", "dropout=0.1 resume=true");
    assert_int_equal(w.steps, 0);
    assert_same_run("whole", "parts");
    /* what an old run holds is not lost by a slip */
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "parts", plain), ICAE_EINVAL);
    assert_message("holds a run already");
}

static void damage(const char *run, const char *name, long at)
{
    char *path = file_of(run, name);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    unsigned char c;
    off_t size = lseek(fd, 0, SEEK_END);
    if (at < 0) {
        assert_int_equal(ftruncate(fd, size / 2), 0);
    } else {
        assert_int_equal(pread(fd, &c, 1, size - at), 1);
        c ^= 4;
        assert_int_equal(pwrite(fd, &c, 1, size - at), 1);
    }
    close(fd);
    ic_free(path);
}

/* A damaged or half-written checkpoint: the one before is used, and the run comes out the same. */
static void test_damaged(void **state)
{
    (void)state;
    const long at[] = {-1, 400};
    for (size_t i = 0; i < IC_COUNT(at); i++) {
        watch w = {.stop_at = 5};
        char *run = ic_format("damaged%zu", i);
        assert_int_equal(run_with(&w, ICAE_PRETRAIN, run, plain), ICAE_ECANCELLED);
        damage(run, "checkpoint.safetensors", at[i]);
        w = (watch){0};
        assert_run(&w, ICAE_PRETRAIN, run, "dropout=0.1 resume=true");
        assert_int_equal(w.steps, 4); /* from step 4 */
        assert_true(strstr(w.warning, "the checkpoint before it is used") != NULL);
        assert_same_run("whole", run);
        ic_free(run);
    }
    /* a kill between two renames: the new file is complete under its first name */
    watch w = {.stop_at = 5};
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "renamed", plain), ICAE_ECANCELLED);
    char *from = file_of("renamed", "checkpoint.safetensors"),
         *to = file_of("renamed", "checkpoint.new.safetensors");
    assert_int_equal(rename(from, to), 0);
    w = (watch){0};
    assert_run(&w, ICAE_PRETRAIN, "renamed", "dropout=0.1 resume=true");
    assert_int_equal(w.steps, 3);
    assert_same_run("whole", "renamed");
    ic_free(from);
    ic_free(to);
    /* nothing sound is left */
    w = (watch){.stop_at = 5};
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "ruined", plain), ICAE_ECANCELLED);
    damage("ruined", "checkpoint.safetensors", 400);
    damage("ruined", "checkpoint.previous.safetensors", -1);
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "ruined", "dropout=0.1 resume=true"),
                     ICAE_EFORMAT);
    assert_message("no checkpoint there is sound");
}

static void test_changes(void **state)
{
    (void)state;
    watch w = {.stop_at = 3};
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "changed", ""), ICAE_ECANCELLED);
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "changed", "resume=true lr=0.005 batch=4"),
                     ICAE_EMISMATCH);
    assert_message("lr 0.01 -> 0.005");
    assert_message("samples a step (batch, accumulate, processes) 3 -> 4");
    w = (watch){0};
    assert_run(&w, ICAE_PRETRAIN, "changed", "resume=true lr=0.005 force=true checkpoint_every=3");
    assert_int_equal(w.steps, 5);
    assert_true(strstr(w.warning, "lr 0.01 -> 0.005") != NULL);
    w = (watch){.stop_at = 3};
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "other", ""), ICAE_ECANCELLED);
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "other", "resume=true rank=3 force=true"),
                     ICAE_EMISMATCH);
    assert_message("trained values");
}

static void start_again(watch *w, uint64_t step)
{
    watch inner = {0};
    icae_train_callbacks callbacks = {report, notice, stop, NULL, &inner};
    if (step != 1)
        return;
    assert_int_equal(icae_train_run(w->config, &callbacks), ICAE_EINVAL);
    assert_message("is in use by another run (process ");
}

static void test_lock(void **state)
{
    (void)state;
    watch w = {.at_step = start_again};
    assert_run(&w, ICAE_PRETRAIN, "locked", "steps=2");
}

static void set_file_limit(rlim_t bytes)
{
    struct rlimit l;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static void fill_disk(watch *w, uint64_t step)
{
    (void)w;
    if (step == 3)
        set_file_limit(300); /* neither checkpoint nor metrics can be written */
    if (step == 7) {
        assert_true(strstr(w->warning, "the one before is kept, training goes on") != NULL);
        set_file_limit(RLIM_INFINITY);
    }
}

static void check_kept(watch *w, uint64_t step)
{
    if (step == 5)
        w->stop = true; /* the last checkpoint fails too: that is an error, with the old one kept */
    fill_disk(w, step == 7 ? 0 : step);
}

static void test_full_disk(void **state)
{
    (void)state;
    watch w = {.at_step = fill_disk};
    signal(SIGXFSZ, SIG_IGN);
    assert_run(&w, ICAE_PRETRAIN, "full", plain);
    set_file_limit(RLIM_INFINITY);
    assert_same_run("whole", "full");
    w = (watch){.at_step = check_kept};
    int rc = run_with(&w, ICAE_PRETRAIN, "fuller", plain);
    set_file_limit(RLIM_INFINITY);
    assert_int_equal(rc, ICAE_EIO);
    w = (watch){0};
    assert_run(&w, ICAE_PRETRAIN, "fuller", "dropout=0.1 resume=true");
    assert_int_equal(w.steps, 6); /* from step 2 */
    assert_same_run("whole", "fuller");
}

static void test_not_finite(void **state)
{
    (void)state;
    watch w = {0};
    assert_int_equal(
        run_with(&w, ICAE_PRETRAIN, "infinite", "lr=1e30 clip=0 warmup=0 steps=50 eval_every=0"),
        ICAE_EFORMAT);
    assert_message("10 steps in a row");
    assert_int_equal(w.skipped, 10);
    assert_true(w.steps > 10 && w.steps < 20);
    char *path = file_of("infinite", "last.safetensors");
    ic_safetensors st;
    assert_int_equal(ic_safetensors_open(&st, path), ICAE_OK);
    for (size_t i = 0; i < st.count; i++)
        for (size_t j = 0; j < st.tensors[i].bytes / 4; j++)
            assert_true(isfinite(((const float *)st.tensors[i].data)[j]));
    ic_safetensors_close(&st);
    ic_free(path);
}

static void test_bad_starts(void **state)
{
    (void)state;
    static const struct {
        const char *more, *message;
        int code;
    } bad[] = {
        {"memory=100K", "training needs", ICAE_ENOMEM},
        {"k=2047 max_tokens=0", "do not fit into the 2048 positions", ICAE_ELIMIT},
        {"base=/nonexistent", "/nonexistent", ICAE_ENOTFOUND},
        {"adapter=/nonexistent.safetensors", "/nonexistent", ICAE_ENOTFOUND},
        {"adapter=" ICAE_TEST_DIR "/golden/qwen3/icae.safetensors", "icae.safetensors",
         ICAE_EMISMATCH},
        {"adapter=" ICAE_TEST_DIR "/golden/llama/icae.safetensors", "rank: 2, but", ICAE_EMISMATCH},
        {"out=/proc/nowhere", "/proc/nowhere", ICAE_EIO},
    };
    for (size_t i = 0; i < IC_COUNT(bad); i++) {
        watch w = {0};
        long live = ic_memory_fail_after(-1);
        int rc = run_with(&w, ICAE_PRETRAIN, "bad", bad[i].more);
        if (rc != bad[i].code)
            fail_msg("%s: code %d (%s)", bad[i].more, rc, icae_error_message());
        assert_message(bad[i].message);
        assert_int_equal(ic_memory_fail_after(-1), live);
    }
}

/* Rates, spread positions, proportional slots: recorded in the adapter, which opens with them. */
static void test_adapter(void **state)
{
    (void)state;
    watch w = {0};
    assert_run(&w, ICAE_PRETRAIN, "shaped",
               "rates=2,8 positions=spread slots=proportional lm_token=true "
               "targets=q_proj,up_proj steps=4 lm_weight=0 init=token_means");
    icae_model *model;
    icae_adapter *adapter;
    char *path = file_of("shaped", "best.safetensors");
    assert_int_equal(icae_model_open(&model, ICAE_TEST_DIR "/golden/llama", NULL), ICAE_OK);
    if (icae_adapter_open(&adapter, path, model, NULL) < 0)
        fail_msg("%s", icae_error_message());
    icae_adapter_info info = icae_adapter_describe(adapter);
    assert_int_equal(info.k, 4);
    assert_int_equal(info.rank, 2);
    assert_string_equal(info.positions, "spread");
    assert_string_equal(info.slots, "proportional");
    assert_string_equal(info.targets, "q_proj,up_proj");
    assert_true(info.lm_token);
    assert_int_equal(adapter->rates_count, 2);
    assert_int_equal(adapter->span, 32);
    icae_adapter_free(adapter);
    icae_model_free(model);
    /* training goes on from it: what it is need not be said again, what it learns is of another kind */
    char *more = ic_format("adapter=%s steps=3 k=4", path);
    w = (watch){0};
    assert_run(&w, ICAE_FINETUNE, "tuned", more);
    assert_int_equal(w.steps, 3);
    assert_true(isfinite(w.eval));
    ic_free(more);
    ic_free(path);
}

/* An adapter that has changed its base says so, and is taken only to train on. */
static void test_both(void **state)
{
    (void)state;
    watch w = {0};
    assert_run(&w, ICAE_PRETRAIN, "both",
               "lora=both steps=30 lm_weight=0.5 dropout=0 schedule=constant");
    assert_true(w.last < w.first);
    icae_model *model;
    icae_adapter *adapter;
    icae_session *session;
    char *path = file_of("both", "best.safetensors");
    assert_int_equal(icae_model_open(&model, ICAE_TEST_DIR "/golden/llama", NULL), ICAE_OK);
    assert_int_equal(icae_adapter_open(&adapter, path, model, NULL), ICAE_OK);
    assert_true(adapter->both);
    assert_int_equal(icae_session_new(&session, model, adapter, NULL), ICAE_EMISMATCH);
    assert_message("merge the two first");
    icae_adapter_free(adapter);
    icae_model_free(model);
    char *more = ic_format("adapter=%s steps=2", path);
    w = (watch){0};
    assert_int_equal(run_with(&w, ICAE_PRETRAIN, "alone", more), ICAE_EMISMATCH);
    assert_message("was trained with both");
    ic_free(more);
    more =
        ic_format("adapter=%s steps=20 lora=both plain_share=1 schedule=constant dropout=0", path);
    w = (watch){0};
    assert_run(&w, ICAE_FINETUNE, "on", more);
    assert_true(w.last < w.first);
    ic_free(more);
    ic_free(path);
}

/* The golden model without a bos token. */
static char *without_bos(void)
{
    char *path = in_folder("no-bos"), text[4096];
    assert_int_equal(mkdir(path, 0700), 0);
    char *config = ic_path_join(path, "config.json");
    FILE *f = fopen(ICAE_TEST_DIR "/golden/llama/config.json", "r"), *g = fopen(config, "w");
    assert_true(f && g);
    while (fgets(text, sizeof text, f))
        if (!strstr(text, "bos_token_id"))
            fputs(text, g);
    fclose(f);
    fclose(g);
    ic_free(config);
    static const char *const others[] = {"model.safetensors", "tokenizer.json"};
    for (size_t i = 0; i < IC_COUNT(others); i++) {
        char *from = ic_path_join(ICAE_TEST_DIR "/golden/llama", others[i]);
        char *to = ic_path_join(path, others[i]);
        assert_int_equal(symlink(from, to), 0);
        ic_free(from);
        ic_free(to);
    }
    return path;
}

/* The first tokens of a continuation are learnt and measured, or not. */
static void test_lm_skip(void **state)
{
    (void)state;
    char *base = without_bos();
    static const char *const starts[] = {"lm_token=true", "lm_token=false"};
    for (size_t i = 0; i < IC_COUNT(starts); i++) {
        watch all = {0}, rest = {0}, bare = {0};
        char *more = ic_format("force=true steps=1 ae_weight=0 lm_skip=0 %s", starts[i]);
        assert_run(&all, ICAE_PRETRAIN, "all", more);
        ic_free(more);
        more = ic_format("force=true steps=1 ae_weight=0 lm_skip=8 %s", starts[i]);
        assert_run(&rest, ICAE_PRETRAIN, "rest", more);
        ic_free(more);
        more = ic_format("force=true steps=1 ae_weight=0 lm_skip=0 %s base=%s", starts[i], base);
        assert_run(&bare, ICAE_PRETRAIN, "bare", more);
        ic_free(more);
        const watch *const w[] = {&all, &rest, &bare};
        for (size_t j = 0; j < IC_COUNT(w); j++) {
            const icae_train_report *r = &w[j]->evaluated;
            assert_true(r->perplexity > 1 && r->perplexity_full > 1 && r->perplexity_none > 1);
            assert_true(isfinite(r->perplexity + r->perplexity_full + r->perplexity_none));
        }
        assert_true(fabs(all.first - rest.first) > 1e-6);
        assert_true(fabs(all.evaluated.perplexity_none - rest.evaluated.perplexity_none) > 1e-6);
    }
    ic_free(base);
}

static void test_finetune(void **state)
{
    (void)state;
    watch w = {0};
    assert_run(&w, ICAE_FINETUNE, "tune", "steps=20 dropout=0 schedule=constant");
    assert_true(w.last < w.first);
    /* batches larger than the text, several micro-batches, accumulation: the same samples a step */
    w = (watch){0};
    assert_run(&w, ICAE_FINETUNE, "small", "steps=2 batch=100 batch_tokens=64");
    assert_true(strstr(w.warning, "each is read several times a step") != NULL);
}

/* The budget of a micro-batch changes speed and memory, not what is learned. */
static void test_packing(void **state)
{
    (void)state;
    watch a = {0}, b = {0};
    assert_run(&a, ICAE_PRETRAIN, "packed", "dropout=0 batch=6");
    assert_run(&b, ICAE_PRETRAIN, "single",
               "dropout=0 batch=2 accumulate=3 batch_tokens=1 recompute=3");
    assert_true(fabs(a.last - b.last) < 1e-5 && fabs(a.eval - b.eval) < 1e-5);
    /* with a teacher, which changes what is learned */
    watch c = {0}, d = {0};
    assert_run(&c, ICAE_PRETRAIN, "taught", "dropout=0 batch=6 distill=0.5");
    assert_run(&d, ICAE_PRETRAIN, "taught-single",
               "dropout=0 batch=2 accumulate=3 batch_tokens=1 recompute=3 distill=0.5");
    assert_true(fabs(c.last - d.last) < 1e-5 && fabs(c.eval - d.eval) < 1e-5);
    assert_true(fabs(c.eval - a.eval) > 1e-5);
}

static void test_plot(void **state)
{
    (void)state;
    char *run = in_folder("whole"), *svg = in_folder("curves.svg"), *nothing = in_folder("nothing");
    ic_map map;
    assert_int_equal(icae_train_plot(run, svg), ICAE_OK);
    assert_int_equal(ic_map_open(&map, svg), ICAE_OK);
    char *text = ic_strndup((const char *)map.data, map.size);
    assert_non_null(strstr(text, "<svg"));
    assert_non_null(strstr(text, "Loss, nats a token"));
    assert_non_null(strstr(text, "stroke-dasharray"));
    assert_non_null(strstr(text, "Perplexity"));
    assert_non_null(strstr(text, "</svg>"));
    assert_null(strstr(text, "nan"));
    ic_free(text);
    ic_map_close(&map);
    assert_int_equal(icae_train_plot(nothing, svg), ICAE_ENOTFOUND);
    ic_free(run);
    ic_free(svg);
    ic_free(nothing);
}

static void test_measure(void **state)
{
    (void)state;
    icae_train_estimate e;
    icae_train_config *c = config_of(ICAE_PRETRAIN, "measured", "");
    assert_int_equal(icae_train_measure(&e, c, NULL), ICAE_OK);
    assert_true(e.weights > 100000 && e.trained == e.parameters * 16 && e.scratch > 10000);
    assert_true(e.total == e.weights + e.trained + e.scratch && e.step_seconds > 0);
    assert_true(e.documents == 20 && e.tokens > 1000 &&
                fabs(e.seconds / e.step_seconds - 8) < 1e-6);
    char *out = in_folder("measured");
    assert_false(ic_path_exists(out)); /* it only measures */
    ic_free(out);
    icae_train_config_free(c);
}

/* Every allocation that can fail fails once: an error, no crash, no leak. */
static void test_no_memory(void **state)
{
    (void)state;
    long live = ic_memory_fail_after(-1);
    for (long n = 0; n < 4000; n += n < 60 ? 1 : n / 8) {
        watch w = {0};
        icae_train_callbacks callbacks = {report, notice, stop, NULL, &w};
        icae_train_config *c =
            config_of(ICAE_PRETRAIN, "starved", "steps=1 force=true eval_samples=1");
        ic_memory_fail_after(n);
        int rc = icae_train_run(c, &callbacks);
        ic_memory_fail_after(-1);
        icae_train_config_free(c);
        if (rc != ICAE_ENOMEM && rc != ICAE_OK)
            fail_msg("after %ld allocations: %d (%s)", n, rc, icae_error_message());
        assert_int_equal(ic_memory_fail_after(-1), live);
    }
}

static void write_texts(void)
{
    static const char *const words[] = {"the",   "old", "house", "by",  "a",
                                        "river", "was", "cold",  "and", "grey"};
    char *text = in_folder("text.jsonl"), *triples = in_folder("triples.jsonl");
    FILE *f = fopen(text, "w"), *g = fopen(triples, "w");
    assert_true(f && g);
    for (uint64_t d = 0; d < 20; d++) {
        fputs("{\"text\": \"", f);
        fputs("{\"context\": \"", g);
        for (uint64_t w = 0; w < 40; w++) {
            const char *word = words[(uint64_t)(ic_random_unit(1, 2, d * 100 + w) * 10)];
            fprintf(f, "%s ", word);
            if (w < 12)
                fprintf(g, "%s ", word);
        }
        fputs("\"}\n", f);
        fputs("\", \"prompt\": \"Where?\", \"answer\": \"there\"}\n", g);
    }
    fclose(f);
    fclose(g);
    ic_free(text);
    ic_free(triples);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    write_texts();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char *command = ic_format("rm -rf %s", folder);
    int rc = system(command);
    ic_free(command);
    return rc;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_files),
        cmocka_unit_test(test_bad_config),
        cmocka_unit_test(test_print_and_presets),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_bad_starts),
        cmocka_unit_test(test_adapter),
        cmocka_unit_test(test_both),
        cmocka_unit_test(test_lm_skip),
        cmocka_unit_test(test_finetune),
        cmocka_unit_test(test_packing),
        cmocka_unit_test(test_plot),
        cmocka_unit_test(test_measure),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests_name("run", tests, setup, teardown);
}
