/*
 * postprocess.c - the post-processors of tokenizer.json: which ids stand around those of the text.
 *
 * A text's ids are one part at first; each step makes new parts of the parts before, which are joined
 * at the end. Steps that only concern offsets (ByteLevel) do nothing here.
 */
#include "text/internal.h"

#include <string.h>

#define MAX_ITEMS 64 /* of a template */

/* ---- reading ---------------------------------------------------------------------------------- */

static int check_id(int32_t *out, const ic_tokenizer *t, const ic_json *node, const char *what)
{
    double id = ic_json_number(node, -1);
    if (!(id >= 0 && id < t->size) || id != (double)(int32_t)id)
        return ic_fail(
            ICAE_EFORMAT,
            "%.200s: %s names an id that is not a whole number below %d, the size of the "
            "vocabulary",
            t->name, what, t->size);
    *out = (int32_t)id;
    return ICAE_OK;
}

static int parse_special(ic_ids *out, const ic_tokenizer *t, const ic_json *item,
                         const ic_json *specials)
{
    const char *name = ic_json_string(ic_json_get(item, "id"));
    const ic_json *ids = ic_json_get(name ? ic_json_get(specials, name) : NULL, "ids");
    if (!ic_json_is_array(ids) || ic_json_count(ids) > MAX_ITEMS)
        return ic_fail(ICAE_EFORMAT,
                       "%.200s: TemplateProcessing uses \"%.50s\", which has no ids in its "
                       "special_tokens",
                       t->name, name ? name : "");
    int rc = ic_ids_add(out, IC_POST_IDS);
    if (rc >= 0)
        rc = ic_ids_add(out, (int32_t)ic_json_count(ids));
    for (const ic_json *i = ic_json_first(ids); i && rc >= 0; i = ic_json_next(i)) {
        int32_t id;
        rc = check_id(&id, t, i, "TemplateProcessing");
        if (rc >= 0)
            rc = ic_ids_add(out, id);
    }
    return rc;
}

static int parse_template(ic_ids *out, const ic_tokenizer *t, const ic_json *items,
                          const ic_json *specials, bool pair)
{
    int rc = ICAE_OK;
    if (!ic_json_is_array(items) || ic_json_count(items) > MAX_ITEMS)
        return ic_fail(ICAE_EFORMAT, "%.200s: TemplateProcessing needs a list of at most %d items",
                       t->name, MAX_ITEMS);
    for (const ic_json *i = ic_json_first(items); i && rc >= 0; i = ic_json_next(i)) {
        const ic_json *special = ic_json_get(i, "SpecialToken");
        const char *text = ic_json_string(ic_json_get(ic_json_get(i, "Sequence"), "id"));
        if (special)
            rc = parse_special(out, t, special, specials);
        else if (text && strcmp(text, "A") == 0)
            rc = ic_ids_add(out, IC_POST_TEXT);
        else if (text && strcmp(text, "B") == 0 && pair)
            rc = ic_ids_add(out, IC_POST_SECOND);
        else
            rc = ic_fail(ICAE_EFORMAT,
                         "%.200s: TemplateProcessing has an item that is neither a SpecialToken "
                         "nor a Sequence it can use",
                         t->name);
    }
    return rc;
}

static int parse_one(ic_tokenizer *t, const ic_json *node, const char *type)
{
    bool template = strcmp(type, "TemplateProcessing") == 0;
    bool bert = strcmp(type, "BertProcessing") == 0;
    if (strcmp(type, "ByteLevel") == 0)
        return ICAE_OK;
    if (!template && !bert && strcmp(type, "RobertaProcessing") != 0)
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: the post_processor \"%.50s\" is not supported",
                       t->name, type);
    size_t capacity = t->post_count;
    int rc = ic_grow(&t->posts, &capacity, capacity + 1, sizeof *t->posts);
    if (rc < 0)
        return rc;
    ic_post *p = &t->posts[t->post_count++];
    *p = (ic_post){.kind = template ? IC_POST_TEMPLATE : bert ? IC_POST_BERT : IC_POST_ROBERTA};
    if (!template) {
        rc = check_id(&p->cls, t, ic_json_next(ic_json_first(ic_json_get(node, "cls"))), "\"cls\"");
        return rc < 0 ? rc
                      : check_id(&p->sep, t, ic_json_next(ic_json_first(ic_json_get(node, "sep"))),
                                 "\"sep\"");
    }
    const ic_json *specials = ic_json_get(node, "special_tokens");
    rc = parse_template(&p->single, t, ic_json_get(node, "single"), specials, false);
    /* One text is a pair only if an earlier step made two parts of it. */
    if (rc >= 0 && t->post_count > 1)
        rc = parse_template(&p->pair, t, ic_json_get(node, "pair"), specials, true);
    return rc;
}

int ic_posts_parse(ic_tokenizer *t, const ic_json *node)
{
    return ic_each_component(t, node, "post_processor", "processors", parse_one);
}

void ic_posts_free(ic_tokenizer *t)
{
    for (size_t i = 0; i < t->post_count; i++) {
        ic_ids_free(&t->posts[i].single);
        ic_ids_free(&t->posts[i].pair);
    }
    ic_free(t->posts);
}

/* ---- running ---------------------------------------------------------------------------------- */

typedef struct parts {
    ic_ids ids;
    size_t ends[MAX_ITEMS];
    size_t count;
} parts;

static int add_part(parts *to, const int32_t *before, const ic_ids *from, size_t start, size_t end,
                    const int32_t *behind)
{
    int rc = before ? ic_ids_add(&to->ids, *before) : ICAE_OK;
    if (rc >= 0 && end > start)
        rc = ic_ids_append(&to->ids, from->ids + start, end - start);
    if (rc >= 0 && behind)
        rc = ic_ids_add(&to->ids, *behind);
    to->ends[to->count++] = to->ids.count;
    return rc;
}

static int run_template(parts *to, const parts *from, const ic_post *p, bool special,
                        const ic_tokenizer *t)
{
    if (from->count < 1 || from->count > 2)
        return ic_fail(ICAE_EUNSUPPORTED, "%.200s: a TemplateProcessing of %zu parts", t->name,
                       from->count);
    const ic_ids *items = from->count == 2 ? &p->pair : &p->single;
    int rc = ICAE_OK;
    for (size_t i = 0; i < items->count && rc >= 0; i++) {
        int32_t item = items->ids[i];
        size_t begin = item == IC_POST_SECOND ? from->ends[0] : 0;
        if (item != IC_POST_IDS) {
            rc = add_part(to, NULL, &from->ids, begin, from->ends[item == IC_POST_SECOND], NULL);
            continue;
        }
        size_t n = (size_t)items->ids[i + 1];
        if (special)
            rc = add_part(to, NULL, items, i + 2, i + 2 + n, NULL);
        i += 1 + n;
    }
    return rc;
}

static int run_one(parts *to, const parts *from, const ic_post *p, bool special,
                   const ic_tokenizer *t)
{
    if (p->kind == IC_POST_TEMPLATE)
        return run_template(to, from, p, special, t);
    int rc = ICAE_OK;
    for (size_t i = 0, begin = 0; i < from->count && rc >= 0; begin = from->ends[i++]) {
        const int32_t *before = i == 0 ? &p->cls : p->kind == IC_POST_ROBERTA ? &p->sep : NULL;
        rc = add_part(to, special ? before : NULL, &from->ids, begin, from->ends[i],
                      special ? &p->sep : NULL);
    }
    return rc;
}

int ic_posts_run(ic_ids *out, const ic_tokenizer *t, const ic_ids *ids, bool special)
{
    int rc = ICAE_OK;
    parts now = {.count = 1}, next = {0};
    IC_TRY(ic_ids_append(&now.ids, ids->ids, ids->count));
    now.ends[0] = ids->count;
    for (size_t i = 0; i < t->post_count; i++) {
        next.ids.count = next.count = 0;
        IC_TRY(run_one(&next, &now, &t->posts[i], special, t));
        parts swapped = now;
        now = next;
        next = swapped;
    }
    rc = ic_ids_append(out, now.ids.ids, now.ids.count);
done:
    ic_ids_free(&now.ids);
    ic_ids_free(&next.ids);
    return rc;
}
