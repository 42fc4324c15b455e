/*
 * dtype.c - numbers of every stored type to and from f32.
 *
 * Plain C and exact: the oracle that faster kernels are compared with. The quantised layouts are
 * those of GGUF (ggml's block types); products are rounded in the order in which llama.cpp rounds
 * them, so that values agree to the last bit. Knows nothing of files.
 */
#include "format/format.h"

#include <string.h>

const ic_dtype_info ic_dtypes[IC_DTYPES] = {
    [IC_F32] = {"F32", 1, 4, false},      [IC_F16] = {"F16", 1, 2, false},
    [IC_BF16] = {"BF16", 1, 2, false},    [IC_I8] = {"I8", 1, 1, false},
    [IC_U8] = {"U8", 1, 1, false},        [IC_I32] = {"I32", 1, 4, false},
    [IC_I64] = {"I64", 1, 8, false},      [IC_F64] = {"F64", 1, 8, false},
    [IC_Q8_0] = {"Q8_0", 32, 34, true},   [IC_Q4_0] = {"Q4_0", 32, 18, true},
    [IC_Q4_K] = {"Q4_K", 256, 144, true}, [IC_Q5_K] = {"Q5_K", 256, 176, true},
    [IC_Q6_K] = {"Q6_K", 256, 210, true},
};

typedef union bits {
    float f;
    uint32_t u;
} bits;

float ic_f16_to_f32(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000) << 16, exponent = v >> 10 & 31, fraction = v & 1023;
    if (exponent == 31) /* infinity, or NaN made quiet */
        return (bits){.u = sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0)}.f;
    if (exponent > 0)
        return (bits){.u = sign | (exponent + 112) << 23 | fraction << 13}.f;
    float subnormal = (float)fraction * 0x1p-24f; /* exact */
    return sign ? -subnormal : subnormal;
}

uint16_t ic_f32_to_f16(float v)
{
    bits x = {v};
    uint16_t sign = (uint16_t)(x.u >> 16 & 0x8000);
    uint32_t magnitude = x.u & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x1ff));
    if (magnitude >= 0x477ff000u) /* 65520 and more round to infinity */
        return sign | 0x7c00;
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: adding 0.5 puts the last bit of f16's subnormals on f32's last bit, and the
         * addition rounds to nearest even. */
        bits sum = {(bits){.u = magnitude}.f + 0.5f};
        return (uint16_t)(sign | (sum.u - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

static uint16_t u16_at(const unsigned char *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float f16_at(const unsigned char *p)
{
    return ic_f16_to_f32(u16_at(p));
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static void block_q8_0(float *dst, const unsigned char *b)
{
    float scale = f16_at(b);
    for (int i = 0; i < 32; i++)
        dst[i] = scale * (float)(int8_t)b[2 + i];
}

/* Low nibbles are the first half of the block, high nibbles the second. */
static void block_q4_0(float *dst, const unsigned char *b)
{
    float scale = f16_at(b);
    for (int i = 0; i < 16; i++) {
        dst[i] = scale * (float)((b[2 + i] & 15) - 8);
        dst[i + 16] = scale * (float)((b[2 + i] >> 4) - 8);
    }
}

/* Q4_K and Q5_K: eight groups of 32, each with a 6-bit scale and a 6-bit minimum, packed in 12
 * bytes: groups 0 to 3 in the low six bits of bytes 0-3 (scale) and 4-7 (minimum); groups 4 to 7
 * have their low four bits in bytes 8-11 and the upper two in the top bits of the former. */
static void group_scale(int *scale, int *minimum, const unsigned char *p, int group)
{
    if (group < 4) {
        *scale = p[group] & 63;
        *minimum = p[group + 4] & 63;
    } else {
        *scale = (p[group + 4] & 15) | (p[group - 4] >> 6) << 4;
        *minimum = p[group + 4] >> 4 | (p[group] >> 6) << 4;
    }
}

/* `fifth`: 32 bytes whose bit g is the fifth bit of group g; NULL for four-bit values. */
static void block_q45_k(float *dst, const unsigned char *b, const unsigned char *fifth,
                        const unsigned char *nibbles)
{
    float d = f16_at(b), dmin = f16_at(b + 2);
    for (int group = 0; group < 8; group++, dst += 32) {
        int scale, minimum;
        group_scale(&scale, &minimum, b + 4, group);
        float factor = d * (float)scale, offset = dmin * (float)minimum;
        const unsigned char *q = nibbles + group / 2 * 32;
        int shift = group % 2 * 4;
        for (int i = 0; i < 32; i++) {
            int v = q[i] >> shift & 15;
            if (fifth)
                v |= (fifth[i] >> group & 1) << 4;
            dst[i] = factor * (float)v - offset;
        }
    }
}

static void block_q4_k(float *dst, const unsigned char *b)
{
    block_q45_k(dst, b, NULL, b + 16);
}

static void block_q5_k(float *dst, const unsigned char *b)
{
    block_q45_k(dst, b, b + 16, b + 48);
}

/* Two halves of 128 values: 64 bytes of low nibbles, 32 bytes of upper bit pairs, and eight int8
 * scales, one for every 16 values; the scale of scales stands at the end. */
static void block_q6_k(float *dst, const unsigned char *b)
{
    float d = f16_at(b + 208);
    for (int half = 0; half < 2; half++, dst += 128) {
        const unsigned char *low = b + half * 64, *high = b + 128 + half * 32;
        const unsigned char *scale = b + 192 + half * 8;
        for (int i = 0; i < 128; i++) {
            int quarter = i / 32, column = i % 32;
            int nibble = low[i % 64] >> (quarter / 2 * 4) & 15;
            int v = (nibble | (high[column] >> (quarter * 2) & 3) << 4) - 32;
            dst[i] = d * (float)(int8_t)scale[i / 16] * (float)v;
        }
    }
}

static void blocks(float *dst, const unsigned char *src, ic_dtype t, size_t n)
{
    static void (*const read[IC_DTYPES])(float *, const unsigned char *) = {
        [IC_Q8_0] = block_q8_0, [IC_Q4_0] = block_q4_0, [IC_Q4_K] = block_q4_k,
        [IC_Q5_K] = block_q5_k, [IC_Q6_K] = block_q6_k,
    };
    size_t values = (size_t)ic_dtypes[t].block, bytes = (size_t)ic_dtypes[t].bytes;
    assert(n % values == 0);
    for (; n > 0; n -= values, dst += values, src += bytes)
        read[t](dst, src);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* One plain value, from memory that need not be aligned. */
#define CONVERT(type, expression)               \
    for (size_t i = 0; i < n; i++) {            \
        type v;                                 \
        memcpy(&v, p + i * sizeof v, sizeof v); \
        dst[i] = (expression);                  \
    }                                           \
    break

void ic_to_f32(float *dst, const void *src, ic_dtype t, size_t n)
{
    const unsigned char *p = src;
    switch (t) {
    case IC_F32:
        if (n > 0)
            memcpy(dst, src, n * sizeof *dst);
        break;
    case IC_F16:
        CONVERT(uint16_t, ic_f16_to_f32(v));
    case IC_BF16:
        CONVERT(uint16_t, ic_bf16_to_f32(v));
    case IC_F64:
        CONVERT(double, (float)v);
    case IC_I8:
        CONVERT(int8_t, (float)v);
    case IC_U8:
        CONVERT(uint8_t, (float)v);
    case IC_I32:
        CONVERT(int32_t, (float)v);
    case IC_I64:
        CONVERT(int64_t, (float)v);
    case IC_Q8_0:
    case IC_Q4_0:
    case IC_Q4_K:
    case IC_Q5_K:
    case IC_Q6_K:
        blocks(dst, p, t, n);
        break;
    case IC_DTYPES:
        assert(!"no data type");
    }
}

void ic_from_f32(void *dst, const float *src, ic_dtype t, size_t n)
{
    assert(t == IC_F32 || t == IC_F16 || t == IC_BF16);
    if (t == IC_F32) {
        if (n > 0)
            memcpy(dst, src, n * sizeof *src);
        return;
    }
    unsigned char *p = dst;
    for (size_t i = 0; i < n; i++) {
        uint16_t v = t == IC_F16 ? ic_f32_to_f16(src[i]) : ic_f32_to_bf16(src[i]);
        memcpy(p + 2 * i, &v, 2);
    }
}
