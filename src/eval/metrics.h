/*
 * metrics.h - how alike two texts are, by the definitions of the tools that papers use.
 *
 * BLEU equals sacrebleu's (13a tokens, smoothing "exp"), ROUGE equals rouge-score's (its tokens, no
 * stemmer), exact match and F1 equal SQuAD's. Pure functions of bytes; they know nothing of models.
 * Values lie between 0 and 1.
 */
#ifndef IC_METRICS_H
#define IC_METRICS_H

#include "text/text.h"

/* ---- words (words.c) -------------------------------------------------------------------------- */

/* The words of a text and, once numbered, which are equal. */
typedef struct ic_words {
    const char **word;
    uint32_t *size, *id;
    size_t count, capacity;
    ic_buffer text; /* what the words point into, if it was made here */
} ic_words;

/* Splits at Unicode white space. The text is borrowed. */
int ic_words_split(ic_words *w, const char *text, size_t size);
int ic_words_add(ic_words *w, const char *word, size_t size);
/* Equal words get equal ids, in both lists. */
int ic_words_number(ic_words *a, ic_words *b);
void ic_words_free(ic_words *w);

/* N-grams that a and b have in common, each counted as often as in the list that has it less. */
int ic_words_common(uint64_t *common, const ic_words *a, const ic_words *b, size_t n);

/* ---- scores ----------------------------------------------------------------------------------- */

/* What BLEU needs to know of a pair, or of many pairs added up. */
typedef struct ic_bleu {
    uint64_t candidate, reference; /* words */
    uint64_t correct[4], total[4]; /* n-grams */
} ic_bleu;

/* Adds one pair. */
int ic_bleu_add(ic_bleu *b, const char *candidate, size_t candidate_size, const char *reference,
                size_t reference_size);
/* `sentence`: n stops at the longest n-gram that the candidate has (sacrebleu's effective order). */
double ic_bleu_score(const ic_bleu *b, bool sentence);

typedef struct ic_overlap {
    double precision, recall, f;
} ic_overlap;

typedef struct ic_rouge {
    ic_overlap one, two, l;
} ic_rouge;

int ic_rouge_score(ic_rouge *out, const char *candidate, size_t candidate_size,
                   const char *reference, size_t reference_size);

typedef struct ic_squad {
    double exact, f1;
} ic_squad;

int ic_squad_score(ic_squad *out, const char *candidate, size_t candidate_size,
                   const char *reference, size_t reference_size);
/* Lower case, without punctuation, articles and double spaces: what SQuAD compares. */
int ic_squad_normalize(ic_buffer *out, const char *text, size_t size);

/* Appends the text in lower case. */
int ic_text_lower(ic_buffer *out, const char *text, size_t size);

/* ---- facts (facts.c) -------------------------------------------------------------------------- */

typedef enum {
    IC_FACT_NUMBER,     /* 3, 1,284.5, 40% */
    IC_FACT_DATE,       /* 3 May 1912, 1912-05-03, May 3, 1912, years 1000 to 2099 */
    IC_FACT_NAME,       /* capitalised words that do not start a sentence */
    IC_FACT_URL,        /* addresses of web pages and mail */
    IC_FACT_IDENTIFIER, /* snake_case, camelCase, call(), a::b */
    IC_FACT_KINDS
} ic_fact_kind;

extern const char *const ic_fact_names[IC_FACT_KINDS];

/* Facts of each kind found in `text`, and how many of them `restored` has as well (as often). */
typedef struct ic_facts {
    uint64_t found[IC_FACT_KINDS], kept[IC_FACT_KINDS];
} ic_facts;

int ic_facts_compare(ic_facts *out, const char *text, size_t size, const char *restored,
                     size_t restored_size);

#endif
