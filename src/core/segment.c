/*
 * segment.c - how a text is cut into segments, how many slots each gets, where they stand.
 *
 * Pure arithmetic (ICAE §2.2 and the published v2 code; spread positions and proportional slots are
 * ours). Knows nothing of files or models. Rates are decimal numbers that users write: 3.3 stored
 * as a float must not make eleven slots of 33 tokens, so quotients that miss a whole number only by
 * rounding are that number.
 */
#include "core/core.h"

#include <limits.h>
#include <math.h>

/* The decimal number that a rate was written as, if four places are enough to tell. */
static double decimal(float rate)
{
    double d = nearbyint((double)rate * 1e4) / 1e4;
    return (float)d == rate ? d : (double)rate;
}

/* a / b rounded up. The tolerance lies between the error of the division (2^-51) and the least
 * distance of a true fraction from a whole number (2^-44 at 2^31 tokens and four decimal places).
 */
static uint64_t divide_up(double a, double b)
{
    double q = a / b, whole = nearbyint(q);
    return (uint64_t)(fabs(q - whole) <= q * 0x1p-48 ? whole : ceil(q));
}

/* Tokens of every segment but the last; `tokens` is not 0. */
static uint64_t segment_length(const icae_adapter *a, float rate, uint64_t tokens)
{
    uint64_t n = divide_up((double)tokens, (double)a->k * decimal(rate));
    n = IC_MIN(IC_MAX(n, 1), (uint64_t)INT_MAX);
    return (tokens - 1) / n + 1;
}

/* For a fractional k r, segments rounded up to whole tokens may be fewer than ceil(tokens / (k r)):
 * no segment is empty. */
int ic_segment_count(const icae_adapter *a, float rate, uint64_t tokens)
{
    return tokens == 0 ? 0 : (int)((tokens - 1) / segment_length(a, rate, tokens) + 1);
}

int ic_segment_tokens(const icae_adapter *a, float rate, uint64_t tokens, int segment)
{
    uint64_t length = segment_length(a, rate, tokens);
    return (int)IC_MIN(length, tokens - length * (uint64_t)segment);
}

int ic_segment_slots(const icae_adapter *a, float rate, int tokens)
{
    if (!a->proportional)
        return a->k;
    return (int)IC_MIN((uint64_t)a->k, divide_up(tokens, decimal(rate)));
}

double ic_slot_position(int j, int slots, int tokens)
{
    return (j + 0.5) * tokens / slots - 0.5;
}
