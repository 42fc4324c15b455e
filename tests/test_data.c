/*
 * test_data.c - training text: readers, documents, token caches, sources, samples, packing.
 */
#include "train/run.h"

#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

static char folder[] = "/tmp/icae-test-data-XXXXXX";
static icae_model *model;
static char last_notice[2000];
static int notices;

static char *in_folder(const char *name)
{
    char *path = ic_path_join(folder, name);
    assert_non_null(path);
    return path;
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, size, f), size);
    fclose(f);
}

static void write_text(const char *name, const char *text)
{
    char *path = in_folder(name);
    write_file(path, text, strlen(text));
    ic_free(path);
}

static void assert_message(const char *part)
{
    if (!strstr(icae_error_message(), part))
        fail_msg("message '%s' does not say '%s'", icae_error_message(), part);
}

static void note(void *user, bool warning, const char *line)
{
    (void)user, (void)warning;
    snprintf(last_notice, sizeof last_notice, "%s", line);
    notices++;
}

/* ---- reader ----------------------------------------------------------------------------------- */

/* Reads all in pieces of `step`; the result has a 0 behind it. */
static int read_all(ic_buffer *out, const char *path, size_t step)
{
    ic_reader *r;
    char *piece = malloc(step);
    size_t got = 1;
    int rc = ic_reader_open(&r, path);
    out->size = 0;
    while (rc == ICAE_OK && got) {
        rc = ic_reader_read(r, piece, step, &got);
        if (rc == ICAE_OK && got)
            rc = ic_buffer_add(out, piece, got);
        if (rc < 0 || !got)
            break;
    }
    if (rc != ICAE_ENOTFOUND)
        ic_reader_close(r);
    free(piece);
    return rc;
}

static size_t pack_zstd(char *out, size_t room, const char *text, size_t size)
{
    size_t n = ZSTD_compress(out, room, text, size, 3);
    assert_false(ZSTD_isError(n));
    return n;
}

static size_t pack_gzip(char *out, size_t room, const char *text, size_t size)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)text;
    z.avail_in = (unsigned)size;
    z.next_out = (unsigned char *)out;
    z.avail_out = (unsigned)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t n = z.total_out;
    deflateEnd(&z);
    return n;
}

static void test_reader(void **state)
{
    (void)state;
    enum { SIZE = 700001 };
    char *text = malloc(SIZE), *packed = malloc(2 * SIZE), *path = in_folder("stream");
    ic_buffer b = {0};
    for (uint32_t i = 0; i < SIZE; i++)
        text[i] = (char)('a' + (i * 2654435761u >> 27) % 26);
    const size_t steps[] = {1000, 131072, 999983};
    for (int kind = 0; kind < 5; kind++) {
        size_t n = 0, want = SIZE;
        if (kind == 0) {
            memcpy(packed, text, n = SIZE);
        } else if (kind == 1) {
            n = pack_zstd(packed, 2 * SIZE, text, SIZE);
        } else if (kind == 2) {
            n = pack_gzip(packed, 2 * SIZE, text, SIZE);
        } else { /* joined members and frames, and padding behind gzip */
            want = 2 * SIZE;
            for (int i = 0; i < 2; i++)
                n += kind == 3 ? pack_zstd(packed + n, 2 * SIZE - n, text, SIZE)
                               : pack_gzip(packed + n, 2 * SIZE - n, text, SIZE);
            if (kind == 4)
                memset(packed + n, 0, 512), n += 512;
        }
        write_file(path, packed, n);
        for (size_t s = 0; s < IC_COUNT(steps); s++) {
            assert_int_equal(read_all(&b, path, steps[s]), ICAE_OK);
            assert_int_equal(b.size, want);
            assert_memory_equal(b.data, text, SIZE);
            assert_memory_equal(b.data + b.size - SIZE, text, SIZE);
        }
        if (kind == 1 || kind == 2) { /* cut short, damaged */
            write_file(path, packed, n / 2);
            assert_int_equal(read_all(&b, path, 5000), ICAE_EFORMAT);
            assert_message("cut short");
            packed[n / 2] ^= 0x55;
            packed[n / 2 + 1] ^= 0x33;
            write_file(path, packed, n);
            assert_int_equal(read_all(&b, path, 5000), ICAE_EFORMAT);
        }
    }
    write_file(path, "", 0);
    assert_int_equal(read_all(&b, path, 10), ICAE_OK);
    assert_int_equal(b.size, 0);
    assert_int_equal(read_all(&b, "/nonexistent/file", 10), ICAE_ENOTFOUND);
    ic_buffer_free(&b);
    ic_free(path);
    free(text);
    free(packed);
}

/* ---- documents -------------------------------------------------------------------------------- */

static int count_documents(const char *name, int *pieces)
{
    ic_lines *l;
    ic_document d;
    bool more;
    int n = 0;
    char *path = in_folder(name);
    *pieces = 0;
    assert_int_equal(ic_lines_open(&l, path), ICAE_OK);
    for (;;) {
        assert_int_equal(ic_lines_next(l, &d, &more), ICAE_OK);
        if (!more)
            break;
        n += !d.goes_on;
        ++*pieces;
        ic_free(d.data);
    }
    ic_lines_close(l);
    ic_free(path);
    return n;
}

static void test_lines(void **state)
{
    (void)state;
    int pieces;
    write_text("a.jsonl",
               "\xef\xbb\xbf{\"text\": \"a\"}\n\n  \r\n{\"text\": \"b\"}\r\n{\"text\": \"c\"}");
    assert_int_equal(count_documents("a.jsonl", &pieces), 3);
    write_text("a.txt", "{\"text\": 1}\nnot JSON, by its name\n");
    assert_int_equal(count_documents("a.txt", &pieces), 1);
    write_text("a.data", "\n {\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    assert_int_equal(count_documents("a.data", &pieces), 2);
    write_text("empty.jsonl", "\n\n \n");
    assert_int_equal(count_documents("empty.jsonl", &pieces), 0);
    /* A long plain text comes in pieces that end at blank lines, and is one document. */
    ic_buffer b = {0};
    while (b.size < 3500000)
        assert_int_equal(ic_buffer_addf(&b, "A paragraph of some length, number %zu.\n\n", b.size),
                         0);
    char *path = in_folder("long.txt");
    write_file(path, b.data, b.size);
    assert_int_equal(count_documents("long.txt", &pieces), 1);
    assert_int_equal(pieces, 4);
    ic_free(path);
    ic_buffer_free(&b);
}

/* ---- caches and sources ----------------------------------------------------------------------- */

static ic_reading reading(void)
{
    return (ic_reading){.tokenizer = model->tokenizer,
                        .vocabulary = model->config.vocabulary,
                        .folder = folder,
                        .notice = note};
}

static void assert_document(const ic_corpus *c, uint64_t d, int part, const char *text)
{
    ic_ids ids = {0};
    int32_t got[256];
    assert_int_equal(
        ic_tokenizer_encode_untrusted(&ids, model->tokenizer, text, strlen(text), false), 0);
    assert_int_equal(ic_corpus_count(c, d, part), ids.count);
    assert_true(ids.count <= 256);
    assert_int_equal(ic_corpus_read(got, c, ic_corpus_start(c, d, part), (int)ids.count,
                                    model->config.vocabulary),
                     0);
    if (ids.count)
        assert_memory_equal(got, ids.ids, ids.count * sizeof *got);
    ic_ids_free(&ids);
}

static const char mixed[] =
    "{\"text\": \"One text.\"}\n"
    "{\"context\": \"A context.\", \"prompt\": \"What?\", \"answer\": \"That.\"}\n"
    "{\"text\": \"\"}\n"
    "{broken\n"
    "{\"input\": \"Another.\", \"prompt\": \"Who?\", \"response\": \"She.\"}\n"
    "{\"title\": \"no text\"}\n"
    "{\"input\": \"Another.\", \"prompt\": \"Who?\"}\n"
    "{\"text\": 7}\n"
    "[1]\n";

static void test_cache(void **state)
{
    (void)state;
    ic_corpus c;
    ic_reading r = reading();
    char *path = in_folder("mixed.jsonl"), *other = in_folder("same-content.jsonl");
    write_file(path, mixed, sizeof mixed - 1);
    for (int time = 0; time < 2; time++) { /* made, then found */
        notices = 0;
        assert_int_equal(ic_corpus_open(&c, path, &r), ICAE_OK);
        assert_int_equal(c.documents, 3);
        assert_int_equal(c.triples, 2);
        assert_int_equal(c.lines, 9);
        assert_int_equal(c.skipped, 6);
        assert_int_equal(notices, time ? 1 : 6);
        assert_document(&c, 0, 0, "One text.");
        assert_document(&c, 0, 1, "");
        assert_document(&c, 1, 0, "A context.");
        assert_document(&c, 1, 1, "What?");
        assert_document(&c, 1, 2, "That.");
        assert_document(&c, 2, 2, "She.");
        ic_corpus_close(&c);
    }
    if (!strstr(last_notice, "line 3: the text is empty"))
        fail_msg("%s", last_notice);
    /* strict stops at the first bad line, with and without a cache */
    r.strict = true;
    assert_int_equal(ic_corpus_open(&c, path, &r), ICAE_EFORMAT);
    assert_message("line 3");
    write_file(other, mixed, sizeof mixed - 2);
    assert_int_equal(ic_corpus_open(&c, other, &r), ICAE_EFORMAT);
    assert_message("same-content.jsonl:3: the text is empty");
    /* content decides, not the name; other content is another cache */
    r.strict = false;
    write_file(other, mixed, sizeof mixed - 1);
    notices = 0;
    assert_int_equal(ic_corpus_open(&c, other, &r), ICAE_OK);
    assert_int_equal(notices, 1);
    char cache[4096];
    snprintf(cache, sizeof cache, "%s", c.file.path);
    ic_corpus_close(&c);
    /* a damaged cache is made again */
    assert_int_equal(truncate(cache, 9000), 0);
    assert_int_equal(ic_corpus_open(&c, other, &r), ICAE_OK);
    assert_int_equal(c.documents, 3);
    ic_corpus_close(&c);
    ic_free(path);
    ic_free(other);
}

static ic_list list_of(char **items, size_t count)
{
    return (ic_list){items, count};
}

static void test_data(void **state)
{
    (void)state;
    ic_data *d;
    ic_reading r = reading();
    char *items[2];
    write_text("part1.jsonl", "{\"text\": \"first\"}\n{\"text\": \"second\"}\n");
    write_text("part2.jsonl", "{\"text\": \"third\"}\n");
    write_text("part3.jsonl", "\n");
    items[0] = ic_format("%s/part?.jsonl:2.5", folder);
    items[1] = ic_format("%s/mixed.jsonl", folder);
    ic_list l = list_of(items, 2);
    assert_int_equal(ic_data_open(&d, &l, &r), ICAE_OK);
    assert_int_equal(d->sources, 2);
    assert_int_equal(d->files, 3);
    assert_int_equal(d->documents, 6);
    assert_int_equal(d->triples, 2);
    assert_int_equal(d->skipped, 6);
    assert_true(d->source[0].weight == 2.5);
    ic_data_close(d);
    static const struct {
        const char *entry, *message;
        int code;
    } bad[] = {
        {"%s/part3.jsonl", "no usable document", ICAE_EINVAL},
        {"%s/nothing*.jsonl", "there is no file", ICAE_ENOTFOUND},
        {"%s/part1.jsonl:0", "a weight is more than 0", ICAE_EINVAL},
        {"%s", "is a folder", ICAE_EINVAL},
    };
    for (size_t i = 0; i < IC_COUNT(bad); i++) {
        char *entry = ic_alloc(200, 1);
        const char *tail = bad[i].entry + 2;
        snprintf(entry, 200, "%s%s", folder, tail);
        l = list_of(&entry, 1);
        assert_int_equal(ic_data_open(&d, &l, &r), bad[i].code);
        assert_message(bad[i].message);
        ic_free(entry);
    }
    ic_free(items[0]);
    ic_free(items[1]);
}

/* ---- samples ---------------------------------------------------------------------------------- */

static void test_permute(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 70; n += 3)
        for (uint64_t round = 0; round < 3; round++) {
            char seen[70] = {0};
            for (uint64_t i = 0; i < n; i++) {
                uint64_t x = ic_permute(i, n, 5, round);
                assert_true(x < n && !seen[x]);
                seen[x] = 1;
            }
        }
    int same = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        assert_true(ic_permute(i, 1000000007u, 1, 0) < 1000000007u);
        same += ic_permute(i, 1000, 1, 0) == ic_permute(i, 1000, 1, 1);
    }
    assert_true(same < 20);
}

typedef struct fixture {
    icae_train_config *config;
    icae_adapter adapter;
    ic_data *data;
    ic_sampler *sampler;
} fixture;

static int open_fixture(fixture *f, icae_train_stage stage, const char *const *settings)
{
    ic_reading r = reading();
    int rc = icae_train_config_new(&f->config, stage);
    assert_int_equal(rc, ICAE_OK);
    char *data = in_folder("mixed.jsonl");
    assert_int_equal(icae_train_config_set(f->config, "preset", "none"), 0);
    assert_int_equal(icae_train_config_set(f->config, "k", "8"), 0);
    for (; *settings; settings += 2) {
        if (icae_train_config_set(f->config, settings[0], settings[1]) < 0)
            fail_msg("%s", icae_error_message());
    }
    const ic_settings *s = &f->config->s;
    if (!s->data.count)
        assert_int_equal(icae_train_config_set(f->config, "data", data), 0);
    ic_free(data);
    f->adapter = (icae_adapter){.k = (int)s->k,
                                .rate = (float)s->rate,
                                .lm_token = s->lm_token,
                                .bos = s->bos,
                                .spread = strcmp(s->positions, "spread") == 0,
                                .proportional = strcmp(s->slots, "proportional") == 0,
                                .model = model};
    if (ic_data_open(&f->data, &s->data, &r) < 0)
        fail_msg("%s", icae_error_message());
    return ic_sampler_new(&f->sampler, s, model, &f->adapter, f->data, 3, note, NULL);
}

static void close_fixture(fixture *f)
{
    ic_sampler_free(f->sampler);
    ic_data_close(f->data);
    icae_train_config_free(f->config);
    *f = (fixture){0};
}

/* Documents of known tokens: the ids of "w0 w1 w2 …" are what they are, so compare with the corpus. */
static void write_corpus(const char *name, int documents, int words)
{
    ic_buffer b = {0};
    for (int d = 0; d < documents; d++) {
        assert_int_equal(ic_buffer_addf(&b, "{\"text\": \""), 0);
        for (int w = 0; w < words * (d + 1); w++)
            assert_int_equal(ic_buffer_addf(&b, "w%d ", (d * 31 + w * 17) % 100), 0);
        assert_int_equal(ic_buffer_addf(&b, "\"}\n"), 0);
    }
    char *path = in_folder(name);
    write_file(path, b.data, b.size);
    ic_free(path);
    ic_buffer_free(&b);
}

static void test_sampler(void **state)
{
    (void)state;
    fixture f = {0};
    char *data = in_folder("corpus.jsonl");
    write_corpus("corpus.jsonl", 12, 40);
    const char *settings[] = {"data",         data,  "max_tokens", "96",  "min_tokens", "8",
                              "multi_share",  "0.5", "rates",      "2,4", "lm_token",   "true",
                              "continuation", "80",  "lm_skip",    "3",   NULL};
    assert_int_equal(open_fixture(&f, ICAE_PRETRAIN, settings), ICAE_OK);
    int ae = 0, lm = 0, multi = 0, slow = 0, shortest = 1000, longest = 0, starts = 0;
    for (uint64_t i = 0; i < 400; i++) {
        ic_item o, again;
        ic_example e;
        ic_sampler_draw(f.sampler, &o, i, IC_OBJECTIVES, 0, 1);
        ic_sampler_draw(f.sampler, &again, i, IC_OBJECTIVES, 0, 1);
        assert_memory_equal(&o, &again, sizeof o);
        assert_true(o.tokens >= 1 && o.tokens <= 96);
        uint64_t start = ic_corpus_start(o.corpus, o.document, 0);
        uint64_t end = start + ic_corpus_count(o.corpus, o.document, 0);
        assert_true(o.first >= start && o.first + (uint64_t)(o.tokens + o.continuation) <= end);
        int32_t *ids = ic_alloc(ic_item_ids(f.sampler, &o), sizeof *ids);
        assert_int_equal(ic_sampler_fill(f.sampler, &o, ids, &e), ICAE_OK);
        assert_int_equal(e.tokens, o.tokens);
        assert_int_equal(e.before_count, 0);
        assert_int_equal(o.cost, e.tokens + e.after_count);
        assert_int_equal(o.targets, e.after_count - e.unscored);
        if (o.objective == IC_OBJECTIVE_AE) {
            assert_int_equal(e.after[0], IC_AE);
            assert_memory_equal(e.after + 1, e.context, (size_t)e.tokens * sizeof *ids);
            assert_int_equal(e.after[e.after_count - 1], model->config.eos[0]);
            assert_int_equal(e.unscored, 1);
        } else {
            assert_int_equal(o.objective, IC_OBJECTIVE_LM);
            assert_true(o.continuation > 64 && o.continuation <= 80);
            assert_int_equal(e.after[0], IC_LM);
            assert_int_equal(e.unscored, 4);
            int32_t next;
            assert_int_equal(
                ic_corpus_read(&next, o.corpus, o.first + (uint64_t)o.tokens, 1, 1 << 20), 0);
            assert_int_equal(e.after[1], next);
        }
        ae += o.objective == IC_OBJECTIVE_AE;
        lm += o.objective == IC_OBJECTIVE_LM;
        multi += o.tokens > 8 * (int)o.rate;
        slow += o.rate == 2;
        shortest = IC_MIN(shortest, o.tokens);
        longest = IC_MAX(longest, o.tokens);
        starts += o.first == start;
        ic_free(ids);
    }
    assert_true(ae > 140 && lm > 140 && multi > 150 && multi < 250 && slow > 150 && slow < 250);
    assert_true(shortest < 12 && longest > 90 && starts > 30 && starts < 250);
    /* growing lengths: at a tenth of the reach nothing is long */
    for (uint64_t i = 0; i < 50; i++) {
        ic_item o;
        ic_sampler_draw(f.sampler, &o, i, IC_OBJECTIVE_AE, 4, 0.1);
        assert_true(o.tokens <= 8 + 9);
    }
    close_fixture(&f);
    ic_free(data);
}

/* An epoch visits every document; a source of weight 3 three times as often. */
static void test_epoch(void **state)
{
    (void)state;
    fixture f = {0};
    write_text("q1.jsonl", "{\"context\": \"one two\", \"prompt\": \"a\", \"answer\": \"b\"}\n"
                           "{\"context\": \"three four\", \"prompt\": \"c\", \"answer\": \"d\"}\n");
    write_text("q2.jsonl", "{\"context\": \"five six\", \"prompt\": \"e\", \"answer\": \"f\"}\n");
    char *data = ic_format("%s/q1.jsonl,%s/q2.jsonl:3", folder, folder);
    const char *settings[] = {"data", data, "min_tokens", "1", NULL};
    assert_int_equal(open_fixture(&f, ICAE_FINETUNE, settings), ICAE_OK);
    for (uint64_t epoch = 0; epoch < 4; epoch++) {
        int seen[3] = {0};
        for (uint64_t i = 0; i < 5; i++) {
            ic_item o;
            ic_example e;
            int32_t ids[200];
            ic_sampler_draw(f.sampler, &o, epoch * 5 + i, IC_OBJECTIVES, 0, 1);
            assert_int_equal(o.objective, IC_OBJECTIVE_FT);
            assert_true(ic_item_ids(f.sampler, &o) <= 200);
            assert_int_equal(ic_sampler_fill(f.sampler, &o, ids, &e), ICAE_OK);
            assert_int_equal(e.after[0], IC_FT);
            assert_int_equal(e.before_count, f.sampler->left.count);
            assert_int_equal(e.unscored, 1 + o.prompt + (int)f.sampler->right.count);
            assert_int_equal(e.after_count, e.unscored + o.answer + 1);
            assert_int_equal(o.targets, o.answer + 1);
            seen[o.corpus == &f.data->source[0].file[0] ? o.document : 2]++;
        }
        assert_int_equal(seen[0], 1);
        assert_int_equal(seen[1], 1);
        assert_int_equal(seen[2], 3);
    }
    close_fixture(&f);
    ic_free(data);
}

static void test_limits(void **state)
{
    (void)state;
    fixture f = {0};
    char *data = in_folder("corpus.jsonl");
    const char *pretrain[] = {"data", data, "max_tokens", "100000", "lm_weight", "0", NULL};
    notices = 0;
    assert_int_equal(open_fixture(&f, ICAE_PRETRAIN, pretrain), ICAE_OK);
    assert_true(f.sampler->max_tokens < model->config.max_positions);
    assert_true(strstr(last_notice, "max_tokens: 100000 is too long") != NULL);
    assert_int_equal(notices, 1);
    for (uint64_t i = 0; i < 40; i++) {
        ic_item o;
        ic_sampler_draw(f.sampler, &o, i, IC_OBJECTIVES, 0, 1);
        int slots = 8 * ic_segment_count(&f.adapter, o.rate, (uint64_t)o.tokens);
        assert_true(slots + o.tokens + 2 <= model->config.max_positions);
    }
    close_fixture(&f);
    const char *wide[] = {"data", data, "k", "2040", NULL};
    assert_int_equal(open_fixture(&f, ICAE_PRETRAIN, wide), ICAE_ELIMIT);
    assert_message("do not fit into the 2048 positions");
    close_fixture(&f);
    const char *questions[] = {"data", data, NULL};
    assert_int_equal(open_fixture(&f, ICAE_FINETUNE, questions), ICAE_EINVAL);
    assert_message("no document has a prompt and an answer");
    close_fixture(&f);
    const char *skip[] = {"data", data, "longer", "skip", "max_tokens", "20", NULL};
    assert_int_equal(open_fixture(&f, ICAE_PRETRAIN, skip), ICAE_EINVAL);
    assert_message("every document is longer");
    close_fixture(&f);
    const char *cut[] = {"data", data, "longer", "cut", "max_tokens", "20", "lm_weight", "0", NULL};
    assert_int_equal(open_fixture(&f, ICAE_PRETRAIN, cut), ICAE_OK);
    assert_int_equal(f.sampler->longer, 12);
    for (uint64_t i = 0; i < 20; i++) {
        ic_item o;
        ic_sampler_draw(f.sampler, &o, i, IC_OBJECTIVES, 0, 1);
        assert_int_equal(o.first, ic_corpus_start(o.corpus, o.document, 0));
    }
    close_fixture(&f);
    ic_free(data);
}

/* A prompt that leaves no room for its context cuts it; one that fits nothing is left out, and told. */
static void test_long_prompts(void **state)
{
    (void)state;
    fixture f = {0};
    ic_buffer b = {0};
    const int context[] = {10, 600, 10}, prompt[] = {10, 600, 1500};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ic_buffer_addf(&b, "{\"context\": \""), 0);
        for (int w = 0; w < context[i]; w++)
            assert_int_equal(ic_buffer_addf(&b, "word "), 0);
        assert_int_equal(ic_buffer_addf(&b, "\", \"prompt\": \""), 0);
        for (int w = 0; w < prompt[i]; w++)
            assert_int_equal(ic_buffer_addf(&b, "word "), 0);
        assert_int_equal(ic_buffer_addf(&b, "\", \"answer\": \"yes\"}\n"), 0);
    }
    char *data = in_folder("long-prompts.jsonl");
    write_file(data, b.data, b.size);
    const char *settings[] = {"data", data, "max_tokens", "400", "positions", "spread", NULL};
    assert_int_equal(open_fixture(&f, ICAE_FINETUNE, settings), ICAE_OK);
    assert_int_equal(f.sampler->cut + f.sampler->unusable, 2);
    assert_true(f.sampler->unusable >= 1);
    for (uint64_t i = 0; i < 9; i++) {
        ic_item o;
        ic_sampler_draw(f.sampler, &o, i, IC_OBJECTIVES, 0, 1);
        assert_true(o.tokens > 0 && o.document != 2);
        assert_true((int)f.sampler->left.count + o.tokens + 2 + o.prompt + o.answer +
                        (int)f.sampler->right.count <=
                    model->config.max_positions);
    }
    close_fixture(&f);
    ic_buffer_free(&b);
    ic_free(data);
}

static void test_pack(void **state)
{
    (void)state;
    ic_item items[40] = {0};
    ic_micro one[40], two[40], many[40];
    int total = 0;
    for (int i = 0; i < 40; i++)
        total += items[i].cost = 20 + i * 7 % 50;
    int n = ic_pack(one, items, 40, 200, 1), m = ic_pack(two, items, 40, 200, 3), next = 0;
    assert_int_equal(n, m);
    int64_t cost[3] = {0};
    for (int i = 0; i < n; i++) {
        assert_int_equal(one[i].first, next);
        assert_int_equal(one[i].first, two[i].first); /* the number of processes changes no batch */
        assert_true(one[i].cost <= 200);
        next += one[i].count;
        cost[two[i].rank] += two[i].cost;
    }
    assert_int_equal(next, 40);
    for (int r = 0; r < 3; r++)
        assert_true(cost[r] > total / 4 && cost[r] < total / 2);
    assert_int_equal(ic_pack(many, items, 40, 1 << 30, 1), 1);
    assert_true(ic_pack(many, items, 40, 1 << 30, 4) >= 4); /* every process has something to do */
    assert_int_equal(ic_pack(many, items, 40, 1, 1), 40);   /* nothing is smaller than a sample */
    assert_int_equal(ic_pack(many, items, 2, 1 << 30, 4), 2);
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    return icae_model_open(&model, ICAE_TEST_DIR "/golden/llama", NULL);
}

static int teardown(void **state)
{
    (void)state;
    icae_model_free(model);
    char *command = ic_format("rm -rf %s", folder);
    int rc = system(command);
    ic_free(command);
    return rc;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reader),       cmocka_unit_test(test_lines),
        cmocka_unit_test(test_cache),        cmocka_unit_test(test_data),
        cmocka_unit_test(test_permute),      cmocka_unit_test(test_sampler),
        cmocka_unit_test(test_epoch),        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_long_prompts), cmocka_unit_test(test_pack),
    };
    return cmocka_run_group_tests_name("data", tests, setup, teardown);
}
