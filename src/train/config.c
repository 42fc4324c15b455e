/*
 * config.c - setting the keys of a configuration: what values are possible, who set what, presets.
 *
 * The table of keys is config_keys.c's, files are read by config_file.c, texts are made by
 * config_text.c.
 */
#include "train/config.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Who set a key last. A preset yields to everything but the defaults, flags win. */
enum { BY_DEFAULT, BY_PRESET, BY_FILE, BY_FLAG };

/* ---- values ----------------------------------------------------------------------------------- */

static void list_free(ic_list *l)
{
    for (size_t i = 0; i < l->count; i++)
        ic_free(l->item[i]);
    ic_free(l->item);
    *l = (ic_list){0};
}

static int parse_real(double *out, const ic_key *k, const char *text)
{
    char clean[64], *end;
    size_t n = 0;
    for (const char *t = text; *t && n + 1 < sizeof clean; t++)
        if (*t != '_' || t == text)
            clean[n++] = *t;
    clean[n] = 0;
    *out = strtod(clean, &end);
    if (end == clean || *end || !isfinite(*out))
        return ic_fail(ICAE_EINVAL, "%s: \"%.80s\" is not a number", k->name, text);
    if (k->type == IC_KEY_INT && *out != floor(*out))
        return ic_fail(ICAE_EINVAL, "%s: %.80s is not a whole number", k->name, text);
    if (*out < k->low || *out > k->high)
        return ic_fail(ICAE_EINVAL, "%s: %.80s is not possible; from %.10g to %.10g", k->name, text,
                       k->low, k->high);
    return ICAE_OK;
}

static int parse_size(uint64_t *out, const ic_key *k, const char *text)
{
    char *end;
    double v = strtod(text, &end), factor = 1;
    const char *units = "KMGT", *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    for (const char *u = units; unit && u <= unit; u++)
        factor *= 1024;
    if (end == text || !(v >= 0) ||
        (*end && (!unit || (end[1] && strcmp(end + 1, "B") != 0 && strcmp(end + 1, "iB") != 0))) ||
        v * factor > k->high)
        return ic_fail(ICAE_EINVAL, "%s: \"%.80s\" is not a size such as 500M or 24G", k->name,
                       text);
    *out = (uint64_t)(v * factor);
    return ICAE_OK;
}

static int parse_bool(bool *out, const ic_key *k, const char *text)
{
    static const char *const words[] = {"true", "yes", "on", "1", "false", "no", "off", "0"};
    for (size_t i = 0; i < IC_COUNT(words); i++)
        if (strcmp(text, words[i]) == 0) {
            *out = i < 4;
            return ICAE_OK;
        }
    return ic_fail(ICAE_EINVAL, "%s: \"%.80s\" is neither true nor false", k->name, text);
}

static int check_choice(const ic_key *k, const char *text)
{
    size_t n = strlen(text);
    for (const char *c = k->choices; c; c = strchr(c, '|') ? strchr(c, '|') + 1 : NULL)
        if (strncmp(c, text, n) == 0 && (c[n] == '|' || !c[n]) && n)
            return ICAE_OK;
    return ic_fail(ICAE_EINVAL, "%s: there is no \"%.80s\"; it is one of %s", k->name, text,
                   k->choices);
}

static int put_text(char **at, const char *text)
{
    char *copy = ic_strdup(text);
    if (!copy)
        return ICAE_ENOMEM;
    ic_free(*at);
    *at = copy;
    return ICAE_OK;
}

static int put_list(ic_list *l, const ic_value *v, bool append)
{
    if (!append)
        list_free(l);
    char **item = ic_resize(l->item, l->count + v->count + 1, sizeof *item);
    if (!item)
        return ICAE_ENOMEM;
    l->item = item;
    for (size_t i = 0; i < v->count; i++) {
        if (!(l->item[l->count] = ic_strdup(v->item[i])))
            return ICAE_ENOMEM;
        l->count++;
    }
    return ICAE_OK;
}

static int put_reals(ic_reals *r, const ic_key *k, const ic_value *v)
{
    ic_reals all = {0};
    if (v->count > IC_COUNT(all.v))
        return ic_fail(ICAE_EINVAL, "%s: %zu values, at most %zu are possible", k->name, v->count,
                       IC_COUNT(all.v));
    for (size_t i = 0; i < v->count; i++, all.count++) {
        int rc = parse_real(&all.v[i], k, v->item[i]);
        if (rc < 0)
            return rc;
    }
    *r = all;
    return ICAE_OK;
}

/* A flag's text for a list: an array, or words between commas. */
static int split_list(ic_value *out, const char *text)
{
    int rc = ICAE_OK;
    *out = (ic_value){.kind = IC_VALUE_ARRAY};
    if (text[0] == '[')
        return ic_settings_parse_array(out, text);
    while (*text && rc == ICAE_OK) {
        size_t n = strcspn(text, ",");
        if (n)
            rc = ic_value_add(out, text, n);
        text += n + (text[n] == ',');
    }
    return rc;
}

static int put_scalar(icae_train_config *c, const ic_key *k, const char *text)
{
    void *at = ic_key_at(c, k);
    double real = 0;
    int rc = ICAE_OK;
    switch (k->type) {
    case IC_KEY_CHOICE:
        rc = check_choice(k, text);
        return rc < 0 ? rc : put_text(at, text);
    case IC_KEY_TEXT:
        return put_text(at, text);
    case IC_KEY_BOOL:
        return parse_bool(at, k, text);
    case IC_KEY_INT:
        rc = parse_real(&real, k, text);
        if (rc == ICAE_OK)
            *(int64_t *)at = (int64_t)real;
        return rc;
    case IC_KEY_REAL:
        rc = parse_real(&real, k, text);
        if (rc == ICAE_OK)
            *(double *)at = real;
        return rc;
    default:
        return parse_size(at, k, text);
    }
}

/* A value of the wrong kind in a file is a slip that would otherwise pass unseen. */
static int check_kind(const ic_key *k, const ic_value *v)
{
    bool list = k->type == IC_KEY_LIST || k->type == IC_KEY_REALS,
         text = k->type == IC_KEY_TEXT || k->type == IC_KEY_CHOICE;
    bool ok = v->kind == IC_VALUE_FLAG ||
              (list ? v->kind == IC_VALUE_ARRAY || v->kind == IC_VALUE_STRING ||
                          v->kind == IC_VALUE_NUMBER
               : text ? v->kind == IC_VALUE_STRING || k->at == IC_KEY_AT(recompute)
               : k->type == IC_KEY_BOOL ? v->kind == IC_VALUE_BOOL
               : k->type == IC_KEY_SIZE ? v->kind == IC_VALUE_NUMBER || v->kind == IC_VALUE_STRING
                                        : v->kind == IC_VALUE_NUMBER);
    if (ok && v->kind != IC_VALUE_ARRAY && v->count == 1)
        return ICAE_OK;
    if (ok && list)
        return ICAE_OK;
    return ic_fail(ICAE_EINVAL, "%s: expected a %s", k->name, ic_key_types[k->type]);
}

/* ---- keys ------------------------------------------------------------------------------------- */

static bool same_name(const char *a, const char *b)
{
    for (; *a && *b; a++, b++)
        if (*a != *b && !(*a == '-' && *b == '_'))
            return false;
    return !*a && !*b;
}

const ic_key *ic_key_find(const char *name)
{
    for (size_t i = 0; i < ic_key_count; i++)
        if (same_name(name, ic_keys[i].name))
            return &ic_keys[i];
    return NULL;
}

static size_t edits(const char *a, const char *b)
{
    enum { LIMIT = 24 };
    size_t n = strlen(a), m = strlen(b), row[LIMIT + 1];
    if (n > LIMIT || m > LIMIT)
        return LIMIT;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t old = row[j], change = diagonal + (a[i - 1] != b[j - 1] && a[i - 1] != '-');
            row[j] = IC_MIN(change, IC_MIN(old, row[j - 1]) + 1);
            diagonal = old;
        }
    }
    return row[m];
}

static int unknown(const char *name)
{
    const ic_key *near = NULL;
    size_t best = IC_MIN(strlen(name) / 2 + 1, (size_t)5);
    for (size_t i = 0; i < ic_key_count; i++) {
        size_t d = edits(name, ic_keys[i].name), n = strlen(name);
        if (n >= 3 && strncmp(name, ic_keys[i].name, n) == 0)
            d = 1;
        if (d < best) {
            best = d;
            near = &ic_keys[i];
        }
    }
    if (near)
        return ic_fail(ICAE_EINVAL, "there is no key \"%.80s\"; did you mean \"%s\"?", name,
                       near->name);
    return ic_fail(ICAE_EINVAL, "there is no key \"%.80s\"; --print-config lists all", name);
}

static int put(icae_train_config *c, const ic_key *k, const ic_value *value, int origin)
{
    int rc = ICAE_OK;
    size_t index = (size_t)(k - ic_keys);
    ic_value split = {0};
    const ic_value *v = value;
    IC_TRY(check_kind(k, v));
    if ((k->type == IC_KEY_LIST || k->type == IC_KEY_REALS) && v->kind != IC_VALUE_ARRAY) {
        IC_TRY(split_list(&split, v->item[0]));
        v = &split;
    }
    if (k->type == IC_KEY_LIST)
        rc = put_list(ic_key_at(c, k), v, origin == BY_FLAG && c->origin[index] == BY_FLAG);
    else if (k->type == IC_KEY_REALS)
        rc = put_reals(ic_key_at(c, k), k, v);
    else
        rc = put_scalar(c, k, v->item[0]);
    if (rc == ICAE_OK)
        c->origin[index] = (unsigned char)origin;
done:
    ic_value_free(&split);
    return rc;
}

static int put_one(icae_train_config *c, const ic_key *k, const char *text, int origin)
{
    char *item = (char *)text;
    return put(c, k, &(ic_value){.kind = IC_VALUE_FLAG, .item = &item, .count = 1}, origin);
}

static int put_default(icae_train_config *c, const ic_key *k)
{
    bool tuned = c->stage == ICAE_FINETUNE && k->finetune;
    return put_one(c, k, tuned ? k->finetune : k->fallback, BY_DEFAULT);
}

/* Fills in the preset's values where nobody else has set the key; what another preset had set goes
 * back. Called whenever what decides on the preset changes. */
static int apply_preset(icae_train_config *c)
{
    int rc = ICAE_OK;
    const char *preset = strcmp(c->s.preset, "auto") != 0 ? c->s.preset
                         : *c->s.base                     ? "none"
                                                          : "demo";
    for (size_t i = 0; i < ic_key_count; i++)
        if (c->origin[i] == BY_PRESET)
            IC_TRY(put_default(c, &ic_keys[i]));
    for (size_t i = 0; i < ic_preset_count; i++) {
        const ic_preset *p = &ic_presets[i];
        const ic_key *k = ic_key_find(p->key);
        if (strcmp(p->preset, preset) != 0 || c->origin[k - ic_keys] > BY_PRESET)
            continue;
        bool tuned = c->stage == ICAE_FINETUNE && p->finetune;
        IC_TRY(put_one(c, k, tuned ? p->finetune : p->value, BY_PRESET));
    }
done:
    return rc;
}

int ic_settings_put(icae_train_config *c, const char *name, const ic_value *value, bool flag)
{
    const ic_key *k = ic_key_find(name);
    int origin = flag ? BY_FLAG : BY_FILE;
    if (!k)
        return unknown(name);
    if (c->origin[k - ic_keys] > origin)
        return ICAE_OK;
    int rc = put(c, k, value, origin);
    if (rc == ICAE_OK && (k->at == IC_KEY_AT(preset) || k->at == IC_KEY_AT(base)))
        rc = apply_preset(c);
    return rc;
}

bool ic_settings_is_set(const icae_train_config *c, const char *name)
{
    const ic_key *k = ic_key_find(name);
    assert(k);
    return c->origin[k - ic_keys] > BY_PRESET;
}

/* ---- the whole -------------------------------------------------------------------------------- */

int icae_train_config_new(icae_train_config **out, icae_train_stage stage)
{
    int rc = ICAE_OK;
    *out = NULL;
    if (stage != ICAE_PRETRAIN && stage != ICAE_FINETUNE)
        return ic_fail(ICAE_EINVAL, "there is no training stage %d", (int)stage);
    icae_train_config *c = ic_alloc(1, sizeof *c);
    if (!c)
        return ICAE_ENOMEM;
    c->stage = stage;
    if (!(c->origin = ic_alloc(ic_key_count, 1))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < ic_key_count; i++)
        IC_TRY(put_default(c, &ic_keys[i]));
    IC_TRY(apply_preset(c));
    *out = c;
    return ICAE_OK;
done:
    icae_train_config_free(c);
    return rc;
}

void icae_train_config_free(icae_train_config *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < ic_key_count; i++) {
        if (ic_keys[i].type == IC_KEY_TEXT || ic_keys[i].type == IC_KEY_CHOICE)
            ic_free(*(char **)ic_key_at(c, &ic_keys[i]));
        else if (ic_keys[i].type == IC_KEY_LIST)
            list_free(ic_key_at(c, &ic_keys[i]));
    }
    ic_free(c->origin);
    ic_free(c);
}

int icae_train_config_set(icae_train_config *c, const char *name, const char *value)
{
    char *item = (char *)value;
    return ic_settings_put(c, name, &(ic_value){.kind = IC_VALUE_FLAG, .item = &item, .count = 1},
                           true);
}
