/*
 * metadata.c - numbers in the metadata strings of adapter and slot files.
 *
 * The same in every locale: the C library's own conversions expect and print a decimal comma where
 * the program that uses this library has chosen a language that writes one.
 */
#include "core/metadata.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

bool ic_metadata_u64(uint64_t *out, const char *text)
{
    uint64_t v = 0;
    const char *s = text;
    for (; digit(*s); s++)
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return false;
    *out = v;
    return s > text && *s == 0;
}

/* Digits from *s on into *mantissa (18 of them count), moving *exponent for every one behind the
 * point or beyond the 18th. Returns how many there were. */
static int read_digits(const char **s, uint64_t *mantissa, int *exponent, bool fraction)
{
    int count = 0;
    for (; digit(**s) && count < 1000; ++*s, count++) {
        bool counts = *mantissa < (uint64_t)100000000000000000; /* 10^17 */
        if (counts)
            *mantissa = *mantissa * 10 + (uint64_t)(**s - '0');
        *exponent += (counts ? 0 : 1) - (fraction ? 1 : 0);
    }
    return count;
}

bool ic_metadata_float(float *out, const char *text)
{
    const char *s = text;
    bool negative = *s == '-';
    s += negative;
    uint64_t mantissa = 0, power = 0;
    int exponent = 0, digits = read_digits(&s, &mantissa, &exponent, false);
    if (*s == '.') {
        s++;
        digits += read_digits(&s, &mantissa, &exponent, true);
    }
    if (digits && (*s == 'e' || *s == 'E')) {
        s++;
        bool down = *s == '-';
        s += *s == '-' || *s == '+';
        int ignored = 0;
        if (!read_digits(&s, &power, &ignored, false) || power > 1000)
            return false;
        exponent += down ? -(int)power : (int)power;
    }
    if (!digits || *s != 0)
        return false;
    double scale = pow(10, abs(exponent));
    double v = exponent < 0 ? (double)mantissa / scale : (double)mantissa * scale;
    *out = (float)(negative ? -v : v);
    return isfinite(*out);
}

bool ic_metadata_bool(bool *out, const char *text)
{
    *out = strcmp(text, "true") == 0;
    return *out || strcmp(text, "false") == 0;
}

bool ic_metadata_sha256(const char *text)
{
    return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

void ic_metadata_print(char out[32], float v)
{
    float back;
    for (int digits = 1; digits <= 9; digits++) {
        char raw[64];
        snprintf(raw, sizeof raw, "%.*g", digits, (double)v);
        size_t n = 0;
        for (const char *s = raw; *s && n < 31; s++) {
            if (digit(*s) || *s == '-' || *s == '+' || *s == 'e')
                out[n++] = *s;
            else if (n > 0 && out[n - 1] != '.') /* this locale's point, of one byte or more */
                out[n++] = '.';
        }
        out[n] = 0;
        if (ic_metadata_float(&back, out) && memcmp(&back, &v, sizeof v) == 0)
            return;
    }
}
