/*
 * checkpoint.c - the whole state of a run in one safetensors file: parameters, both moments, counters,
 * averages, configuration, and a SHA-256 over all of it.
 *
 * A new file is complete on disk before the last one becomes the previous one, so that at any instant
 * one of them is sound. Which examples come next follows from the step alone.
 */
#include "train/run.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT "icae-checkpoint-1"

enum { NEW, CURRENT, PREVIOUS, NAMES };

static const char *const names[NAMES] = {"checkpoint.new.safetensors", "checkpoint.safetensors",
                                         "checkpoint.previous.safetensors"};

/* ---- the state as text ------------------------------------------------------------------------ */

typedef struct field {
    const char *name;
    enum { WHOLE, REAL, HASH } type;
    size_t at;
} field;

#define AT(member) offsetof(ic_state, member)

static const field fields[] = {
    {"step", WHOLE, AT(step)},
    {"samples", WHOLE, AT(samples)},
    {"tokens", WHOLE, AT(tokens)},
    {"skipped", WHOLE, AT(skipped)},
    {"bad_in_a_row", WHOLE, AT(bad_in_a_row)},
    {"eval_due", WHOLE, AT(eval_due)},
    {"seconds", REAL, AT(seconds)},
    {"average_ae", REAL, AT(average[0])},
    {"average_lm", REAL, AT(average[1])},
    {"average_ft", REAL, AT(average[2])},
    {"weight_ae", REAL, AT(average_weight[0])},
    {"weight_lm", REAL, AT(average_weight[1])},
    {"weight_ft", REAL, AT(average_weight[2])},
    {"best", REAL, AT(best)},
    {"best_step", WHOLE, AT(best_step)},
    {"metrics_size", WHOLE, AT(metrics_size)},
    {"samples_a_step", WHOLE, AT(samples_a_step)},
    {"data", HASH, AT(data)},
    {"base", HASH, AT(base)},
};

static int state_to_text(ic_buffer *out, const ic_state *s)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "{"));
    for (size_t i = 0; i < IC_COUNT(fields); i++) {
        const void *at = (const char *)s + fields[i].at;
        IC_TRY(ic_buffer_addf(out, "%s\"%s\": \"", i ? ", " : "", fields[i].name));
        if (fields[i].type == WHOLE)
            IC_TRY(ic_buffer_addf(out, "%llu", (unsigned long long)*(const uint64_t *)at));
        else if (fields[i].type == REAL)
            IC_TRY(ic_buffer_addf(out, "%a", *(const double *)at)); /* every bit */
        else
            IC_TRY(ic_buffer_addf(out, "%s", (const char *)at));
        IC_TRY(ic_buffer_addf(out, "\""));
    }
    IC_TRY(ic_buffer_addf(out, "}"));
done:
    return rc;
}

static int state_from_text(ic_state *s, const char *text, const char *path)
{
    ic_json *root = NULL;
    int rc = ic_json_parse(&root, text, strlen(text), path);
    for (size_t i = 0; i < IC_COUNT(fields) && rc == ICAE_OK; i++) {
        void *at = (char *)s + fields[i].at;
        const char *value = ic_json_string(ic_json_get(root, fields[i].name));
        if (!value)
            rc = ic_fail(ICAE_EFORMAT, "%.400s: the state lacks %s", path, fields[i].name);
        else if (fields[i].type == WHOLE)
            *(uint64_t *)at = strtoull(value, NULL, 10);
        else if (fields[i].type == REAL)
            *(double *)at = strtod(value, NULL);
        else
            snprintf(at, 65, "%s", value);
    }
    ic_json_free(root);
    return rc;
}

/* ---- writing ---------------------------------------------------------------------------------- */

static int hash_all(char hex[65], const float *const part[3], size_t count, const char *state,
                    const char *config)
{
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    for (int i = 0; i < 3; i++)
        ic_hash_add(h, part[i], count * sizeof(float));
    ic_hash_add(h, state, strlen(state));
    ic_hash_add(h, config, strlen(config));
    ic_hash_finish(h, hex);
    return ICAE_OK;
}

/* The complete new file takes its place. A kill in between leaves a sound file under one of the names. */
static int rotate(const char *folder)
{
    int rc = ICAE_OK;
    char *path[NAMES] = {0};
    for (int i = 0; i < NAMES; i++)
        if (!(path[i] = ic_path_join(folder, names[i])))
            rc = ICAE_ENOMEM;
    if (rc == ICAE_OK && rename(path[CURRENT], path[PREVIOUS]) < 0 && errno != ENOENT)
        rc = ic_fail(ICAE_EIO, "cannot rename %.400s: %s", path[CURRENT], strerror(errno));
    if (rc == ICAE_OK && rename(path[NEW], path[CURRENT]) < 0)
        rc = ic_fail(ICAE_EIO, "cannot rename %.400s: %s", path[NEW], strerror(errno));
    for (int i = 0; i < NAMES; i++)
        ic_free(path[i]);
    return rc;
}

int ic_checkpoint_save(const char *folder, const ic_params *p, const ic_state *state,
                       const icae_train_config *config)
{
    int rc = ICAE_OK;
    char sha[65], *path = ic_path_join(folder, names[NEW]);
    ic_buffer s = {0}, c = {0};
    const float *part[3] = {p->p, p->m, p->v};
    static const char *const tensor_names[3] = {"p", "m", "v"};
    ic_tensor tensor[3];
    if (!path)
        return ICAE_ENOMEM;
    for (int i = 0; i < 3; i++)
        tensor[i] = (ic_tensor){.name = tensor_names[i],
                                .dtype = IC_F32,
                                .rank = 1,
                                .dim = {(int64_t)p->count, 1, 1, 1},
                                .data = part[i],
                                .bytes = p->count * sizeof(float)};
    IC_TRY(state_to_text(&s, state));
    IC_TRY(ic_settings_to_json(config, &c));
    IC_TRY(hash_all(sha, part, p->count, s.data, c.data));
    ic_pair metadata[] = {
        {"format", FORMAT}, {"state", s.data}, {"config", c.data}, {"sha256", sha}};
    IC_TRY(ic_safetensors_write(path, tensor, 3, metadata, IC_COUNT(metadata)));
    rc = rotate(folder);
done:
    ic_buffer_free(&s);
    ic_buffer_free(&c);
    ic_free(path);
    return rc;
}

size_t ic_checkpoint_bytes(const ic_params *p)
{
    return 3 * p->count * sizeof(float) + 65536;
}

/* ---- reading ---------------------------------------------------------------------------------- */

/* Opens one file and reads its state; the tensors' hash is checked by verify. */
static int open_one(ic_checkpoint *c)
{
    int rc = ICAE_OK;
    IC_TRY(ic_safetensors_open(&c->file, c->path));
    const char *format = ic_safetensors_metadata(&c->file, "format");
    const char *state = ic_safetensors_metadata(&c->file, "state");
    const char *config = ic_safetensors_metadata(&c->file, "config");
    if (!format || strcmp(format, FORMAT) != 0 || !state || !config) {
        rc = ic_fail(ICAE_EFORMAT, "%.400s: not a checkpoint of this version", c->path);
        goto done;
    }
    IC_TRY(state_from_text(&c->state, state, c->path));
    IC_TRY(ic_json_parse(&c->config, config, strlen(config), c->path));
done:
    return rc;
}

static int verify(const ic_checkpoint *c)
{
    static const char *const tensor_names[3] = {"p", "m", "v"};
    const float *part[3];
    size_t count = 0;
    char sha[65];
    for (int i = 0; i < 3; i++) {
        const ic_tensor *t = ic_safetensors_find(&c->file, tensor_names[i]);
        if (!t || t->dtype != IC_F32 || t->rank != 1 || (i && (size_t)t->dim[0] != count))
            return ic_fail(ICAE_EFORMAT, "%.400s: not a checkpoint of this version", c->path);
        part[i] = t->data;
        count = (size_t)t->dim[0];
    }
    int rc = hash_all(sha, part, count, ic_safetensors_metadata(&c->file, "state"),
                      ic_safetensors_metadata(&c->file, "config"));
    const char *stored = ic_safetensors_metadata(&c->file, "sha256");
    if (rc == ICAE_OK && (!stored || strcmp(stored, sha) != 0))
        rc = ic_fail(ICAE_EFORMAT, "%.400s: its SHA-256 does not match", c->path);
    return rc;
}

void ic_checkpoint_close(ic_checkpoint *c)
{
    ic_safetensors_close(&c->file);
    ic_json_free(c->config);
    ic_free(c->path);
    *c = (ic_checkpoint){0};
}

/* Out of the way, but not thrown away: somebody may want to look at it. */
static void put_aside(const char *folder, const char *path, ic_notice_fn notice, void *user)
{
    char line[1400], *aside = ic_path_join(folder, "checkpoint.damaged.safetensors");
    snprintf(line, sizeof line, "%s; the checkpoint before it is used", icae_error_message());
    if (notice)
        notice(user, true, line);
    if (aside)
        (void)rename(path, aside);
    ic_free(aside);
}

/* A sound file that was not yet in its place, because a kill came between two renames. */
static void settle(const char *folder, ic_checkpoint *c, int which)
{
    char *path = ic_path_join(folder, names[CURRENT]);
    if (path && which == NEW && rotate(folder) == ICAE_OK) {
        ic_free(c->path);
        c->path = path;
        return;
    }
    ic_free(path);
}

/* The newest of those that are left, if it is sound; *which -1: none is left. */
static int newest(ic_checkpoint c[NAMES], const char *folder, int *which, ic_notice_fn notice,
                  void *user)
{
    for (;;) {
        *which = -1;
        for (int i = 0; i < NAMES; i++)
            if (c[i].path && (*which < 0 || c[i].state.step > c[*which].state.step))
                *which = i;
        int rc = *which < 0 ? ICAE_OK : verify(&c[*which]);
        if (rc != ICAE_EFORMAT)
            return rc;
        put_aside(folder, c[*which].path, notice, user);
        ic_checkpoint_close(&c[*which]);
    }
}

int ic_checkpoint_open(ic_checkpoint *out, const char *folder, ic_notice_fn notice, void *user)
{
    int rc = ICAE_OK, best = -1, found = 0;
    ic_checkpoint c[NAMES] = {0};
    for (int i = 0; i < NAMES; i++) {
        if (!(c[i].path = ic_path_join(folder, names[i]))) {
            rc = ICAE_ENOMEM;
            goto done;
        }
        bool exists = ic_path_exists(c[i].path);
        rc = exists ? open_one(&c[i]) : ICAE_OK;
        if (rc < 0 && rc != ICAE_EFORMAT)
            goto done;
        found += exists;
        if (rc < 0)
            put_aside(folder, c[i].path, notice, user);
        if (rc < 0 || !exists)
            ic_checkpoint_close(&c[i]);
    }
    IC_TRY(newest(c, folder, &best, notice, user));
    if (best >= 0) {
        *out = c[best];
        c[best] = (ic_checkpoint){0};
        settle(folder, out, best);
    } else {
        rc = found ? ic_fail(ICAE_EFORMAT, "%.400s: no checkpoint there is sound", folder)
                   : ic_fail(ICAE_ENOTFOUND, "%.400s: there is no checkpoint", folder);
    }
done:
    for (int i = 0; i < NAMES; i++)
        ic_checkpoint_close(&c[i]);
    return rc;
}

int ic_checkpoint_restore(const ic_checkpoint *c, ic_params *p)
{
    const ic_tensor *t[3] = {ic_safetensors_find(&c->file, "p"), ic_safetensors_find(&c->file, "m"),
                             ic_safetensors_find(&c->file, "v")};
    float *to[3] = {p->p, p->m, p->v};
    if ((size_t)t[0]->dim[0] != p->count)
        return ic_fail(ICAE_EMISMATCH,
                       "%.400s: holds %lld trained values, this configuration has %zu", c->path,
                       (long long)t[0]->dim[0], p->count);
    for (int i = 0; i < 3; i++)
        memcpy(to[i], t[i]->data, p->count * sizeof(float));
    ic_params_refresh(p);
    return ICAE_OK;
}

bool ic_checkpoint_exists(const char *folder)
{
    bool any = false;
    for (int i = 0; i < NAMES; i++) {
        char *path = ic_path_join(folder, names[i]);
        any |= path && ic_path_exists(path);
        ic_free(path);
    }
    return any;
}

void ic_checkpoint_remove(const char *folder)
{
    for (int i = 0; i < NAMES; i++) {
        char *path = ic_path_join(folder, names[i]);
        if (path)
            (void)unlink(path);
        ic_free(path);
    }
}
