/*
 * utf8.c - UTF-8, one character at a time (Unicode 15, table 3-7 and section 3.9), and the clock.
 */
#include "base/base.h"

#include <time.h>

/* What a first byte promises: the length of the sequence and the range of its second byte. */
typedef struct lead {
    int length; /* 0: no sequence starts so */
    unsigned char low, high;
} lead;

static lead lead_of(unsigned char c)
{
    if (c < 0x80)
        return (lead){1, 0, 0};
    if (c < 0xc2 || c > 0xf4)
        return (lead){0, 0, 0};
    if (c < 0xe0)
        return (lead){2, 0x80, 0xbf};
    if (c < 0xf0) /* E0: no overlong forms; ED: no surrogates */
        return (lead){3, c == 0xe0 ? 0xa0 : 0x80, c == 0xed ? 0x9f : 0xbf};
    return (lead){4, c == 0xf0 ? 0x90 : 0x80, c == 0xf4 ? 0x8f : 0xbf};
}

/* Number of bytes of s that could be the beginning of a sequence that starts with `l`. */
static int fitting(lead l, const unsigned char *s, size_t n)
{
    int i = 1;
    while (i < l.length && (size_t)i < n) {
        unsigned char low = i == 1 ? l.low : 0x80, high = i == 1 ? l.high : 0xbf;
        if (s[i] < low || s[i] > high)
            break;
        i++;
    }
    return i;
}

int ic_utf8_decode(uint32_t *code, const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;
    *code = 0xfffd;
    if (n == 0)
        return 0;
    lead l = lead_of(u[0]);
    int have = fitting(l, u, n);
    if (l.length == 0 || have < l.length)
        return -have;
    static const unsigned char mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t c = u[0] & mask[l.length];
    for (int i = 1; i < l.length; i++)
        c = c << 6 | (u[i] & 0x3f);
    *code = c;
    return l.length;
}

int ic_utf8_encode(char out[4], uint32_t code)
{
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        code = 0xfffd;
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = length - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    out[0] = (char)(first[length] | code);
    return length;
}

size_t ic_utf8_whole(const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = u[n - back];
        if (c >= 0x80 && c < 0xc0)
            continue; /* inside a sequence: look for its first byte */
        lead l = lead_of(c);
        bool open = (size_t)l.length > back && fitting(l, u + n - back, back) == (int)back;
        return open ? n - back : n;
    }
    return n;
}

double ic_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
