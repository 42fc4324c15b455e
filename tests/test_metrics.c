/*
 * test_metrics.c - BLEU, ROUGE and SQuAD's scores equal those of the reference packages on 500 pairs
 * (tools/make_metric_goldens.py made them); facts are found where they stand.
 */
#include "golden.h"

#include "eval/metrics.h"

#define CLOSE 1e-6

/* The lines of the golden file: the first describes the rest. */
static ic_json **lines;
static size_t count;

static int open_goldens(void **state)
{
    (void)state;
    ic_map map;
    ic_buffer text = {0};
    MUST(ic_map_open(&map, ICAE_TEST_DIR "/data/eval/metrics.jsonl.gz"));
    MUST(ic_decompress(&text, map.data, map.size, "metrics.jsonl.gz"));
    ic_map_close(&map);
    lines = ic_alloc(600, sizeof *lines);
    for (char *at = text.data, *end; (end = strchr(at, '\n')) && count < 600; at = end + 1)
        MUST(ic_json_parse(&lines[count++], at, (size_t)(end - at), "metrics.jsonl.gz"));
    ic_buffer_free(&text);
    return count == 501 ? 0 : -1;
}

static int close_goldens(void **state)
{
    (void)state;
    for (size_t i = 0; i < count; i++)
        ic_json_free(lines[i]);
    ic_free(lines);
    return 0;
}

static void near(size_t line, const char *what, double is, double wanted)
{
    if (fabs(is - wanted) <= CLOSE)
        return;
    print_error("pair %zu, %s: %.9f, wanted %.9f\n", line, what, is, wanted);
    fail();
}

typedef struct pair {
    const char *candidate, *reference;
    size_t candidate_size, reference_size;
} pair;

static pair pair_of(size_t i)
{
    pair p = {ic_json_string(ic_json_get(lines[i], "candidate")),
              ic_json_string(ic_json_get(lines[i], "reference")), 0, 0};
    p.candidate_size = strlen(p.candidate);
    p.reference_size = strlen(p.reference);
    return p;
}

static void test_bleu(void **state)
{
    (void)state;
    ic_bleu all = {0}, some = {0};
    const ic_json *part = ic_json_first(ic_json_get(lines[0], "corpus_of_25"));
    for (size_t i = 1; i < count; i++) {
        pair p = pair_of(i);
        ic_bleu one = {0};
        MUST(ic_bleu_add(&one, p.candidate, p.candidate_size, p.reference, p.reference_size));
        MUST(ic_bleu_add(&some, p.candidate, p.candidate_size, p.reference, p.reference_size));
        MUST(ic_bleu_add(&all, p.candidate, p.candidate_size, p.reference, p.reference_size));
        near(i, "sentence BLEU", ic_bleu_score(&one, true),
             ic_json_number(ic_json_get(lines[i], "bleu"), -1));
        if (i % 25 == 0) {
            near(i, "corpus BLEU", ic_bleu_score(&some, false), ic_json_number(part, -1));
            part = ic_json_next(part);
            some = (ic_bleu){0};
        }
    }
    near(0, "corpus BLEU", ic_bleu_score(&all, false),
         ic_json_number(ic_json_get(lines[0], "corpus"), -1));
    some = (ic_bleu){0};
    MUST(ic_bleu_add(&some, "a b c", 5, "a b x", 5));
    MUST(ic_bleu_add(&some, "d e", 3, "d e", 3));
    near(0, "BLEU of a corpus without 4-grams", ic_bleu_score(&some, false),
         ic_json_number(ic_json_get(lines[0], "short_corpus"), -1));
}

static void near_overlap(size_t line, const char *what, ic_overlap is, const ic_json *wanted)
{
    const ic_json *p = ic_json_first(wanted), *r = ic_json_next(p), *f = ic_json_next(r);
    near(line, what, is.precision, ic_json_number(p, -1));
    near(line, what, is.recall, ic_json_number(r, -1));
    near(line, what, is.f, ic_json_number(f, -1));
}

static void test_rouge(void **state)
{
    (void)state;
    for (size_t i = 1; i < count; i++) {
        pair p = pair_of(i);
        ic_rouge r;
        MUST(ic_rouge_score(&r, p.candidate, p.candidate_size, p.reference, p.reference_size));
        const ic_json *one = ic_json_first(ic_json_get(lines[i], "rouge"));
        near_overlap(i, "ROUGE-1", r.one, one);
        near_overlap(i, "ROUGE-2", r.two, ic_json_next(one));
        near_overlap(i, "ROUGE-L", r.l, ic_json_next(ic_json_next(one)));
    }
}

static void test_squad(void **state)
{
    (void)state;
    for (size_t i = 1; i < count; i++) {
        pair p = pair_of(i);
        ic_squad s;
        MUST(ic_squad_score(&s, p.candidate, p.candidate_size, p.reference, p.reference_size));
        near(i, "exact match", s.exact, ic_json_number(ic_json_get(lines[i], "exact"), -1));
        near(i, "F1", s.f1, ic_json_number(ic_json_get(lines[i], "f1"), -1));
    }
}

/* Bytes that are no UTF-8 are scored, not refused. */
static void test_bytes(void **state)
{
    (void)state;
    ic_bleu b = {0};
    ic_rouge r;
    ic_squad s;
    const char x[] = "\xff\xfe a \xe2\x82 b\0c d e f";
    MUST(ic_bleu_add(&b, x, sizeof x - 1, x, sizeof x - 1));
    near(0, "BLEU of bytes", ic_bleu_score(&b, true), 1);
    MUST(ic_rouge_score(&r, x, sizeof x - 1, x, sizeof x - 1));
    near(0, "ROUGE of bytes", r.l.f, 1);
    MUST(ic_squad_score(&s, x, sizeof x - 1, x, sizeof x - 1));
    near(0, "F1 of bytes", s.f1, 1);
}

static void check_facts(ic_fact_kind kind, const char *text, const char *restored, uint64_t found,
                        uint64_t kept)
{
    ic_facts f = {0};
    MUST(ic_facts_compare(&f, text, strlen(text), restored, strlen(restored)));
    if (f.found[kind] != found || f.kept[kind] != kept) {
        print_error("%s in \"%s\": %d found, %d kept\n", ic_fact_names[kind], text,
                    (int)f.found[kind], (int)f.kept[kind]);
        fail();
    }
}

static void test_facts(void **state)
{
    (void)state;
    check_facts(IC_FACT_NUMBER, "It cost 1,284.50 or 3, not 40%.",
                "It cost 1,284.50 or 2, not 40%.", 3, 2);
    check_facts(IC_FACT_NUMBER, "3 and 3 and 3", "3 and 3", 3, 2);
    check_facts(IC_FACT_DATE, "On 3 May 1912 and 1912-05-03, May 4, 1913, in 1914.",
                "On 3 May 1912 and 1912-05-04, May 4, 1913, in 1914.", 4, 3);
    check_facts(IC_FACT_NAME, "The keeper Anna Smith met Dr. Brown. He left Paris.",
                "The keeper Anna Smyth met Dr. Brown. He left Paris.", 3, 2);
    check_facts(IC_FACT_URL, "See https://example.org/a_b?c=d, or write to me@example.org.",
                "See https://example.org/a_b?c=e, or write to me@example.org.", 2, 1);
    check_facts(IC_FACT_IDENTIFIER, "call snake_case or camelCase, std::move(x), size() and plain",
                "call snake_case or camelcase, std::move(x), size() and plain", 4, 3);
    check_facts(IC_FACT_NUMBER, "none here", "", 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bleu),  cmocka_unit_test(test_rouge), cmocka_unit_test(test_squad),
        cmocka_unit_test(test_bytes), cmocka_unit_test(test_facts),
    };
    return cmocka_run_group_tests(tests, open_goldens, close_goldens);
}
