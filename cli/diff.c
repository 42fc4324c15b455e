/*
 * diff.c - the words in which two texts differ.
 *
 * Myers' O(ND) differences in linear space (Algorithmica 1, 1986): find the middle of a shortest edit,
 * then both halves. Words are runs of letters or of blanks, and single other characters. Texts that
 * have little in common are cut at a good place instead of the best one, so that time stays bounded.
 */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { NONE = -1, MOST_EDITS = 2000 };

typedef struct word {
    const char *text;
    int size;
    uint32_t hash;
} word;

typedef struct side {
    word *words;
    bool *changed;
    int count;
} side;

typedef struct diff {
    side a, b;
    int *forward, *backward; /* furthest a-index on each diagonal, from both ends */
} diff;

/* ---- words ----------------------------------------------------------------------------------- */

static int kind(char c)
{
    unsigned char u = (unsigned char)c;
    if (u == ' ' || u == '\n' || u == '\t' || u == '\r')
        return 1;
    bool letter = (u >= '0' && u <= '9') || (u >= 'A' && u <= 'Z') || (u >= 'a' && u <= 'z') ||
                  u == '\'' || u >= 0x80;
    return letter ? 2 : 0; /* 0: stands alone */
}

static bool is_blank(const word *w)
{
    return kind(w->text[0]) == 1;
}

/* 0 without memory. */
static bool split(side *s, const cli_text *t)
{
    if (t->size > INT32_MAX / 8)
        return false;
    s->words = malloc((t->size + 1) * sizeof *s->words);
    s->changed = calloc(t->size + 1, sizeof *s->changed);
    if (!s->words || !s->changed)
        return false;
    for (size_t i = 0, j; i < t->size; i = j) {
        word *w = &s->words[s->count++];
        *w = (word){.text = t->data + i, .hash = 2166136261u};
        for (j = i;
             j < t->size && (j == i || (kind(t->data[i]) && kind(t->data[j]) == kind(t->data[i])));
             j++)
            w->hash = (w->hash ^ (unsigned char)t->data[j]) * 16777619u;
        w->size = (int)(j - i);
    }
    return true;
}

static bool same(const diff *d, int i, int j)
{
    const word *x = &d->a.words[i], *y = &d->b.words[j];
    return x->hash == y->hash && x->size == y->size &&
           memcmp(x->text, y->text, (size_t)x->size) == 0;
}

/* ---- the shortest edit ----------------------------------------------------------------------- */

typedef struct box {
    int a0, a1, b0, b1;
} box;

/* One more edit on diagonal k: how far along a of length n (b: m) it gets before a difference. */
static int reach(const int *v, int k, int edits, int n, int m)
{
    if (edits == 0)
        return 0;
    int right = v[k - 1] != NONE && v[k - 1] < n ? v[k - 1] + 1 : NONE;
    int down = v[k + 1] != NONE && v[k + 1] - (k + 1) < m ? v[k + 1] : NONE;
    return right > down ? right : down;
}

/* The common stretch (x0, y0) … (x1, y1) in the middle of a shortest edit of the box. */
typedef struct snake {
    int x0, y0, x1, y1;
} snake;

/* Advances the search from one end (`back`: the far one) by one edit; true when it met the other. */
static bool advance(const diff *d, box b, int edits, bool back, snake *s)
{
    int n = b.a1 - b.a0, m = b.b1 - b.b0, delta = n - m;
    int *own = back ? d->backward : d->forward, *other = back ? d->forward : d->backward;
    int far = back ? edits : edits - 1; /* edits that the other side has made */
    for (int k = -edits; k <= edits; k += 2) {
        int x = reach(own, k, edits, n, m), x0 = x;
        if (x != NONE)
            while (x < n && x - k < m &&
                   (back ? same(d, b.a1 - 1 - x, b.b1 - 1 - (x - k))
                         : same(d, b.a0 + x, b.b0 + x - k)))
                x++;
        own[k] = x;
        int facing = delta - k;
        if (x == NONE || (delta % 2 != 0) == back || facing < -far || facing > far ||
            other[facing] == NONE || x + other[facing] < n)
            continue;
        *s = back ? (snake){b.a1 - x, b.b1 - (x - k), b.a1 - x0, b.b1 - (x0 - k)}
                  : (snake){b.a0 + x0, b.b0 + x0 - k, b.a0 + x, b.b0 + x - k};
        return true;
    }
    own[-edits - 1] = own[edits + 1] = NONE;
    return false;
}

static snake middle(const diff *d, box b)
{
    snake s = {0};
    int far = NONE;
    d->forward[-1] = d->forward[1] = d->backward[-1] = d->backward[1] = NONE;
    for (int edits = 0; edits <= MOST_EDITS; edits++) {
        /* diagonals of the other parity stand from the round before; the new outermost are unknown */
        d->forward[-edits - 1] = d->forward[edits + 1] = NONE;
        d->backward[-edits - 1] = d->backward[edits + 1] = NONE;
        if (advance(d, b, edits, false, &s) || advance(d, b, edits, true, &s))
            return s;
    }
    for (int k = -MOST_EDITS; k <= MOST_EDITS; k += 2) /* enough: cut where most is matched */
        if (d->forward[k] != NONE && 2 * d->forward[k] - k > far) {
            far = 2 * d->forward[k] - k;
            s.x0 = s.x1 = b.a0 + d->forward[k];
            s.y0 = s.y1 = b.b0 + d->forward[k] - k;
        }
    return s;
}

static void compare(diff *d, box b)
{
    while (b.a0 < b.a1 && b.b0 < b.b1 && same(d, b.a0, b.b0))
        b.a0++, b.b0++;
    while (b.a0 < b.a1 && b.b0 < b.b1 && same(d, b.a1 - 1, b.b1 - 1))
        b.a1--, b.b1--;
    if (b.a0 == b.a1 || b.b0 == b.b1) {
        for (int i = b.a0; i < b.a1; i++)
            d->a.changed[i] = true;
        for (int j = b.b0; j < b.b1; j++)
            d->b.changed[j] = true;
        return;
    }
    snake s = middle(d, b);
    compare(d, (box){b.a0, s.x0, b.b0, s.y0});
    compare(d, (box){s.x1, b.a1, s.y1, b.b1});
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Where differences are written: on a terminal, lines are broken between words. */
typedef struct page {
    cli_output *to;
    int columns, at; /* columns 0: lines are left alone */
} page;

static int columns_of(const cli_output *to)
{
    struct winsize w;
    return to->terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 ? w.ws_col - 1 : 0;
}

static void put_word(page *p, const word *w)
{
    int width = 0;
    for (int i = 0; i < w->size; i++)
        width += ((unsigned char)w->text[i] & 0xC0) != 0x80;
    if (is_blank(w)) {
        const char *newline = memrchr(w->text, '\n', (size_t)w->size);
        if (newline)
            p->at = -(int)(newline + 1 - w->text);
    } else if (p->columns && p->at > 0 && p->at + width > p->columns) {
        cli_output_text(p->to, "\n", 1);
        p->at = 0;
    }
    cli_output_text(p->to, w->text, (size_t)w->size);
    p->at += width;
}

static void put(page *p, const side *s, int from, int until)
{
    for (int i = from; i < until; i++)
        put_word(p, &s->words[i]);
}

static void put_change(page *p, const side *s, int from, int until, const char *begin,
                       const char *end)
{
    if (from == until)
        return;
    cli_output_mark(p->to, begin); /* takes no room */
    put(p, s, from, until);
    cli_output_mark(p->to, end);
}

static size_t count_words(const side *s, bool changed_only)
{
    size_t n = 0;
    for (int i = 0; i < s->count; i++)
        n += (s->changed[i] || !changed_only) && !is_blank(&s->words[i]);
    return n;
}

static void write_changes(const diff *d, cli_output *to, bool colour)
{
    page p = {.to = to, .columns = columns_of(to)};
    int i = 0, j = 0;
    while (i < d->a.count || j < d->b.count) {
        int i0 = i, j0 = j;
        while (i < d->a.count || j < d->b.count) {
            while (i < d->a.count && d->a.changed[i])
                i++;
            while (j < d->b.count && d->b.changed[j])
                j++;
            /* a blank between two changes is part of one change */
            bool blank = i > i0 && j > j0 && i + 1 < d->a.count && j + 1 < d->b.count &&
                         is_blank(&d->a.words[i]) && d->a.changed[i + 1] && d->b.changed[j + 1];
            if (!blank)
                break;
            i++, j++;
        }
        put_change(&p, &d->a, i0, i, colour ? "\033[31;9m" : "[-", colour ? "\033[0m" : "-]");
        put_change(&p, &d->b, j0, j, colour ? "\033[32;1m" : "{+", colour ? "\033[0m" : "+}");
        for (; i < d->a.count && j < d->b.count && !d->a.changed[i] && !d->b.changed[j]; i++, j++)
            put(&p, &d->b, j, j + 1);
    }
}

int cli_diff_write(cli_diff *out, cli_output *to, const cli_text *before, const cli_text *now,
                   bool colour)
{
    diff d = {0};
    int *diagonals = malloc(sizeof *diagonals * 2 * (2 * MOST_EDITS + 5));
    int status = CLI_DONE;
    if (!diagonals || !split(&d.a, before) || !split(&d.b, now)) {
        status = cli_fail("the texts are too long to be compared");
    } else {
        d.forward = diagonals + MOST_EDITS + 2;
        d.backward = d.forward + 2 * MOST_EDITS + 5;
        compare(&d, (box){0, d.a.count, 0, d.b.count});
        write_changes(&d, to, colour);
        *out =
            (cli_diff){count_words(&d.a, false), count_words(&d.a, true), count_words(&d.b, true)};
    }
    free(diagonals);
    free(d.a.words);
    free(d.a.changed);
    free(d.b.words);
    free(d.b.changed);
    return status;
}
