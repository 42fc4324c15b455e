/*
 * setup.c - everything that has to be right before the first step: folder and lock, model, adapter,
 * text, memory, and the state of an earlier session.
 *
 * With several processes each step of the setup is agreed on, so that all go on or all say why not.
 */
#include "train/run.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

void ic_training_notice(ic_training *t, bool warning, const char *format, ...)
{
    char line[1500];
    va_list arguments;
    if (!t->callbacks.notice || t->dist.rank)
        return;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    t->callbacks.notice(t->callbacks.user, warning, line);
}

bool ic_training_stopped(const ic_training *t)
{
    return t->callbacks.stop && t->callbacks.stop(t->callbacks.user);
}

/* ---- the folder ------------------------------------------------------------------------------- */

static int lock_folder(ic_training *t)
{
    const char *out = t->s->out;
    char pid[32] = {0}, *path = NULL;
    int rc = ic_make_folders(out);
    if (rc < 0)
        return rc;
    if (!(path = ic_path_join(out, "lock")))
        return ICAE_ENOMEM;
    t->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (t->lock < 0) {
        rc = ic_fail(ICAE_EIO, "cannot write in %.400s: %s", out, strerror(errno));
    } else if (flock(t->lock, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
        ssize_t n = read(t->lock, pid, sizeof pid - 1);
        pid[n > 0 ? strcspn(pid, "\n") : 0] = 0;
        rc = ic_fail(ICAE_EINVAL, "%.400s is in use by another run (process %s)", out,
                     *pid ? pid : "?");
    } else if (ftruncate(t->lock, 0) == 0) {
        int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
        (void)!write(t->lock, pid, (size_t)n);
    }
    ic_free(path);
    return rc;
}

/* Three checkpoints at a time, two adapters, and room for metrics. */
static uint64_t disk_bytes(const ic_params *p)
{
    return 3 * ic_checkpoint_bytes(p) + 2 * p->count * sizeof(float) + (1 << 20);
}

static int check_space(ic_training *t)
{
    struct statvfs v;
    uint64_t need = disk_bytes(t->params);
    if (statvfs(t->s->out, &v) < 0)
        return ICAE_OK;
    uint64_t have = (uint64_t)v.f_bavail * v.f_frsize;
    if (have >= need)
        return ICAE_OK;
    return ic_fail(ICAE_EIO, "%.400s: the run needs %llu MB on disk, %llu MB are free", t->s->out,
                   (unsigned long long)(need >> 20) + 1, (unsigned long long)(have >> 20));
}

/* ---- model and adapter ------------------------------------------------------------------------ */

static int open_model(ic_training *t)
{
    const ic_settings *s = t->s;
    icae_model_options o = {.compute = strcmp(s->compute, "f32") == 0    ? ICAE_COMPUTE_F32
                                       : strcmp(s->compute, "bf16") == 0 ? ICAE_COMPUTE_BF16
                                                                         : ICAE_COMPUTE_AUTO,
                            .template_name = *s->template_name ? s->template_name : NULL};
    int rc = icae_model_open(&t->model, *s->base ? s->base : NULL, &o);
    if (rc == ICAE_OK && !t->model->tokenizer)
        rc = ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be read",
                     t->model->path);
    return rc;
}

/* Cores of this process among as many processes on this machine. */
static int threads_of(const ic_training *t)
{
    cpu_set_t set;
    if (t->s->threads || t->dist.local < 2)
        return (int)t->s->threads;
    if (sched_getaffinity(0, sizeof set, &set) < 0 ||
        CPU_COUNT(&set) < (int)sysconf(_SC_NPROCESSORS_ONLN))
        return 0; /* the launcher has dealt the cores already */
    return IC_MAX(1, CPU_COUNT(&set) / t->dist.local);
}

static ic_adapter_shape wanted_shape(const ic_settings *s)
{
    ic_adapter_shape shape = {
        .k = (int)s->k,
        .rank = (int)s->rank,
        .rate = (float)s->rate,
        .alpha = (float)s->alpha,
        .spread = strcmp(s->positions, "spread") == 0,
        .proportional = strcmp(s->slots, "proportional") == 0,
        .both = strcmp(s->lora, "both") == 0,
        .lm_token = s->lm_token,
        .bos = s->bos,
        .span = (int)s->span,
    };
    bool served = s->rates.count == 0;
    for (int i = 0; i < s->rates.count; i++) {
        shape.rates[shape.rates_count++] = (float)s->rates.v[i];
        served |= s->rates.v[i] == s->rate;
    }
    if (!served)
        shape.rate = shape.rates[0];
    for (size_t i = 0; i < s->targets.count; i++)
        for (int k = 0; k < IC_TARGETS; k++)
            shape.target[k] |= strcmp(s->targets.item[i], ic_target_names[k]) == 0;
    return shape;
}

/* What was set and the adapter cannot be any more. */
static int check_start(const ic_training *t)
{
    const icae_train_config *c = t->config;
    const icae_adapter *a = t->start;
    ic_adapter_shape w = wanted_shape(t->s), have = t->params->shape;
    if (ic_settings_is_set(c, "rank") && w.rank != a->rank)
        return ic_fail(ICAE_EMISMATCH, "rank: %d, but %s has %d", w.rank, a->path, a->rank);
    if (ic_settings_is_set(c, "k") && w.k != a->k)
        return ic_fail(ICAE_EMISMATCH, "k: %d, but %s has %d", w.k, a->path, a->k);
    if (a->both && !w.both)
        return ic_fail(ICAE_EMISMATCH,
                       "lora: encoder, but %s was trained with both; merge it into its base first "
                       "(tools/merge_adapter.py), or set both",
                       a->path);
    if (ic_settings_is_set(c, "targets") && memcmp(w.target, have.target, sizeof w.target) != 0)
        return ic_fail(ICAE_EMISMATCH, "targets: %s has %s", a->path, a->targets);
    return ICAE_OK;
}

/* Trains on from an adapter; what it may learn anew is set. */
static int continue_adapter(ic_training *t, bool bf16)
{
    int rc = ICAE_OK;
    const icae_train_config *c = t->config;
    const ic_settings *s = t->s;
    icae_adapter_options o = {0};
    if (ic_settings_is_set(c, "k"))
        o.k = (int)s->k;
    if (ic_settings_is_set(c, "alpha"))
        o.alpha = (float)s->alpha;
    if (ic_settings_is_set(c, "positions"))
        o.positions = s->positions;
    if (ic_settings_is_set(c, "slots"))
        o.slots = s->slots;
    if (ic_settings_is_set(c, "rate") && !s->rates.count)
        o.rate = (float)s->rate;
    bool demo = strcmp(s->adapter, "demo") == 0 &&
                (!ic_settings_is_set(c, "adapter") || !ic_path_exists("demo"));
    IC_TRY(icae_adapter_open(&t->start, demo ? NULL : s->adapter, t->model, &o));
    IC_TRY(ic_params_from_adapter(&t->params, t->start, bf16));
    IC_TRY(check_start(t));
    icae_adapter *a = t->params->adapter;
    ic_adapter_shape w = wanted_shape(s);
    a->both = w.both;
    a->lm_token |= s->lm_token;
    if (ic_settings_is_set(c, "bos"))
        a->bos = s->bos;
    if (s->rates.count) {
        a->rates_count = w.rates_count;
        memcpy(a->rates, w.rates, sizeof a->rates);
        a->rate = w.rate;
    }
done:
    return rc;
}

static int make_params(ic_training *t)
{
    int rc = ICAE_OK;
    const ic_settings *s = t->s;
    icae_session_options so = {.threads = threads_of(t)};
    IC_TRY(icae_session_new(&t->session, t->model, NULL, &so));
    bool bf16 = t->session->act == IC_BF16;
    if (*s->adapter) {
        IC_TRY(continue_adapter(t, bf16));
    } else {
        ic_adapter_shape shape = wanted_shape(s);
        ic_memory_init init = strcmp(s->init, "normal") == 0        ? IC_INIT_NORMAL
                              : strcmp(s->init, "token_means") == 0 ? IC_INIT_TOKEN_MEANS
                                                                    : IC_INIT_TOKEN_SCALE;
        if (shape.k >= t->model->config.max_positions)
            return ic_fail(ICAE_ELIMIT, "k: %d slots do not fit into the %d positions of %s",
                           shape.k, t->model->config.max_positions, t->model->path);
        IC_TRY(ic_params_new(&t->params, t->model, &shape, init, (uint64_t)s->seed, bf16));
    }
    t->session->adapter = t->params->adapter;
done:
    return rc;
}

/* ---- text ------------------------------------------------------------------------------------- */

static int forward_progress(void *user, const char *unit, uint64_t done, uint64_t total)
{
    const ic_training *t = user;
    return t->callbacks.progress ? t->callbacks.progress(t->callbacks.user, unit, done, total) : 0;
}

static bool forward_stop(void *user)
{
    return ic_training_stopped(user);
}

static void forward_notice(void *user, bool warning, const char *line)
{
    ic_training_notice(user, warning, "%s", line);
}

static int read_text(ic_training *t)
{
    int rc = ICAE_OK;
    char *folder = NULL;
    const ic_settings *s = t->s;
    IC_TRY(ic_cache_folder(&folder, s->cache, s->out));
    ic_reading r = {.tokenizer = t->model->tokenizer,
                    .vocabulary = t->model->config.vocabulary,
                    .folder = folder,
                    .strict = s->strict,
                    .notice = forward_notice,
                    .progress = forward_progress,
                    .stop = forward_stop,
                    .user = t};
    IC_TRY(ic_data_open(&t->data, &s->data, &r));
    if (s->eval_data.count)
        IC_TRY(ic_data_open(&t->eval_data, &s->eval_data, &r));
done:
    ic_free(folder);
    return rc;
}

/* Held-out text is drawn by a seed of its own, so that every run is measured on the same. */
enum { EVAL_SEED = 20 };

static int make_samplers(ic_training *t)
{
    int rc = ICAE_OK;
    icae_adapter *a = t->params->adapter;
    const ic_settings *s = t->s;
    IC_TRY(
        ic_sampler_new(&t->sampler, s, t->model, a, t->data, (uint64_t)s->seed, forward_notice, t));
    if (t->eval_data)
        IC_TRY(
            ic_sampler_new(&t->eval_sampler, s, t->model, a, t->eval_data, EVAL_SEED, NULL, NULL));
    int longest = t->sampler->max_tokens;
    if (s->span)
        a->span = (int)s->span;
    else if (s->ae_weight > 0)
        a->span = !t->start ? longest : a->span ? IC_MAX(a->span, longest) : 0;
    t->batch = (int)IC_MIN(s->batch * s->accumulate * t->dist.ranks, INT32_MAX / 2);
    t->items = ic_alloc((size_t)t->batch, sizeof *t->items);
    t->micro = ic_alloc((size_t)t->batch, sizeof *t->micro);
    t->nll = ic_alloc((size_t)t->batch, sizeof *t->nll);
    if (!t->items || !t->micro || !t->nll)
        rc = ICAE_ENOMEM;
done:
    return rc;
}

static void tell_text(ic_training *t)
{
    const ic_data *d = t->data;
    const ic_sampler *p = t->sampler;
    ic_training_notice(
        t, false,
        "text: %llu documents (%llu with prompts), %llu tokens in %zu files; %llu bad lines "
        "skipped, %llu documents longer than %d tokens %s, %llu contexts cut, %llu left out",
        (unsigned long long)d->documents, (unsigned long long)d->triples,
        (unsigned long long)d->tokens, d->files, (unsigned long long)d->skipped,
        (unsigned long long)p->longer, p->max_tokens,
        strcmp(t->s->longer, "skip") == 0  ? "left out"
        : strcmp(t->s->longer, "cut") == 0 ? "cut"
                                           : "split",
        (unsigned long long)p->cut, (unsigned long long)p->unusable);
    uint64_t things = t->s->ft_weight > 0 ? d->triples : p->pool[0].total;
    if (things < (uint64_t)t->batch)
        ic_training_notice(t, true,
                           "the text makes %llu samples, a batch has %d: each is read several "
                           "times a step",
                           (unsigned long long)things, t->batch);
    if (!t->eval_data)
        ic_training_notice(t, false,
                           "without eval_data nothing is measured on held-out text, and there "
                           "will be no best.safetensors");
}

/* ---- the state of an earlier session ---------------------------------------------------------- */

/* Lists what is different from the run that is to go on. */
static int check_changes(ic_training *t, const ic_checkpoint *c)
{
    ic_buffer b = {0};
    int rc = ic_settings_changes(t->config, c->config, &b);
    if (rc == ICAE_OK && c->state.samples_a_step != t->batch)
        rc = ic_buffer_addf(&b, "%ssamples a step (batch, accumulate, processes) %lld -> %d",
                            b.size ? ", " : "", (long long)c->state.samples_a_step, t->batch);
    if (rc == ICAE_OK && strcmp(c->state.data, t->data->identity) != 0)
        rc = ic_buffer_addf(&b, "%sthe content of data", b.size ? ", " : "");
    if (rc == ICAE_OK && b.size && !t->s->force)
        rc = ic_fail(ICAE_EMISMATCH,
                     "%.300s: the configuration changed since the checkpoint: %.600s; "
                     "--force goes on all the same",
                     t->s->out, b.data);
    else if (rc == ICAE_OK && b.size)
        ic_training_notice(t, true, "the configuration changed since the checkpoint: %s", b.data);
    if (rc == ICAE_OK && strcmp(c->state.base, t->model->identity) != 0)
        rc = ic_fail(ICAE_EMISMATCH,
                     "%.300s: the run is one of another base model (%.12s…), %s is %.12s…",
                     t->s->out, c->state.base, t->model->path, t->model->identity);
    ic_buffer_free(&b);
    return rc;
}

static int resume(ic_training *t)
{
    ic_checkpoint c = {0};
    int rc = ICAE_OK;
    IC_TRY(ic_checkpoint_open(&c, t->s->out, forward_notice, t));
    IC_TRY(check_changes(t, &c));
    IC_TRY(ic_checkpoint_restore(&c, t->params));
    t->state = c.state;
    t->state.samples_a_step = t->batch;
    t->state.bad_in_a_row = 0;
    memcpy(t->state.data, t->data->identity, sizeof t->state.data);
    ic_training_notice(t, false, "going on from step %llu", (unsigned long long)t->state.step);
done:
    ic_checkpoint_close(&c);
    return rc;
}

static int begin_or_resume(ic_training *t)
{
    const ic_settings *s = t->s;
    bool exists = ic_checkpoint_exists(s->out);
    t->state = (ic_state){.best = NAN, .samples_a_step = t->batch};
    memcpy(t->state.data, t->data->identity, sizeof t->state.data);
    memcpy(t->state.base, t->model->identity, sizeof t->state.base);
    if (s->resume && exists)
        return resume(t);
    if (s->resume)
        ic_training_notice(
            t, true, "%s: there is no checkpoint yet; the run starts from the beginning", s->out);
    if (exists && !s->force)
        return ic_fail(ICAE_EINVAL,
                       "%.400s holds a run already: --resume goes on with it, --force starts "
                       "anew",
                       s->out);
    if (exists)
        ic_checkpoint_remove(s->out);
    return ICAE_OK;
}

static int share_state(ic_training *t)
{
    int rc = ICAE_OK;
    size_t bytes = t->params->count * sizeof(float);
    IC_TRY(ic_dist_share(&t->dist, &t->state, sizeof t->state));
    IC_TRY(ic_dist_share(&t->dist, t->params->p, bytes));
    IC_TRY(ic_dist_share(&t->dist, t->params->m, bytes));
    IC_TRY(ic_dist_share(&t->dist, t->params->v, bytes));
    ic_params_refresh(t->params);
done:
    return rc;
}

/* ---- all of it -------------------------------------------------------------------------------- */

/* Runs `step` on the first process, then on the others. */
static int in_turn(ic_training *t, int (*step)(ic_training *t))
{
    int rc = ic_dist_agree(&t->dist, t->dist.rank == 0 ? step(t) : ICAE_OK);
    if (rc == ICAE_OK && t->dist.ranks > 1)
        rc = ic_dist_agree(&t->dist, t->dist.rank ? step(t) : ICAE_OK);
    return rc;
}

static int on_first(ic_training *t, int (*step)(ic_training *t))
{
    return ic_dist_agree(&t->dist, t->dist.rank == 0 ? step(t) : ICAE_OK);
}

static int on_all(ic_training *t, int (*step)(ic_training *t))
{
    return ic_dist_agree(&t->dist, step(t));
}

static int check_config(ic_training *t)
{
    return icae_train_config_check(t->config);
}

static int open_metrics(ic_training *t)
{
    return ic_metrics_open(t, t->state.metrics_size);
}

int ic_training_open(ic_training *t, const icae_train_config *config,
                     const icae_train_callbacks *callbacks, bool measure)
{
    int rc = ICAE_OK;
    t->config = config;
    t->s = &config->s;
    t->callbacks = callbacks ? *callbacks : (icae_train_callbacks){0};
    t->lock = t->metrics = -1;
    IC_TRY(ic_dist_open(&t->dist));
    t->dist.timeout = t->s->timeout;
    t->dist.user = t;
    IC_TRY(on_all(t, check_config));
    if (!measure)
        IC_TRY(on_first(t, lock_folder));
    IC_TRY(on_all(t, open_model));
    IC_TRY(on_all(t, make_params));
    IC_TRY(in_turn(t, read_text));
    IC_TRY(on_all(t, make_samplers));
    tell_text(t);
    IC_TRY(on_all(t, ic_training_plan_memory));
    ic_training_notice(t, false,
                       "memory: recompute %d, %lld tokens at a time, %zu MB of activations",
                       t->recompute, (long long)t->budget, t->scratch >> 20);
    if (measure)
        return ICAE_OK;
    IC_TRY(on_first(t, check_space));
    IC_TRY(on_first(t, begin_or_resume));
    IC_TRY(share_state(t));
    IC_TRY(on_first(t, open_metrics));
    t->peak = ic_measure_peak(t);
    t->started = t->last_checkpoint = ic_seconds();
    t->before = t->state.seconds;
    t->first_progress = ic_training_progress(t->s, &t->state);
done:
    return rc;
}

void ic_training_close(ic_training *t)
{
    if (t->dist.failed) { /* the others are gone or hang: nobody may wait for anybody */
        if (t->callbacks.notice)
            t->callbacks.notice(t->callbacks.user, true, icae_error_message());
        ic_dist_abort(&t->dist);
    }
    if (t->metrics >= 0)
        close(t->metrics);
    if (t->lock >= 0)
        close(t->lock); /* and with it the lock */
    ic_buffer_free(&t->pending);
    ic_free(t->items);
    ic_free(t->micro);
    ic_free(t->nll);
    ic_sampler_free(t->sampler);
    ic_sampler_free(t->eval_sampler);
    ic_data_close(t->data);
    ic_data_close(t->eval_data);
    icae_session_free(t->session);
    ic_params_free(t->params);
    icae_adapter_free(t->start);
    icae_model_free(t->model);
    ic_dist_close(&t->dist);
}
