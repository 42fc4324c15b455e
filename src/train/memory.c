/*
 * memory.c - what a run needs, before it takes it: memory by recompute tier and packing budget, and the
 * machine's rate of products.
 */
#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUDGET 4096 /* tokens a micro-batch: enough for full speed */
#define LEAST  1024

static uint64_t read_number(const char *path)
{
    char text[64];
    unsigned long long v = 0;
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    if (!fgets(text, sizeof text, f) || sscanf(text, "%llu", &v) != 1)
        v = 0;
    fclose(f);
    return v;
}

/* What the system calls available, within the limit of a container. */
uint64_t ic_memory_available(void)
{
    char line[128];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    uint64_t free_bytes = kib ? (uint64_t)kib << 10
                              : (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    uint64_t used = read_number("/sys/fs/cgroup/memory.current");
    return limit ? IC_MIN(free_bytes, limit > used ? limit - used : 0) : free_bytes;
}

static uint64_t trained_bytes(const ic_params *p)
{
    return p->count * (4 * sizeof(float) + (p->shadow ? 2 : 0));
}

/* The costliest example of `tokens` tokens: at the lowest rate, which gives most slots. */
static ic_example worst(const ic_training *t, const int32_t *ids, int tokens)
{
    const ic_reals *rates = &t->s->rates;
    double rate = rates->count ? rates->v[0] : (double)t->params->adapter->rate;
    for (int i = 1; i < rates->count; i++)
        rate = IC_MIN(rate, rates->v[i]);
    return (ic_example){.context = ids,
                        .after = ids,
                        .tokens = tokens,
                        .after_count = tokens + 2,
                        .full = ids,
                        .full_count = tokens + 2,
                        .unscored = 1,
                        .rate = (float)rate,
                        .weight = 1};
}

/* Scratch of a micro-batch of `budget` tokens, filled with the longest samples. */
static int measure(ic_training *t, int64_t budget, int tier, size_t *bytes)
{
    int longest = t->sampler->max_tokens, cost = 2 * longest + 2;
    int count = (int)IC_MAX(budget / cost, 1), rest = (int)(budget - (int64_t)count * cost) / 2 - 1;
    int32_t *ids = ic_alloc((size_t)longest + 2, sizeof *ids);
    ic_example *e = ic_alloc((size_t)count + 1, sizeof *e);
    if (!ids || !e) {
        ic_free(ids);
        ic_free(e);
        return ICAE_ENOMEM;
    }
    for (int i = 0; i < count; i++)
        e[i] = worst(t, ids, longest);
    if (rest > 0 && rest <= longest)
        e[count++] = worst(t, ids, rest);
    ic_gradient_options o = {
        .recompute = tier, .dropout = (float)t->s->dropout, .distill = (float)t->s->distill};
    *bytes = ic_gradients_measure(t->session, t->params, e, count, &o);
    ic_free(ids);
    ic_free(e);
    return ICAE_OK;
}

int ic_training_plan_memory(ic_training *t)
{
    const ic_settings *s = t->s;
    uint64_t all = s->memory ? s->memory : ic_memory_available() / 10 * 9;
    uint64_t fixed = t->model->bytes, own = trained_bytes(t->params),
             local = (uint64_t)t->dist.local;
    uint64_t room = all > fixed ? (all - fixed) / (s->memory ? 1 : local) : 0;
    bool any_tier = strcmp(s->recompute, "auto") == 0;
    int first = any_tier ? 0 : s->recompute[0] - '0', last = any_tier ? 3 : first;
    int64_t longest = t->sampler->max_cost;
    int64_t most = s->batch_tokens ? s->batch_tokens : IC_MAX(BUDGET, longest);
    int64_t least = s->batch_tokens ? s->batch_tokens : IC_MAX(LEAST, longest);
    size_t need = 0;
    room = room > own ? room - own : 0;
    for (t->recompute = first; t->recompute <= last; t->recompute++)
        for (int64_t budget = most;; budget = IC_MAX(budget / 2, least)) {
            int rc = measure(t, budget, t->recompute, &need);
            if (rc < 0)
                return rc;
            if (need <= room) {
                t->budget = budget;
                t->scratch = need;
                return ICAE_OK;
            }
            if (budget <= least)
                break;
        }
    return ic_fail(
        ICAE_ENOMEM,
        "training needs %llu MB of memory (weights %llu, adapter %llu, activations %zu), %llu are "
        "%s: lower max_tokens%s or k",
        (unsigned long long)((fixed + own + need) >> 20), (unsigned long long)(fixed >> 20),
        (unsigned long long)(own >> 20), need >> 20, (unsigned long long)(all >> 20),
        s->memory ? "allowed" : "free", any_tier ? "" : ", raise recompute");
}

/* ---- products --------------------------------------------------------------------------------- */

double ic_measure_peak(ic_training *t)
{
    enum { ROWS = 512, WIDE = 1024 };
    ic_backend *be = t->session->be;
    ic_dtype type = t->session->act;
    size_t bytes = (size_t)ic_dtypes[type].bytes;
    char *x = ic_alloc((size_t)ROWS * WIDE, bytes), *w = ic_alloc((size_t)WIDE * WIDE, bytes);
    float *y = ic_alloc((size_t)ROWS * WIDE, sizeof *y);
    double best = 0;
    for (int i = 0; i < 4 && x && w && y; i++) {
        double start = ic_seconds();
        be->linear(be, ic_mat_of(y, IC_F32, ROWS, WIDE), ic_mat_of(x, type, ROWS, WIDE),
                   ic_mat_of(w, type, WIDE, WIDE), NULL, 1, false);
        double rate = 2.0 * ROWS * WIDE * WIDE / (ic_seconds() - start);
        best = IC_MAX(best, rate);
    }
    ic_free(x);
    ic_free(w);
    ic_free(y);
    return best;
}

double ic_training_work(const ic_training *t, const ic_item *items, int count)
{
    const ic_config *c = &t->model->config;
    double linear = 0, lora = 0, encoder = 0, decoder = 0, scored = 0, teacher = 0, taught = 0;
    for (int l = 0; l < c->layers; l++)
        for (int i = 0; i < IC_TARGETS; i++) {
            ic_mat w = t->model->layer[l].linear[i].w;
            const ic_lora *a = &t->params->adapter->lora[l * IC_TARGETS + i];
            linear += (double)w.rows * w.cols;
            lora += a->a.data ? (double)a->a.rows * (w.rows + w.cols) : 0;
        }
    for (int i = 0; i < count; i++) {
        const ic_item *o = &items[i];
        int slots = 0, n = ic_segment_count(t->params->adapter, o->rate, (uint64_t)o->tokens);
        scored += o->targets;
        if (o->plain) {
            decoder += o->cost;
            continue;
        }
        for (int s = 0; s < n; s++)
            slots += ic_segment_slots(
                t->params->adapter, o->rate,
                ic_segment_tokens(t->params->adapter, o->rate, (uint64_t)o->tokens, s));
        if (o->taught) {
            teacher += o->cost;
            taught += o->targets;
        }
        encoder += o->tokens + slots;
        decoder += o->cost - o->tokens + slots;
    }
    double adapted = encoder + (t->params->adapter->both ? decoder : 0);
    return 4 * linear * (encoder + decoder) + 2 * linear * teacher + 6 * lora * adapted +
           2 * (double)c->vocabulary * c->width * (2 * scored + taught);
}
