/*
 * chat.c - chat templates: what each family of models puts around a user's message.
 *
 * The strings are the families' own. Templates are recognised by their markers, never executed.
 * Knows nothing of slots; core puts them behind ic_chat_left.
 */
#include "text/internal.h"

#include <string.h>

enum { PHI3 = 5, PHI3_WITHOUT_BOS = 8 };

static const ic_chat_template templates[] = {
    {.name = "mistral",
     .begin = "",
     .bos = true,
     .user_begin = "[INST] ",
     .user_end = " [/INST]",
     .reply_end = ""},
    {.name = "llama2",
     .begin = "",
     .bos = true,
     .user_begin = "[INST] ",
     .user_end = " [/INST]",
     .reply_end = ""},
    {.name = "llama3",
     .begin = "",
     .bos = true,
     .user_begin = "<|start_header_id|>user<|end_header_id|>\n\n",
     .user_end = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
     .reply_end = "<|eot_id|>",
     .end_of_turn = "<|eot_id|>"},
    {.name = "chatml",
     .begin = "",
     .bos = false,
     .user_begin = "<|im_start|>user\n",
     .user_end = "<|im_end|>\n<|im_start|>assistant\n",
     .reply_end = "<|im_end|>\n",
     .end_of_turn = "<|im_end|>"},
    {.name = "gemma",
     .begin = "",
     .bos = true,
     .user_begin = "<start_of_turn>user\n",
     .user_end = "<end_of_turn>\n<start_of_turn>model\n",
     .reply_end = "<end_of_turn>\n",
     .end_of_turn = "<end_of_turn>"},
    [PHI3] = {.name = "phi3",
              .begin = "",
              .bos = true,
              .user_begin = "<|user|>\n",
              .user_end = "<|end|>\n<|assistant|>\n",
              .reply_end = "<|end|>\n",
              .end_of_turn = "<|end|>"},
    {.name = "icae",
     .begin = "",
     .bos = true,
     .user_begin = "<|user|>",
     .user_end = "<|assistant|>",
     .reply_end = ""},
    {.name = "none", .begin = "", .bos = false, .user_begin = "", .user_end = "", .reply_end = ""},
    /* Later editions of the family leave bos out. */
    [PHI3_WITHOUT_BOS] = {.name = "phi3",
                          .begin = "",
                          .bos = false,
                          .user_begin = "<|user|>\n",
                          .user_end = "<|end|>\n<|assistant|>\n",
                          .reply_end = "<|end|>\n",
                          .end_of_turn = "<|end|>"},
};

const ic_chat_template *ic_chat_template_named(const char *name)
{
    for (size_t i = 0; i < IC_COUNT(templates); i++)
        if (strcmp(templates[i].name, name) == 0)
            return &templates[i];
    return NULL;
}

const char *ic_chat_template_names(void)
{
    return "mistral, llama2, llama3, chatml, gemma, phi3, icae, none";
}

typedef struct source {
    const char *jinja;
    size_t size;
    const ic_tokenizer *t;
} source;

/* In the template's text, or without one in the vocabulary. */
static bool has(const source *s, const char *marker)
{
    if (s->jinja)
        return ic_find_text(s->jinja, s->size, marker, strlen(marker)) != NULL;
    return s->t && ic_tokenizer_id(s->t, marker) >= 0;
}

const ic_chat_template *ic_chat_template_recognise(const char *jinja, size_t size,
                                                   const ic_tokenizer *t)
{
    source s = {jinja && size ? jinja : NULL, size, t};
    const char *name = "none";
    if (has(&s, "<|start_header_id|>"))
        name = "llama3";
    else if (has(&s, "<|im_start|>"))
        name = "chatml";
    else if (has(&s, "<start_of_turn>"))
        name = "gemma";
    else if (has(&s, "<|user|>") && has(&s, "<|end|>"))
        return &templates[s.jinja && !has(&s, "bos_token") ? PHI3_WITHOUT_BOS : PHI3];
    else if (has(&s, "<|user|>") && has(&s, "<|assistant|>") && !has(&s, "<|system|>") &&
             (!t || ic_tokenizer_id(t, "<|user|>") >= 0))
        name = "icae";
    else if (has(&s, "[INST]"))
        name = has(&s, "<<SYS>>") ? "llama2" : "mistral";
    return ic_chat_template_named(name);
}

/* Llama 2 and Mistral set their marks off with spaces, and their tokenizers put one in front of
 * every text: each part stands without its own. */
static int add_part(ic_ids *out, const ic_tokenizer *t, const char *text)
{
    size_t size = strlen(text);
    while (size > 0 && text[0] == ' ') {
        text++;
        size--;
    }
    while (size > 0 && text[size - 1] == ' ')
        size--;
    return size ? ic_tokenizer_encode(out, t, text, size, false) : ICAE_OK;
}

int ic_chat_left(ic_ids *out, const ic_chat_template *c, const ic_tokenizer *t, int32_t bos,
                 bool first)
{
    int rc = ICAE_OK;
    size_t before = out->count;
    bool every_turn = strcmp(c->name, "llama2") == 0;
    if (c->bos && bos >= 0 && (first || every_turn))
        rc = ic_ids_add(out, bos);
    /* One piece: where begin and user_begin meet, the tokenizer sees both. */
    char *text = ic_format("%s%s", first ? c->begin : "", c->user_begin);
    if (rc >= 0)
        rc = text ? add_part(out, t, text) : ICAE_ENOMEM;
    ic_free(text);
    if (rc < 0)
        out->count = before;
    return rc;
}

int ic_chat_right(ic_ids *out, const ic_chat_template *c, const ic_tokenizer *t)
{
    return add_part(out, t, c->user_end);
}

int ic_chat_reply_end(ic_ids *out, const ic_chat_template *c, const ic_tokenizer *t, int32_t eos)
{
    if (*c->reply_end)
        return add_part(out, t, c->reply_end);
    return eos >= 0 ? ic_ids_add(out, eos) : ICAE_OK;
}
