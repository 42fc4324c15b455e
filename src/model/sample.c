/*
 * sample.c - the choice of the next token from logits.
 *
 * Pure arithmetic on one row; random draws are counter based, so the same seed gives the same text.
 */
#include "model/model.h"

#include <math.h>
#include <stdlib.h>

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

static int by_logit(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : 1;
}

static int32_t argmax(const float *logits, int n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* Keeps the candidates within `min_p` of the best in probability; returns their count. */
static int keep_likely(candidate *c, const float *logits, int n, const icae_sampling *s)
{
    float best = logits[argmax(logits, n)];
    float floor = s->min_p > 0 ? best + s->temperature * logf(s->min_p) : -INFINITY;
    int count = 0;
    for (int32_t i = 0; i < n; i++)
        if (logits[i] >= floor)
            c[count++] = (candidate){logits[i], i};
    return count;
}

int32_t ic_sample(const float *logits, int vocabulary, const icae_sampling *s, uint64_t step,
                  float *scratch)
{
    if (!(s->temperature > 0))
        return argmax(logits, vocabulary);
    candidate *c = (candidate *)(void *)scratch;
    int count = keep_likely(c, logits, vocabulary, s);
    qsort(c, (size_t)count, sizeof *c, by_logit);
    if (s->top_k > 0 && s->top_k < count)
        count = s->top_k;
    float best = c[0].logit;
    double total = 0;
    for (int i = 0; i < count; i++) {
        c[i].logit = expf((c[i].logit - best) / s->temperature);
        total += (double)c[i].logit;
    }
    if (s->top_p > 0 && s->top_p < 1) {
        double sum = 0, wanted = total * (double)s->top_p;
        int kept = 0;
        while (kept < count && sum < wanted)
            sum += (double)c[kept++].logit;
        count = IC_MAX(kept, 1);
        total = sum;
    }
    double draw = ic_random_unit(s->seed, IC_STREAM_SAMPLE, step) * total;
    for (int i = 0; i < count; i++) {
        draw -= (double)c[i].logit;
        if (draw < 0)
            return c[i].id;
    }
    return c[count - 1].id;
}
