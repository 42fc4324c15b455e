/*
 * internal.h - what the files of this folder share: the parts of a tokenizer and the text on its
 * way through them.
 *
 * A text becomes ids in this order: added tokens are cut out (added.c), each piece between them is
 * normalised (normalize.c), split (pretokenize.c) and merged (bpe.c); then ids are arranged
 * (postprocess.c). Everything in a tokenizer is immutable after opening; what changes during a call
 * lies in an ic_scratch. PCRE2 is seen by regex.c only, utf8proc by unicode.c only.
 */
#ifndef IC_TEXT_INTERNAL_H
#define IC_TEXT_INTERNAL_H

#include "text/text.h"

#define IC_MAX_ID   (1 << 22) /* ids are below this */
#define IC_NO_TOKEN (-1)

/* ---- characters (unicode.c, unicode_tables.c) ------------------------------------------------- */

typedef enum { IC_NFC, IC_NFD, IC_NFKC, IC_NFKD } ic_form;

/* Appends the normal form of valid UTF-8; linear in size also for long runs of marks. */
int ic_unicode_normalize(ic_buffer *out, const char *text, size_t size, ic_form form);
int ic_unicode_lower(char out[8], uint32_t code); /* bytes written */
bool ic_is_whitespace(uint32_t code);             /* White_Space */
bool ic_is_punctuation(uint32_t code);            /* ASCII symbols, and P as of Unicode 8 */
bool ic_is_numeric(uint32_t code);                /* Nd, Nl, No */
bool ic_is_combining_mark(uint32_t code);         /* M as of Unicode 9 */
/* Characters whose normal form was still unknown to Unicode 9. */
bool ic_is_inert(uint32_t code);
/* A stand-in of the same category and UTF-8 length for a character newer than Unicode 14 (but not
 * newer than 15.1 unless `knows_16`); else `code` itself. */
uint32_t ic_older_character(uint32_t code, bool knows_16);

/* Decodes the character at s of valid UTF-8. */
static inline int ic_next_char(uint32_t *code, const char *s, size_t n)
{
    int length = ic_utf8_decode(code, s, n);
    return length > 0 ? length : -length;
}

/* ---- regular expressions (pattern.c, pattern_class.c, regex.c) -------------------------------- */

/* Rewrites a pattern from the syntax of Oniguruma (what Hugging Face uses) to PCRE2's. */
int ic_pattern_translate(ic_buffer *out, const char *pattern, const char *where);

/* A set of characters on its way: `simple` fits between brackets, `others` are alternatives that
 * each match one character (pattern_class.c). */
typedef struct ic_charset {
    ic_buffer simple, others;
} ic_charset;

int ic_charset_add_other(ic_charset *s, const char *pattern);
/* Adds a class given by its body (what stands between brackets), or its complement. */
int ic_charset_add_body(ic_charset *s, const char *body, bool negated);
/* Appends a pattern that matches one character of the set. */
int ic_charset_write(ic_buffer *out, const ic_charset *s, bool negated);
void ic_charset_free(ic_charset *s);
int ic_class_write(ic_buffer *out, const char *body, bool negated);
/* A name without case, spaces, '-' and '_'; false if it is none. */
bool ic_plain_name(char *out, size_t room, const char *name, size_t size);
/* Bodies of POSIX classes (NULL: none such), of \p{name} (in `room`, checked by PCRE2), and of the
 * letters s w d h. */
const char *ic_class_named(const char *name);
const char *ic_property_body(char room[64], const char *name);
const char *ic_class_of_letter(char letter);

typedef struct ic_regex ic_regex;
typedef struct ic_matcher ic_matcher; /* scratch of one thread */

int ic_regex_new(ic_regex **out, const char *pattern, const char *where);
int ic_regex_new_literal(ic_regex **out, const char *text); /* matches this text */
void ic_regex_free(ic_regex *r);
void ic_regex_as_unicode_15(ic_regex *r); /* characters of Unicode 16 are not assigned yet */
bool ic_regex_is_literal(const ic_regex *r);
bool ic_regex_is_one_char(const ic_regex *r); /* a fixed text of one character */

/* What to match in instead of a text: the same with newer characters replaced by older stand-ins, in
 * `shadow`, or the text itself if that makes no difference. */
int ic_regex_subject(const char **subject, const ic_regex *r, const char *text, size_t size,
                     ic_buffer *shadow);

/* Walks all matches in a text as Oniguruma's find_iter: empty ones count, except right behind the
 * last match. Valid UTF-8 only. */
typedef struct ic_find {
    const ic_regex *regex;
    const char *text;
    size_t size, at, last_end;
    bool any; /* last_end is set */
} ic_find;

int ic_matcher_new(ic_matcher **out);
void ic_matcher_free(ic_matcher *m);
/* 1 and the match, 0 at the end, or an error (ICAE_ELIMIT: the pattern needs too many steps). */
int ic_find_next(size_t *start, size_t *end, ic_find *f, ic_matcher *m);

/* ---- pieces ----------------------------------------------------------------------------------- */

typedef struct ic_span {
    size_t start, size;
} ic_span;

/* A text and where it is cut. `origin`: bytes before it stem from the first character of the whole
 * input (Metaspace's "first" wants to know). */
typedef struct ic_pieces {
    ic_buffer text;
    ic_span *spans;
    size_t count, capacity;
    size_t origin;
} ic_pieces;

int ic_pieces_add(ic_pieces *p, size_t start, size_t size); /* empty spans are dropped */
void ic_pieces_clear(ic_pieces *p);
void ic_pieces_free(ic_pieces *p);

typedef struct ic_event {
    size_t start, end;
    bool match;
} ic_event;

typedef struct ic_symbol {
    int32_t id, previous, next;
    uint32_t start, size; /* in bytes; merged away: size 0 */
} ic_symbol;

typedef struct ic_heap_entry {
    uint64_t key; /* rank, position */
    int32_t id;
} ic_heap_entry;

/* Everything an encode call needs besides the tokenizer. Zero-filled to begin with. */
typedef struct ic_scratch {
    ic_buffer valid, normal, other; /* the input as valid UTF-8; normaliser's two buffers */
    ic_pieces pieces, spare;
    ic_buffer shadow; /* text with newer characters replaced, for matching */
    ic_event *events;
    size_t event_count, event_capacity;
    ic_symbol *symbols;
    size_t symbol_capacity;
    ic_heap_entry *heap;
    size_t heap_count, heap_capacity;
    ic_matcher *matcher;
    ic_ids ids;
} ic_scratch;

/* Steps may lengthen a text, and steps from a hostile file without end: by so many bytes at most,
 * besides a multiple of its size. Beyond is ICAE_ELIMIT. */
#define IC_GROWTH ((size_t)1 << 24)
void ic_scratch_limit(ic_scratch *s, size_t size);
void ic_scratch_free(ic_scratch *s);

/* ---- vocabulary (vocab.c) --------------------------------------------------------------------- */

typedef struct ic_token_text {
    size_t start; /* in the strings */
    uint32_t size;
    bool used;
} ic_token_text;

typedef struct ic_vocab {
    ic_buffer strings; /* each followed by a 0 byte */
    ic_token_text *tokens;
    int32_t size;     /* ids are below */
    int32_t capacity; /* of tokens */
    size_t count;     /* ids in use */
    int32_t *slots;   /* hash table of ids; IC_NO_TOKEN: empty */
    size_t slot_count;
    int32_t bytes[256]; /* ids of <0xXX>, or IC_NO_TOKEN */
    int32_t latin[512]; /* of single characters below U+0200 */
} ic_vocab;

int ic_vocab_new(ic_vocab *v, size_t expected);
/* Sets text of id; `hash` false: only for id to text (duplicate texts). */
int ic_vocab_set(ic_vocab *v, int32_t id, const char *text, size_t size, bool hash);
void ic_vocab_index(ic_vocab *v); /* bytes and latin, when complete */
int32_t ic_vocab_find(const ic_vocab *v, const char *text, size_t size);
const char *ic_vocab_text(const ic_vocab *v, int32_t id, size_t *size); /* NULL: none */
void ic_vocab_free(ic_vocab *v);

/* ---- BPE (bpe.c) ------------------------------------------------------------------------------ */

typedef struct ic_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
} ic_merge;

typedef struct ic_bpe {
    ic_merge *merges; /* hash table */
    size_t merge_slots, merge_count;
    uint64_t *joins; /* hash table of pairs of characters some merge may join; NULL: not known */
    size_t join_slots;
    uint32_t *ranks;     /* by score (GGUF "llama"): rank of every id; NULL: by merges */
    size_t longest;      /* by score: longest token */
    int32_t public_size; /* ids from here on are inner results that are no tokens */
    char *unknown, *prefix, *suffix; /* NULL: none */
    int32_t unknown_id;
    bool fuse_unknown, byte_fallback, ignore_merges;
    bool keep_unknown; /* unknown characters give nothing but keep their neighbours apart */
} ic_bpe;

int ic_bpe_reserve(ic_bpe *b, size_t merges);
int ic_bpe_add_merge(ic_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id,
                     bool replace);
int ic_bpe_index_joins(ic_bpe *b, const ic_vocab *v); /* makes long pieces fast */
int ic_bpe_encode(ic_ids *out, const ic_bpe *b, const ic_vocab *v, const char *text, size_t size,
                  ic_scratch *scratch);
void ic_bpe_free(ic_bpe *b);

/* ---- added tokens (added.c) ------------------------------------------------------------------- */

typedef struct ic_added_token {
    int32_t id;
    char *content, *normal; /* normal NULL: as content */
    size_t size, normal_size;
    bool single_word, lstrip, rstrip, normalized, special;
} ic_added_token;

typedef struct ic_added {
    ic_added_token *tokens;
    size_t count;
    ic_vocab names;                   /* contents and ids */
    const ic_added_token **sorted[2]; /* by text; not normalised, normalised */
    size_t sorted_count[2];
    uint32_t first[2][257]; /* where tokens of a first byte begin in sorted */
    ic_regex *word;         /* for single_word; NULL if nothing needs it */
} ic_added;

typedef int (*ic_piece_fn)(void *user, int32_t id, size_t start, size_t size); /* id or a piece */

/* Cuts a text: calls fn for added tokens (id) and what is between them (IC_NO_TOKEN). */
int ic_added_split(const ic_added *a, int which, const char *text, size_t size, bool skip_special,
                   ic_matcher *m, ic_piece_fn fn, void *user);
void ic_added_free(ic_added *a);

/* ---- steps ------------------------------------------------------------------------------------ */

typedef enum {
    IC_NORMAL_FORM,
    IC_NORMAL_PREPEND,
    IC_NORMAL_REPLACE,
    IC_NORMAL_STRIP,
    IC_NORMAL_LOWERCASE,
    IC_NORMAL_STRIP_ACCENTS,
    IC_NORMAL_NMT,
    IC_NORMAL_BYTE_LEVEL,
} ic_normalizer_kind;

typedef struct ic_normalizer {
    ic_normalizer_kind kind;
    ic_form form;
    bool left, right;
    char *text; /* prepended, or the replacement */
    ic_regex *regex;
} ic_normalizer;

typedef enum {
    IC_REMOVED,
    IC_ISOLATED,
    IC_MERGED_PREVIOUS,
    IC_MERGED_NEXT,
    IC_CONTIGUOUS
} ic_behavior;

typedef enum {
    IC_PRE_BYTE_LEVEL,
    IC_PRE_METASPACE,
    IC_PRE_SPLIT,
    IC_PRE_DIGITS,
    IC_PRE_PUNCTUATION,
    IC_PRE_WHITESPACE_SPLIT,
    IC_PRE_DELIMITER,
    IC_PRE_FIXED_LENGTH,
} ic_pre_kind;

typedef enum { IC_PREPEND_ALWAYS, IC_PREPEND_FIRST, IC_PREPEND_NEVER } ic_prepend;

typedef struct ic_pretokenizer {
    ic_pre_kind kind;
    ic_behavior behavior;
    ic_prepend prepend;
    bool add_prefix_space, split, invert;
    size_t length;
    char replacement[8]; /* one character, followed by 0 */
    ic_regex *regex;     /* split; byte level: NULL if use_regex is false */
} ic_pretokenizer;

typedef enum { IC_POST_TEMPLATE, IC_POST_BERT, IC_POST_ROBERTA } ic_post_kind;

/* Items of a template: the text, the second text (of a pair), or a number of ids and these ids. */
enum { IC_POST_TEXT = -1, IC_POST_SECOND = -2, IC_POST_IDS = -3 };

typedef struct ic_post {
    ic_post_kind kind;
    ic_ids single, pair;
    int32_t cls, sep;
} ic_post;

typedef enum {
    IC_DECODE_BYTE_LEVEL,
    IC_DECODE_METASPACE,
    IC_DECODE_REPLACE,
    IC_DECODE_BYTE_FALLBACK,
    IC_DECODE_FUSE,
    IC_DECODE_STRIP,
    IC_DECODE_BPE,
    IC_DECODE_WORDPIECE,
} ic_decoder_kind;

typedef struct ic_decoder {
    ic_decoder_kind kind;
    char *text; /* replacement, suffix, prefix */
    ic_regex *regex;
    char character[8]; /* metaspace's replacement, strip's content; followed by 0 */
    size_t start, stop;
    bool never, cleanup;
} ic_decoder;

/* What part of a list of ids is decoded. */
typedef struct ic_decode_part {
    bool first;   /* begins the text */
    bool last;    /* ends it */
    size_t *open; /* not last: bytes that wait for the rest of a character (ByteLevel) */
} ic_decode_part;

/* ---- the tokenizer ---------------------------------------------------------------------------- */

/* What a token of a GGUF vocabulary is, as bits: 1 << tokenizer.ggml.token_type, and one more. */
enum {
    IC_TOKEN_UNKNOWN = 1 << 2,
    IC_TOKEN_CONTROL = 1 << 3,
    IC_TOKEN_USER = 1 << 4,
    IC_TOKEN_STRIPS_RIGHT = 1 << 7,
};

/* What only GGUF vocabularies have (gguf_tokenizer.c, gguf_encode.c). */
typedef struct ic_gguf_text {
    bool by_score, space_prefix, add_bos, add_eos;
    unsigned char *types; /* by id */
    int32_t *cut;         /* ids that are found in a text as a whole, longest first */
    size_t cut_count;
} ic_gguf_text;

struct ic_tokenizer {
    char *name;
    ic_vocab vocab;
    ic_bpe bpe;
    ic_added added;
    int32_t size;       /* ids are below: vocabulary and added tokens */
    char **decode_text; /* by id: what decoding starts from if not the vocabulary's text; or NULL */
    unsigned char *special; /* by id: 1 special, 2 left out by skip_special */
    ic_normalizer *normalizers;
    size_t normalizer_count;
    ic_pretokenizer *pretokenizers;
    size_t pretokenizer_count;
    ic_post *posts;
    size_t post_count;
    ic_decoder *decoders;
    size_t decoder_count;
    bool has_decoder; /* without: tokens are joined by spaces */
    ic_gguf_text *gguf;
    int32_t bos, eos;
    char hash[65];
};

ic_tokenizer *ic_tokenizer_new(const char *name); /* empty; NULL without memory */
int ic_tokenizer_hash_parts(ic_tokenizer *t, const void *extra, size_t extra_size);

/* Parsing of the parts of tokenizer.json: `node` may be null. Names fields in messages. */
int ic_normalizers_parse(ic_tokenizer *t, const ic_json *node);
int ic_pretokenizers_parse(ic_tokenizer *t, const ic_json *node);
int ic_posts_parse(ic_tokenizer *t, const ic_json *node);
int ic_decoders_parse(ic_tokenizer *t, const ic_json *node);
int ic_model_parse(ic_tokenizer *t, const ic_json *node);
int ic_added_parse(ic_tokenizer *t, const ic_json *node);
int ic_tokenizer_add_decoder(ic_tokenizer *t, ic_decoder_kind kind, ic_decoder **out);
/* Steps of GGUF tokenizers. */
int ic_tokenizer_add_split(ic_tokenizer *t, const char *pattern, ic_behavior behavior);
int ic_tokenizer_add_byte_level(ic_tokenizer *t);
void ic_normalizers_free(ic_tokenizer *t);
void ic_pretokenizers_free(ic_tokenizer *t);
void ic_posts_free(ic_tokenizer *t);
void ic_decoders_free(ic_tokenizer *t);
void ic_gguf_text_free(ic_gguf_text *g);

/* Runs them. */
/* Normalises scratch->normal in place. *origin: see ic_pieces; `whole`: it begins the input. */
int ic_normalizers_run(const ic_tokenizer *t, ic_scratch *scratch, size_t *origin, bool whole);
int ic_pretokenizers_run(const ic_tokenizer *t, ic_scratch *scratch); /* on scratch->pieces */
int ic_posts_run(ic_ids *out, const ic_tokenizer *t, const ic_ids *ids, bool special);
int ic_decoders_run(ic_buffer *out, const ic_tokenizer *t, const int32_t *ids, size_t count,
                    bool skip_special, ic_decode_part part);
int ic_gguf_encode(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size, bool special,
                   bool untrusted, ic_scratch *scratch);
/* Splits and merges text that holds no added tokens. */
int ic_encode_piece(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                    size_t origin, ic_scratch *scratch);

/* What decoding one id starts from; NULL: nothing. */
const char *ic_decode_source(const ic_tokenizer *t, int32_t id, bool skip_special, size_t *size);
/* Whether the decoder chain lets text go out before the end, and whether an id is one byte of a run
 * that is decoded as a whole. */
bool ic_decoders_can_stream(const ic_tokenizer *t);
int ic_decoders_is_byte(const ic_tokenizer *t, int32_t id, bool first); /* 0, 1, or an error */

/* The 256 characters of byte-level tokenizers (vocab.c). */
int ic_byte_char(char out[4], unsigned char byte); /* UTF-8, not terminated; returns its size */
int ic_char_byte(uint32_t code);                   /* -1: none */
int ic_append_byte_level(ic_buffer *out, const char *text, size_t size);

/* First place of a text in another; NULL: none. */
const char *ic_find_text(const char *text, size_t size, const char *wanted, size_t wanted_size);

/* Grows an array of `size`-byte items to hold `wanted`; at least doubles. */
int ic_grow(void *array, size_t *capacity, size_t wanted, size_t size);

/* The components of a node flattened: calls fn for each leaf of nested "Sequence"s. */
typedef int (*ic_component_fn)(ic_tokenizer *t, const ic_json *node, const char *type);
int ic_each_component(ic_tokenizer *t, const ic_json *node, const char *what, const char *list,
                      ic_component_fn fn);
/* A member that must be a string (or one character). */
int ic_json_need_string(const char **out, const ic_tokenizer *t, const ic_json *node,
                        const char *what, const char *key);
int ic_json_need_char(char out[8], const ic_tokenizer *t, const ic_json *node, const char *what,
                      const char *key);
/* "pattern": {"String": …} or {"Regex": …}. */
int ic_json_need_pattern(ic_regex **out, const ic_tokenizer *t, const ic_json *node,
                         const char *what);
/* A whole number from 0 to `max`. */
int ic_json_need_count(size_t *out, const ic_tokenizer *t, const ic_json *node, const char *what,
                       const char *key, size_t max);

#endif
