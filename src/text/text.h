/*
 * text.h - tokenizers and chat templates.
 *
 * Token for token equal to Hugging Face's tokenizers (tokenizer.json) and llama.cpp's (GGUF). Text is
 * bytes; what is not UTF-8 is read as U+FFFD, as those do. Knows nothing of weights. Includes
 * format.h and base.h; PCRE2 and utf8proc are included by one .c file here each.
 */
#ifndef IC_TEXT_H
#define IC_TEXT_H

#include "format/format.h"

typedef struct ic_tokenizer ic_tokenizer; /* immutable; may be shared by threads */

/* Growing list of ids. */
typedef struct ic_ids {
    int32_t *ids;
    size_t count, capacity;
} ic_ids;

int ic_ids_add(ic_ids *list, int32_t id);
int ic_ids_append(ic_ids *list, const int32_t *ids, size_t count);
void ic_ids_free(ic_ids *list);

/* From a tokenizer.json (by path). An unknown component is ICAE_EUNSUPPORTED, by its name. */
int ic_tokenizer_open(ic_tokenizer **out, const char *path);
int ic_tokenizer_parse(ic_tokenizer **out, const char *json, size_t size, const char *name);
/* From GGUF metadata: tokenizer.ggml.model "llama" (sentencepiece BPE by score) or "gpt2". */
int ic_tokenizer_from_gguf(ic_tokenizer **out, const ic_gguf *g);
void ic_tokenizer_free(ic_tokenizer *t);

/* Appends the ids of a text. `special`: run the post-processor (bos and the like). Added tokens
 * written out in the text are recognised unless `plain_text` (GGUF: llama.cpp's parse_special). */
int ic_tokenizer_encode(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                        bool special);
/* As above, but added *special* tokens written out in the text are read as ordinary text: for text
 * that is not to be trusted. */
int ic_tokenizer_encode_untrusted(ic_ids *out, const ic_tokenizer *t, const char *text, size_t size,
                                  bool special);

/* Appends the text of ids: as Hugging Face's decode (decoder chain; skip_special leaves out special
 * tokens). Ids outside the vocabulary give nothing. The result may hold U+FFFD for broken bytes. */
int ic_tokenizer_decode(ic_buffer *out, const ic_tokenizer *t, const int32_t *ids, size_t count,
                        bool skip_special);

int ic_tokenizer_size(const ic_tokenizer *t); /* ids are below this */
int32_t ic_tokenizer_id(const ic_tokenizer *t,
                        const char *token); /* -1: none; as written in the vocabulary */
const char *ic_tokenizer_token(const ic_tokenizer *t,
                               int32_t id); /* as written in the vocabulary; NULL: none */
bool ic_tokenizer_is_special(const ic_tokenizer *t, int32_t id);
/* Ids that GGUF metadata names (bos, eos, …); -1 if unknown, as for tokenizer.json. */
int32_t ic_tokenizer_bos(const ic_tokenizer *t);
int32_t ic_tokenizer_eos(const ic_tokenizer *t);

/* SHA-256 over what decides ids: vocabulary, merges, scores, configuration. */
const char *ic_tokenizer_hash(const ic_tokenizer *t);

/* ---- characters (unicode.c) ------------------------------------------------------------------- */

int ic_unicode_lower(char out[8], uint32_t code); /* its lower case, if it has one: bytes written */
bool ic_is_whitespace(uint32_t code);             /* White_Space */
bool ic_is_punctuation(uint32_t code);            /* ASCII symbols, and P as of Unicode 8 */
bool ic_is_combining_mark(uint32_t code);         /* M as of Unicode 9 */

/* ---- streaming decoder ------------------------------------------------------------------------ */

/* Gives text as ids arrive, whole UTF-8 characters only; pieces joined equal ic_tokenizer_decode of all ids
 * (skip_special true) whatever the decoder chain. */
typedef struct ic_stream_decoder {
    const ic_tokenizer *tokenizer;
    ic_ids ids;       /* not yet final */
    ic_buffer text;   /* scratch: what these ids are, as far as it is known */
    size_t given;     /* bytes of `text` already handed out */
    bool started;     /* ids before these are done */
    size_t fruitless; /* times these ids had no text */
    bool skip_special;
} ic_stream_decoder;

void ic_stream_begin(ic_stream_decoder *s, const ic_tokenizer *t, bool skip_special);
/* *piece is borrowed until the next call; *size may be 0. */
int ic_stream_add(ic_stream_decoder *s, int32_t id, const char **piece, size_t *size);
int ic_stream_end(ic_stream_decoder *s, const char **piece, size_t *size); /* what was held back */
void ic_stream_free(ic_stream_decoder *s);

/* ---- chat templates (chat.c) ------------------------------------------------------------------ */

/* What stands around the user's message in each family. ICAE puts slots after `user_begin`. */
typedef struct ic_chat_template {
    const char *name; /* "mistral", "llama2", "llama3", "chatml", "gemma", "phi3", "icae", "none" */
    const char *begin;      /* once, before everything, behind bos */
    bool bos;               /* starts with the bos token */
    const char *user_begin; /* "[INST] " */
    const char *user_end;   /* " [/INST]": end of user turn and start of the model's */
    const char
        *reply_end; /* after the model's reply, before the next user_begin (usually eos text) */
    const char *end_of_turn; /* token that ends a reply besides eos; NULL: eos alone */
} ic_chat_template;

/* By name; NULL if unknown. */
const ic_chat_template *ic_chat_template_named(const char *name);
/* Recognises the template from the Jinja text of tokenizer_config.json or GGUF by its markers, else
 * from the special tokens of the vocabulary, else "none". `jinja` may be NULL. Never NULL. */
const ic_chat_template *ic_chat_template_recognise(const char *jinja, size_t size,
                                                   const ic_tokenizer *t);
/* All names, comma separated, for messages. */
const char *ic_chat_template_names(void);

/* Ids around a prompt, exactly as the family's own template tokenizes them in one piece:
 *   left: bos?, begin, user_begin      right: user_end
 * For mistral: left 1 733 16289 28793 ("<s>[INST]"), right 733 28748 16289 28793 ("[/INST]"). */
int ic_chat_left(ic_ids *out, const ic_chat_template *c, const ic_tokenizer *t, int32_t bos,
                 bool first);
int ic_chat_right(ic_ids *out, const ic_chat_template *c, const ic_tokenizer *t);
/* Ids that close a reply before the next turn. */
int ic_chat_reply_end(ic_ids *out, const ic_chat_template *c, const ic_tokenizer *t, int32_t eos);

#endif
