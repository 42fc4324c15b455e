/*
 * bleu.c - BLEU (Papineni et al. 2002) as sacrebleu computes it by default: 13a tokens, n up to 4,
 * smoothing "exp" (mteval's: the i-th order without a match counts 1/2^i of an n-gram).
 *
 * The tokenizer is mteval-v13a's, which has three passes over the text; each works on bytes, which is
 * the same as on characters because all it looks for is ASCII.
 */
#include "eval/metrics.h"

#include <math.h>
#include <string.h>

/* Appends text with `from` replaced by `to`. */
static int replace(ic_buffer *out, const ic_buffer *in, const char *from, const char *to)
{
    int rc = ICAE_OK;
    size_t n = strlen(from);
    for (size_t i = 0; i < in->size;) {
        if (in->size - i >= n && memcmp(in->data + i, from, n) == 0) {
            IC_TRY(ic_buffer_add(out, to, strlen(to)));
            i += n;
        } else {
            IC_TRY(ic_buffer_add(out, in->data + i, 1));
            i++;
        }
    }
done:
    return rc;
}

/* Applies one replacement in place; `spare` is scratch. */
static int substitute(ic_buffer *b, ic_buffer *spare, const char *from, const char *to)
{
    spare->size = 0;
    int rc = replace(spare, b, from, to);
    ic_buffer t = *b;
    *b = *spare;
    *spare = t;
    return rc;
}

static bool is_symbol(unsigned char c)
{
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
           (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

static bool is_digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool is_stop(unsigned char c)
{
    return c == '.' || c == ',';
}

/* What a pass looks for and how it writes it. */
typedef enum { SYMBOLS, STOP_AFTER_OTHER, STOP_BEFORE_OTHER, DASH_AFTER_DIGIT } pass;

/* Bytes matched at s[0..n), 0: none; the replacement is written to `to`. */
static size_t match(pass p, const unsigned char *s, size_t n, char to[8], size_t *size)
{
    unsigned char a = s[0], b = n > 1 ? s[1] : 0;
    size_t used = 0, k = 0;
    if (p == SYMBOLS && is_symbol(a)) {
        used = 1;
        to[k++] = ' ', to[k++] = (char)a, to[k++] = ' ';
    } else if (p == STOP_BEFORE_OTHER && n > 1 && is_stop(a) && !is_digit(b)) {
        used = 2;
        to[k++] = ' ', to[k++] = (char)a, to[k++] = ' ', to[k++] = (char)b;
    } else if ((p == STOP_AFTER_OTHER && n > 1 && !is_digit(a) && is_stop(b)) ||
               (p == DASH_AFTER_DIGIT && n > 1 && is_digit(a) && b == '-')) {
        used = 2;
        to[k++] = (char)a, to[k++] = ' ', to[k++] = (char)b, to[k++] = ' ';
    }
    *size = k;
    return used;
}

static int apply(ic_buffer *b, ic_buffer *spare, pass p)
{
    int rc = ICAE_OK;
    spare->size = 0;
    for (size_t i = 0; i < b->size;) {
        char to[8];
        size_t size, used = match(p, (const unsigned char *)b->data + i, b->size - i, to, &size);
        if (used)
            IC_TRY(ic_buffer_add(spare, to, size));
        else
            IC_TRY(ic_buffer_add(spare, b->data + i, used = 1));
        i += used;
    }
    ic_buffer t = *b;
    *b = *spare;
    *spare = t;
done:
    return rc;
}

static int tokenize_13a(ic_words *w, const char *text, size_t size)
{
    static const char *const entities[][2] = {
        {"&quot;", "\""}, {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}};
    int rc = ICAE_OK;
    ic_buffer b = {0}, spare = {0};
    ic_words trimmed = {0};
    IC_TRY(ic_words_split(&trimmed, text, size));
    if (trimmed.count) /* white space at the end goes first: "-" there must not meet a newline */
        size = (size_t)(trimmed.word[trimmed.count - 1] - text) + trimmed.size[trimmed.count - 1];
    else
        size = 0;
    IC_TRY(ic_buffer_add(&b, text, size));
    IC_TRY(substitute(&b, &spare, "<skipped>", ""));
    IC_TRY(substitute(&b, &spare, "-\n", ""));
    IC_TRY(substitute(&b, &spare, "\n", " "));
    for (size_t i = 0; i < IC_COUNT(entities); i++)
        if (memchr(b.data ? b.data : "", '&', b.size))
            IC_TRY(substitute(&b, &spare, entities[i][0], entities[i][1]));
    spare.size = 0;
    IC_TRY(ic_buffer_add(&spare, " ", 1));
    IC_TRY(ic_buffer_add(&spare, b.data ? b.data : "", b.size));
    IC_TRY(ic_buffer_add(&spare, " ", 1));
    for (int p = SYMBOLS; p <= DASH_AFTER_DIGIT; p++)
        IC_TRY(apply(&spare, &b, (pass)p));
    w->text = spare;
    spare = (ic_buffer){0};
    IC_TRY(ic_words_split(w, w->text.data, w->text.size));
done:
    ic_words_free(&trimmed);
    ic_buffer_free(&b);
    ic_buffer_free(&spare);
    return rc;
}

int ic_bleu_add(ic_bleu *b, const char *candidate, size_t candidate_size, const char *reference,
                size_t reference_size)
{
    int rc = ICAE_OK;
    ic_words c = {0}, r = {0};
    uint64_t common[4];
    IC_TRY(tokenize_13a(&c, candidate, candidate_size));
    IC_TRY(tokenize_13a(&r, reference, reference_size));
    IC_TRY(ic_words_number(&c, &r));
    for (size_t n = 1; n <= 4; n++)
        IC_TRY(ic_words_common(&common[n - 1], &c, &r, n));
    b->candidate += c.count;
    b->reference += r.count;
    for (size_t n = 1; n <= 4; n++) {
        b->correct[n - 1] += common[n - 1];
        b->total[n - 1] += c.count >= n ? c.count - n + 1 : 0;
    }
done:
    ic_words_free(&c);
    ic_words_free(&r);
    return rc;
}

double ic_bleu_score(const ic_bleu *b, bool sentence)
{
    if (!(b->correct[0] | b->correct[1] | b->correct[2] | b->correct[3]))
        return 0;
    double brevity = 1, smooth = 1, sum = 0;
    int order = 0;
    if (b->candidate < b->reference)
        brevity = exp(1 - (double)b->reference / (double)b->candidate);
    for (int n = 0; n < 4 && b->total[n]; n++, order++) {
        double correct = (double)b->correct[n];
        if (!b->correct[n])
            correct = 1 / (smooth *= 2);
        sum += log(correct / (double)b->total[n]);
    }
    if (order < 4 && !sentence)
        return 0; /* no n-gram of the highest order: a corpus score of zero */
    return brevity * exp(sum / order);
}
