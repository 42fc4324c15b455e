/*
 * config_text.c - configurations as text: printed, stored in a checkpoint, compared with a stored one;
 * and what several keys together make impossible.
 */
#include "train/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The shortest decimal number that reads back as v. */
static int add_real(ic_buffer *b, double v)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    return ic_buffer_addf(b, "%s", text);
}

/* The value as a file would state it. */
static int add_value(ic_buffer *b, const icae_train_config *c, const ic_key *k)
{
    int rc = ICAE_OK;
    const void *at = ic_key_at(c, k);
    const ic_list *l = at;
    const ic_reals *r = at;
    switch (k->type) {
    case IC_KEY_TEXT:
    case IC_KEY_CHOICE:
        return ic_json_quote(b, *(char *const *)at, strlen(*(char *const *)at));
    case IC_KEY_BOOL:
        return ic_buffer_addf(b, "%s", *(const bool *)at ? "true" : "false");
    case IC_KEY_INT:
        return ic_buffer_addf(b, "%lld", (long long)*(const int64_t *)at);
    case IC_KEY_REAL:
        return add_real(b, *(const double *)at);
    case IC_KEY_SIZE:
        return ic_buffer_addf(b, "%llu", (unsigned long long)*(const uint64_t *)at);
    case IC_KEY_LIST:
        IC_TRY(ic_buffer_add(b, "[", 1));
        for (size_t i = 0; i < l->count; i++) {
            IC_TRY(ic_buffer_addf(b, "%s", i ? ", " : ""));
            IC_TRY(ic_json_quote(b, l->item[i], strlen(l->item[i])));
        }
        return ic_buffer_add(b, "]", 1);
    case IC_KEY_REALS:
        IC_TRY(ic_buffer_add(b, "[", 1));
        for (int i = 0; i < r->count; i++) {
            IC_TRY(ic_buffer_addf(b, "%s", i ? ", " : ""));
            IC_TRY(add_real(b, r->v[i]));
        }
        return ic_buffer_add(b, "]", 1);
    }
done:
    return rc;
}

static int add_range(ic_buffer *b, const ic_key *k)
{
    if (k->choices)
        return ic_buffer_addf(b, "%s", k->choices);
    if (k->type == IC_KEY_INT || k->type == IC_KEY_REAL || k->type == IC_KEY_REALS)
        return k->high > 1e8 ? ic_buffer_addf(b, "%.10g or more", k->low)
                             : ic_buffer_addf(b, "%.10g … %.10g", k->low, k->high);
    return ic_buffer_add(b, "", 0);
}

int icae_train_config_print(const icae_train_config *c, icae_text_fn write, void *user)
{
    int rc = ICAE_OK;
    ic_buffer b = {0};
    for (size_t i = 0; i < ic_key_count; i++) {
        const ic_key *k = &ic_keys[i];
        if (k->flags & IC_KEY_COMMAND)
            continue;
        IC_TRY(ic_buffer_addf(&b, "# %s", k->help));
        if (k->choices) {
            IC_TRY(ic_buffer_addf(&b, " ("));
            IC_TRY(add_range(&b, k));
            IC_TRY(ic_buffer_addf(&b, ")"));
        }
        IC_TRY(ic_buffer_addf(&b, "\n%s = ", k->name));
        IC_TRY(add_value(&b, c, k));
        IC_TRY(ic_buffer_addf(&b, "\n"));
    }
    if (write(user, b.data, b.size))
        rc = ic_fail(ICAE_ECANCELLED, "writing was stopped");
done:
    ic_buffer_free(&b);
    return rc;
}

bool icae_train_config_key(icae_train_key *out, const icae_train_config *c, size_t index)
{
    static _Thread_local char fallback[160], range[160];
    ic_buffer b = {0};
    if (index >= ic_key_count)
        return false;
    const ic_key *k = &ic_keys[index];
    const char *text = c->stage == ICAE_FINETUNE && k->finetune ? k->finetune : k->fallback;
    snprintf(fallback, sizeof fallback, "%s", text);
    range[0] = 0;
    if (add_range(&b, k) == ICAE_OK && b.data)
        snprintf(range, sizeof range, "%s", b.data);
    ic_buffer_free(&b);
    *out = (icae_train_key){k->name, ic_key_types[k->type], fallback, range, k->help};
    return true;
}

int ic_settings_to_json(const icae_train_config *c, ic_buffer *out)
{
    int rc = ICAE_OK;
    ic_buffer value = {0};
    const char *stage = c->stage == ICAE_FINETUNE ? "finetune" : "pretrain";
    IC_TRY(ic_buffer_addf(out, "{\"stage\": \"%s\"", stage));
    for (size_t i = 0; i < ic_key_count; i++) {
        if (ic_keys[i].flags & IC_KEY_COMMAND)
            continue;
        value.size = 0;
        IC_TRY(add_value(&value, c, &ic_keys[i]));
        IC_TRY(ic_buffer_addf(out, ", \"%s\": ", ic_keys[i].name));
        IC_TRY(ic_json_quote(out, value.data, value.size));
    }
    IC_TRY(ic_buffer_add(out, "}", 1));
done:
    ic_buffer_free(&value);
    return rc;
}

int ic_settings_changes(const icae_train_config *c, const ic_json *stored, ic_buffer *out)
{
    int rc = ICAE_OK;
    ic_buffer value = {0};
    const char *stage = c->stage == ICAE_FINETUNE ? "finetune" : "pretrain";
    const char *was = ic_json_string(ic_json_get(stored, "stage"));
    if (was && strcmp(was, stage) != 0)
        IC_TRY(ic_buffer_addf(out, "stage %s -> %s", was, stage));
    for (size_t i = 0; i < ic_key_count; i++) {
        const ic_key *k = &ic_keys[i];
        const char *old = ic_json_string(ic_json_get(stored, k->name));
        if (!(k->flags & IC_KEY_DECIDES))
            continue;
        /* how long a constant rate lasts changes nothing that was done */
        if (strcmp(c->s.schedule, "constant") == 0 &&
            (k->at == IC_KEY_AT(steps) || k->at == IC_KEY_AT(tokens) || k->at == IC_KEY_AT(hours)))
            continue;
        value.size = 0;
        IC_TRY(add_value(&value, c, k));
        if (old && strcmp(old, value.data) == 0)
            continue;
        IC_TRY(ic_buffer_addf(out, "%s%s %s -> %s", out->size ? ", " : "", k->name,
                              old ? old : "(not known then)", value.data));
    }
done:
    ic_buffer_free(&value);
    return rc;
}

int icae_train_config_check(const icae_train_config *c)
{
    const ic_settings *s = &c->s;
    if (!s->data.count)
        return ic_fail(ICAE_EINVAL, "data: no training text is named");
    if (!*s->out)
        return ic_fail(ICAE_EINVAL, "out: no folder is named for the run");
    if (s->max_tokens && s->max_tokens < s->min_tokens)
        return ic_fail(ICAE_EINVAL, "max_tokens: %lld is less than min_tokens, %lld",
                       (long long)s->max_tokens, (long long)s->min_tokens);
    if (s->ae_weight + s->lm_weight + s->ft_weight <= 0)
        return ic_fail(ICAE_EINVAL, "ae_weight, lm_weight, ft_weight: all are 0, nothing to train");
    if (s->min_lr > s->lr)
        return ic_fail(ICAE_EINVAL, "min_lr: %g is more than lr, %g", s->min_lr, s->lr);
    if (s->continuation && s->continuation <= 64)
        return ic_fail(ICAE_EINVAL, "continuation: %lld; only more than 64 tokens are continued",
                       (long long)s->continuation);
    if (!s->targets.count)
        return ic_fail(ICAE_EINVAL, "targets: no linear layer is named");
    for (size_t i = 0; i < s->targets.count; i++) {
        int known = 0;
        for (int t = 0; t < IC_TARGETS; t++)
            known += strcmp(s->targets.item[i], ic_target_names[t]) == 0;
        if (!known)
            return ic_fail(ICAE_EINVAL,
                           "targets: there is no linear layer \"%.80s\"; it is one of "
                           "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
                           s->targets.item[i]);
    }
    bool served = s->rates.count == 0;
    for (int i = 0; i < s->rates.count; i++)
        served |= s->rates.v[i] == s->rate;
    if (!served && ic_settings_is_set(c, "rate"))
        return ic_fail(ICAE_EINVAL, "rate: %g is not among rates", s->rate);
    return ICAE_OK;
}
