/*
 * slots.c - a compressed text as a value: its vectors in bf16 or int8 (f32 only in memory), segments,
 * fidelity.
 *
 * Owns the arrays of an icae_slots. Knows nothing of models, adapters or files (slots_file.c).
 */
#include "core/core.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

int ic_slots_new(icae_slots **out, int width, uint64_t count, uint32_t segments, ic_dtype dtype)
{
    bool known = dtype == IC_F32 || dtype == IC_BF16 || dtype == IC_I8;
    if (width < 1 || count < 1 || segments < 1 || !known)
        return ic_fail(ICAE_EINVAL,
                       "%" PRIu64 " slots of width %d in %" PRIu32
                       " segments as %s: expected one or more of each, F32, BF16 or I8",
                       count, width, segments, ic_dtypes[dtype].name);
    icae_slots *s = ic_alloc(1, sizeof *s);
    if (!s)
        return ICAE_ENOMEM;
    *s = (icae_slots){.width = width, .count = count, .dtype = dtype, .segments = segments};
    s->values = ic_alloc((size_t)count, ic_row_bytes(dtype, (size_t)width));
    s->segment = ic_alloc(segments, sizeof *s->segment);
    if (dtype == IC_I8)
        s->scales = ic_alloc((size_t)count, sizeof *s->scales);
    if (!s->values || !s->segment || (dtype == IC_I8 && !s->scales)) {
        icae_slots_free(s);
        return ICAE_ENOMEM;
    }
    *out = s;
    return ICAE_OK;
}

void icae_slots_free(icae_slots *s)
{
    if (!s)
        return;
    ic_free(s->values);
    ic_free(s->scales);
    ic_free(s->segment);
    ic_free(s->doubtful);
    ic_buffer_free(&s->corrections);
    ic_free(s);
}

/* ---- vectors ----------------------------------------------------------------------------------
 */

/* q = x / scale to the nearest, where the largest |x| becomes 127. */
static float quantise(int8_t *q, const float *x, size_t n)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf(x[i]));
    float scale = most / 127;
    for (size_t i = 0; i < n; i++) {
        /* A scale so small that it is rounded itself, or is 0, must not lead beyond 127. */
        float v = scale > 0 ? nearbyintf(x[i] / scale) : 0;
        q[i] = (int8_t)fmaxf(-127, fminf(127, v));
    }
    return scale;
}

void ic_slots_put(icae_slots *s, uint64_t first, const float *rows, uint64_t n)
{
    size_t width = (size_t)s->width;
    if (s->dtype != IC_I8) {
        ic_from_f32((char *)s->values + first * ic_row_bytes(s->dtype, width), rows, s->dtype,
                    n * width);
        return;
    }
    for (uint64_t i = 0; i < n; i++)
        s->scales[first + i] =
            quantise((int8_t *)s->values + (first + i) * width, rows + i * width, width);
}

void ic_slots_get(float *rows, const icae_slots *s, uint64_t first, uint64_t n)
{
    size_t width = (size_t)s->width;
    if (s->dtype != IC_I8) {
        ic_to_f32(rows, (const char *)s->values + first * ic_row_bytes(s->dtype, width), s->dtype,
                  n * width);
        return;
    }
    for (uint64_t i = first; i < first + n; i++) {
        const int8_t *q = (const int8_t *)s->values + i * width;
        for (size_t j = 0; j < width; j++)
            *rows++ = s->scales[i] * (float)q[j];
    }
}

int ic_slots_to_int8(icae_slots *s)
{
    int rc = ICAE_OK;
    size_t width = (size_t)s->width;
    double error = 0, size = 0;
    icae_slots *to = NULL;
    float *row = ic_alloc(2 * width, sizeof *row), *back = row + width;
    if (!row)
        return ICAE_ENOMEM;
    IC_TRY(ic_slots_new(&to, s->width, s->count, 1, IC_I8));
    for (uint64_t i = 0; i < s->count; i++) {
        ic_slots_get(row, s, i, 1);
        ic_slots_put(to, i, row, 1);
        ic_slots_get(back, to, i, 1);
        for (size_t j = 0; j < width; j++) {
            error += ((double)row[j] - back[j]) * ((double)row[j] - back[j]);
            size += (double)row[j] * row[j];
        }
    }
    s->int8_error = size > 0 ? sqrt(error / size) : 0;
    ic_free(s->values);
    s->values = to->values;
    s->scales = to->scales;
    s->dtype = IC_I8;
    to->values = NULL;
    to->scales = NULL;
done:
    ic_free(row);
    icae_slots_free(to);
    return rc;
}

int icae_slots_values(float **values, const icae_slots *s)
{
    *values = ic_alloc((size_t)s->count * (size_t)s->width, sizeof **values);
    if (!*values)
        return ICAE_ENOMEM;
    ic_slots_get(*values, s, 0, s->count);
    return ICAE_OK;
}

int ic_slots_join(icae_slots **out, const icae_slots *a, const icae_slots *b)
{
    int rc = ICAE_OK;
    icae_slots *s = NULL;
    char both[129];
    if (strcmp(a->base, b->base) || strcmp(a->adapter, b->adapter) || a->width != b->width ||
        a->dtype != b->dtype)
        return ic_fail(ICAE_EMISMATCH,
                       "slots of base %.12s, adapter %.12s in %s do not join those of base %.12s, "
                       "adapter %.12s in %s",
                       a->base, a->adapter, ic_dtypes[a->dtype].name, b->base, b->adapter,
                       ic_dtypes[b->dtype].name);
    IC_TRY(ic_slots_new(&s, a->width, a->count + b->count, a->segments + b->segments, a->dtype));
    size_t row = ic_row_bytes(a->dtype, (size_t)a->width);
    memcpy(s->values, a->values, a->count * row);
    memcpy((char *)s->values + a->count * row, b->values, b->count * row);
    if (s->scales) {
        memcpy(s->scales, a->scales, a->count * sizeof *s->scales);
        memcpy(s->scales + a->count, b->scales, b->count * sizeof *s->scales);
    }
    memcpy(s->segment, a->segment, a->segments * sizeof *s->segment);
    memcpy(s->segment + a->segments, b->segment, b->segments * sizeof *s->segment);
    s->tokens = a->tokens + b->tokens;
    s->text_size = a->text_size + b->text_size;
    s->rate = a->rate;
    s->span = IC_MIN(a->span, b->span);
    s->refined = IC_MAX(a->refined, b->refined);
    memcpy(s->base, a->base, sizeof s->base);
    memcpy(s->adapter, a->adapter, sizeof s->adapter);
    snprintf(both, sizeof both, "%s%s", a->text_sha256, b->text_sha256);
    IC_TRY(ic_hash_of(s->text_sha256, both, strlen(both)));
    s->measured = a->measured && b->measured;
    if (s->measured) {
        s->prefix = a->prefix + (a->prefix == a->tokens ? b->prefix : 0);
        s->doubtful_count = a->doubtful_count + b->doubtful_count;
        s->doubtful = ic_alloc(IC_MAX(s->doubtful_count, 1), sizeof *s->doubtful);
        if (!s->doubtful) {
            rc = ICAE_ENOMEM;
            goto done;
        }
        memcpy(s->doubtful, a->doubtful, a->doubtful_count * sizeof *s->doubtful);
        for (size_t i = 0; i < b->doubtful_count; i++)
            s->doubtful[a->doubtful_count + i] = b->doubtful[i] + (uint32_t)a->tokens;
    }
    *out = s;
    s = NULL;
done:
    icae_slots_free(s);
    return rc;
}

/* ---- what there is to tell --------------------------------------------------------------------
 */

static icae_fidelity fidelity(double loss_sum, uint64_t right, uint64_t prefix, uint64_t tokens)
{
    return (icae_fidelity){
        .measured = true,
        .loss = loss_sum / (double)tokens,
        .accuracy = (double)right / (double)tokens,
        .exact_prefix = prefix,
        .tokens = tokens,
    };
}

icae_slots_info icae_slots_describe(const icae_slots *s)
{
    icae_slots_info info = {
        .slots = s->count,
        .tokens = s->tokens,
        .segments = s->segments,
        .bytes = s->count *
                 (ic_row_bytes(s->dtype, (size_t)s->width) + (s->scales ? sizeof *s->scales : 0)),
        .text_size = s->text_size,
        .span = s->span,
        .width = s->width,
        .dtype = s->dtype == IC_I8     ? "int8"
                 : s->dtype == IC_BF16 ? "bf16"
                                       : "f32",
        .base = s->base,
        .adapter = s->adapter,
        .text_sha256 = s->text_sha256,
        .exact = s->corrections.size > 0,
        .corrections = s->correction_count,
        .correction_bytes = s->corrections.size,
        .int8_error = s->int8_error,
        .before_int8 = s->before_int8,
        .refined = (int)s->refined,
        .before_refining = s->before_refining,
    };
    if (s->measured && s->tokens > 0) {
        double loss_sum = 0;
        uint64_t right = 0;
        for (uint32_t i = 0; i < s->segments; i++) {
            loss_sum += s->segment[i].loss_sum;
            right += s->segment[i].right;
        }
        info.fidelity = fidelity(loss_sum, right, s->prefix, s->tokens);
    }
    return info;
}

icae_segment_info icae_slots_segment(const icae_slots *s, size_t segment)
{
    icae_segment_info info = {0};
    if (segment >= s->segments)
        return info;
    for (size_t i = 0; i < segment; i++) {
        info.first_token += s->segment[i].tokens;
        info.first_slot += s->segment[i].slots;
    }
    const ic_segment *g = &s->segment[segment];
    info.tokens = g->tokens;
    info.slots = g->slots;
    if (s->measured && g->tokens > 0)
        info.fidelity = fidelity(g->loss_sum, g->right, g->prefix, g->tokens);
    return info;
}

const uint32_t *icae_slots_doubtful(const icae_slots *s, size_t *count)
{
    *count = s->measured ? s->doubtful_count : 0;
    return s->measured ? s->doubtful : NULL;
}
