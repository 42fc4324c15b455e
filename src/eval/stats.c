/*
 * stats.c - means, quantiles and intervals of measured values.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdlib.h>

int ic_stats_add(ic_stats *s, double value)
{
    if (!isfinite(value))
        return ICAE_OK;
    if (s->count == s->capacity) {
        size_t n = IC_MAX((size_t)64, s->capacity * 2);
        double *more = ic_resize(s->value, n, sizeof *more);
        if (!more)
            return ICAE_ENOMEM;
        s->value = more;
        s->capacity = n;
    }
    s->value[s->count++] = value;
    s->sorted = false;
    return ICAE_OK;
}

double ic_stats_mean(const ic_stats *s)
{
    double sum = 0;
    for (size_t i = 0; i < s->count; i++)
        sum += s->value[i];
    return s->count ? sum / (double)s->count : (double)NAN;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

double ic_stats_quantile(ic_stats *s, double q)
{
    if (!s->count)
        return (double)NAN;
    if (!s->sorted)
        qsort(s->value, s->count, sizeof *s->value, ascending);
    s->sorted = true;
    double at = q * (double)(s->count - 1);
    size_t i = (size_t)at, j = IC_MIN(i + 1, s->count - 1);
    return s->value[i] + (at - (double)i) * (s->value[j] - s->value[i]);
}

double ic_stats_half(const ic_stats *s)
{
    double mean = ic_stats_mean(s), sum = 0, n = (double)s->count;
    for (size_t i = 0; i < s->count; i++)
        sum += (s->value[i] - mean) * (s->value[i] - mean);
    return s->count < 2 ? (double)NAN : 1.959963984540054 * sqrt(sum / (n - 1) / n);
}

void ic_stats_free(ic_stats *s)
{
    ic_free(s->value);
    *s = (ic_stats){0};
}

void ic_wilson(double *low, double *high, uint64_t k, uint64_t n)
{
    const double z = 1.959963984540054;
    if (!n) {
        *low = 0;
        *high = 1;
        return;
    }
    double p = (double)k / (double)n, m = (double)n, d = 1 + z * z / m;
    double centre = (p + z * z / (2 * m)) / d;
    double half = z / d * sqrt(p * (1 - p) / m + z * z / (4 * m * m));
    *low = IC_MAX(0, centre - half);
    *high = IC_MIN(1, centre + half);
}
