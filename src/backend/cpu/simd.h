/*
 * simd.h - a vector of f32 for every instruction set, so that kernels are written once.
 *
 * The file that includes this sets ISA_LEVEL (0 plain C vectors, 1 AVX2 + FMA + F16C, 2 AVX-512,
 * 3 AVX-512 with bf16 dot products, 4 and with AMX) and the matching target pragma before. A vector has VL elements;
 * + - * / work on it. Everything is static inline: nothing here has a name at link time.
 */
#ifndef IC_SIMD_H
#define IC_SIMD_H

#include "format/format.h"

#include <string.h>

#if ISA_LEVEL > 0
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* ---- AVX-512 ---------------------------------------------------------------------------------- */
#if ISA_LEVEL >= 2
enum { VL = 16 };
typedef __m512 vf;

INLINE vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}
INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* The second operand if either is NaN. */
INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
INLINE vf v_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}
INLINE vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, 8);
}
/* a where x < y, else b. */
INLINE vf v_where_less(vf x, vf y, vf a, vf b)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}
INLINE float v_sum(vf x)
{
    return _mm512_reduce_add_ps(x);
}
INLINE float v_largest(vf x)
{
    return _mm512_reduce_max_ps(x);
}
/* x 2^n for whole n. */
INLINE vf v_scale2(vf x, vf n)
{
    return _mm512_scalef_ps(x, n);
}

INLINE __mmask16 v_mask(int n)
{
    return (__mmask16)((1u << n) - 1u);
}
INLINE vf v_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(v_mask(n), p);
}
INLINE void v_store_n(float *p, vf x, int n)
{
    _mm512_mask_storeu_ps(p, v_mask(n), x);
}

INLINE vf v_from_bf16(__m256i x)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
INLINE vf v_load_bf16(const uint16_t *p)
{
    return v_from_bf16(_mm256_loadu_si256((const void *)p));
}
INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
INLINE vf v_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vf v_load_u8(const uint8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)));
}
#if ISA_LEVEL >= 3
INLINE __m256i v_to_bf16(vf x)
{
    return (__m256i)_mm512_cvtneps_pbh(x);
}
#else
INLINE __m256i v_to_bf16(vf x)
{
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
#endif
INLINE void v_store_bf16(uint16_t *p, vf x)
{
    _mm256_storeu_si256((void *)p, v_to_bf16(x));
}

/* ---- AVX2 ------------------------------------------------------------------------------------- */
#elif ISA_LEVEL == 1
enum { VL = 8 };
typedef __m256 vf;

INLINE vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}
INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
INLINE void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}
INLINE vf v_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}
INLINE vf v_round(vf a)
{
    return _mm256_round_ps(a, 8);
}
INLINE vf v_where_less(vf x, vf y, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}
INLINE float v_sum(vf x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float v_largest(vf x)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
INLINE vf v_scale2(vf x, vf n)
{
    __m256i e =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(e));
}

INLINE __m256i v_mask(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf v_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, v_mask(n));
}
INLINE void v_store_n(float *p, vf x, int n)
{
    _mm256_maskstore_ps(p, v_mask(n), x);
}

INLINE vf v_load_bf16(const uint16_t *p)
{
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}
INLINE vf v_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
INLINE vf v_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE vf v_load_u8(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)));
}
INLINE void v_store_bf16(uint16_t *p, vf x)
{
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    r = _mm256_srli_epi32(r, 16);
    __m128i w = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128((void *)p, w);
}

/* ---- any machine ------------------------------------------------------------------------------ */
#else
#pragma GCC diagnostic ignored "-Wpsabi" /* all is inlined: vectors never pass through an ABI */
enum { VL = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vint __attribute__((vector_size(16)));

INLINE vf v_set1(float x)
{
    return (vf){x, x, x, x};
}
INLINE vf v_load(const float *p)
{
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
INLINE void v_store(float *p, vf x)
{
    memcpy(p, &x, sizeof x);
}
INLINE vf v_fma(vf a, vf b, vf c)
{
    return a * b + c;
}
INLINE vf v_select(vint mask, vf a, vf b)
{
    return (vf)(((vint)a & mask) | ((vint)b & ~mask));
}
INLINE vf v_max(vf a, vf b)
{
    return v_select(a > b, a, b);
}
INLINE vf v_min(vf a, vf b)
{
    return v_select(a < b, a, b);
}
INLINE vf v_sqrt(vf a)
{
    return (vf){__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
                __builtin_sqrtf(a[3])};
}
/* Right for |a| < 2^22: adding 1.5 2^23 leaves no room for a fraction. */
INLINE vf v_round(vf a)
{
    return (a + v_set1(12582912.0f)) - v_set1(12582912.0f);
}
INLINE vf v_where_less(vf x, vf y, vf a, vf b)
{
    return v_select(x < y, a, b);
}
INLINE float v_sum(vf x)
{
    return (x[0] + x[2]) + (x[1] + x[3]);
}
INLINE float v_largest(vf x)
{
    return IC_MAX(IC_MAX(x[0], x[1]), IC_MAX(x[2], x[3]));
}
INLINE vf v_scale2(vf x, vf n)
{
    vint e = __builtin_convertvector(n, vint) + 127;
    return x * (vf)(e << 23);
}
INLINE vf v_load_n(const float *p, int n)
{
    vf x = {0};
    memcpy(&x, p, (size_t)n * sizeof *p);
    return x;
}
INLINE void v_store_n(float *p, vf x, int n)
{
    memcpy(p, &x, (size_t)n * sizeof *p);
}
INLINE vf v_load_bf16(const uint16_t *p)
{
    return (vf)(vint){(int32_t)((uint32_t)p[0] << 16), (int32_t)((uint32_t)p[1] << 16),
                      (int32_t)((uint32_t)p[2] << 16), (int32_t)((uint32_t)p[3] << 16)};
}
INLINE vf v_load_f16(const uint16_t *p)
{
    return (vf){ic_f16_to_f32(p[0]), ic_f16_to_f32(p[1]), ic_f16_to_f32(p[2]), ic_f16_to_f32(p[3])};
}
INLINE vf v_load_i8(const int8_t *p)
{
    return (vf){p[0], p[1], p[2], p[3]};
}
INLINE vf v_load_u8(const uint8_t *p)
{
    return (vf){p[0], p[1], p[2], p[3]};
}
INLINE void v_store_bf16(uint16_t *p, vf x)
{
    for (int i = 0; i < VL; i++)
        p[i] = ic_f32_to_bf16(x[i]);
}
#endif

/* ---- built from the above --------------------------------------------------------------------- */

INLINE vf v_zero(void)
{
    return v_set1(0.0f);
}

/* Elements i … i+n-1 of a row that is F32 or BF16; the rest is zero. n may be VL. */
INLINE vf v_get(const void *row, bool bf16, size_t i, int n)
{
    if (n == VL)
        return bf16 ? v_load_bf16((const uint16_t *)row + i) : v_load((const float *)row + i);
    if (!bf16)
        return v_load_n((const float *)row + i, n);
    uint16_t tail[VL] = {0};
    memcpy(tail, (const uint16_t *)row + i, (size_t)n * sizeof *tail);
    return v_load_bf16(tail);
}

INLINE void v_put(void *row, bool bf16, size_t i, int n, vf x)
{
    if (n == VL) {
        if (bf16)
            v_store_bf16((uint16_t *)row + i, x);
        else
            v_store((float *)row + i, x);
    } else if (!bf16) {
        v_store_n((float *)row + i, x, n);
    } else {
        uint16_t tail[VL];
        v_store_bf16(tail, x);
        memcpy((uint16_t *)row + i, tail, (size_t)n * sizeof *tail);
    }
}

/* exp, relative error about 1e-7; 0 below -87.3 (no denormal results), infinite above 88.7. */
INLINE vf v_exp(vf x)
{
    const vf low = v_set1(-87.3f), high = v_set1(88.8f);
    vf y = v_min(high, v_max(low, x)); /* NaN passes */
    vf n = v_round(y * v_set1(1.44269504088896341f));
    vf r = v_fma(n, v_set1(-0.693359375f), y);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p * r, r, r + v_set1(1.0f));
    return v_where_less(x, low, v_zero(), v_scale2(p, n));
}

/* 2^x; -1e30 gives 0. `rough`: relative error 3e-6, enough where the result is rounded to bf16. */
INLINE vf v_exp2(vf x, bool rough)
{
#if ISA_LEVEL < 2
    x = v_max(v_set1(-127.0f), x); /* v_scale2 makes 2^-127 zero */
#endif
    vf n = v_round(x), r = x - n, p;
    if (rough) {
        p = v_fma(v_set1(9.582849597e-3f), r, v_set1(5.590642824e-2f));
        p = v_fma(p, r, v_set1(2.402409871e-1f));
        p = v_fma(p, r, v_set1(6.931241928e-1f));
    } else {
        p = v_set1(1.535336188319500e-4f);
        p = v_fma(p, r, v_set1(1.339887440266574e-3f));
        p = v_fma(p, r, v_set1(9.618437357674640e-3f));
        p = v_fma(p, r, v_set1(5.550332471162809e-2f));
        p = v_fma(p, r, v_set1(2.402264791363012e-1f));
        p = v_fma(p, r, v_set1(6.931472028550421e-1f));
    }
    return v_scale2(v_fma(p, r, v_set1(1.0f)), n);
}

INLINE vf v_sigmoid(vf x)
{
    return v_set1(1.0f) / (v_set1(1.0f) + v_exp(v_zero() - x));
}

#endif
