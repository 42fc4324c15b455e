/*
 * facts.c - numbers, dates, names, addresses and identifiers in a text: what must survive exactly.
 *
 * Rules by form, not by meaning, written for English prose and code; each stretch of text is at most one
 * fact. A fact is kept if the restored text has it too, by the same rules, byte for byte.
 */
#include "eval/metrics.h"

#include <ctype.h>
#include <string.h>

const char *const ic_fact_names[IC_FACT_KINDS] = {"numbers", "dates", "names", "addresses",
                                                  "identifiers"};

/* Bytes beyond ASCII count as letters. */
static bool letter(unsigned char c)
{
    return isalpha(c) || c >= 0x80;
}

static bool upper(unsigned char c)
{
    return c >= 'A' && c <= 'Z';
}

typedef struct scan {
    const char *s;
    size_t size;
    ic_words list[IC_FACT_KINDS];
} scan;

static unsigned char at(const scan *t, size_t i)
{
    return i < t->size ? (unsigned char)t->s[i] : 0;
}

static size_t digits(const scan *t, size_t i)
{
    size_t n = 0;
    while (isdigit(at(t, i + n)))
        n++;
    return n;
}

static size_t word(const scan *t, size_t i)
{
    size_t n = 0;
    while (letter(at(t, i + n)) || (n && at(t, i + n) == '\'' && letter(at(t, i + n + 1))))
        n++;
    return n;
}

static bool is_month(const char *s, size_t n)
{
    static const char *const months[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    for (size_t i = 0; i < IC_COUNT(months); i++) {
        bool whole = n == strlen(months[i]), cut = n == 3;
        if ((whole || cut) && memcmp(s, months[i], n) == 0)
            return true;
    }
    return false;
}

/* A year of four digits that stands alone. */
static bool is_year(const scan *t, size_t i)
{
    return digits(t, i) == 4 && (at(t, i) == '1' || at(t, i) == '2') &&
           !(at(t, i) == '2' && at(t, i + 1) != '0');
}

static size_t spaces(const scan *t, size_t i)
{
    return at(t, i) == ' ';
}

/* Length of a date that starts at i with a digit: 1912-05-03, 3 May 1912, 3/5/1912, 1912. */
static size_t date_of_digits(const scan *t, size_t i)
{
    size_t d = digits(t, i), j = i + d;
    unsigned char mark = at(t, j);
    if ((mark == '-' || mark == '/') && (d <= 2 || d == 4)) {
        size_t e = digits(t, j + 1), k = j + 1 + e;
        size_t f = at(t, k) == mark ? digits(t, k + 1) : 0;
        if (e && e <= 2 && f && (f <= 2 || f == 4))
            return k + 1 + f - i;
    }
    if (d <= 2) {
        size_t m = j + spaces(t, j), n = word(t, m);
        if (m > j && n && is_month(t->s + m, n)) {
            size_t y = m + n + spaces(t, m + n);
            return is_year(t, y) ? y + 4 - i : m + n - i;
        }
    }
    if (is_year(t, i) && !(at(t, j) == ',' && isdigit(at(t, j + 1))) &&
        !(at(t, j) == '.' && isdigit(at(t, j + 1))) && at(t, j) != '%')
        return 4;
    return 0;
}

/* May 3, 1912 · May 1912 */
static size_t date_of_month(const scan *t, size_t i)
{
    size_t n = word(t, i), j = i + n + 1;
    if (!n || !is_month(t->s + i, n) || at(t, i + n) != ' ' || !isdigit(at(t, j)))
        return 0;
    if (is_year(t, j))
        return j + 4 - i;
    size_t d = digits(t, j), y = j + d + (at(t, j + d) == ',');
    if (d > 2)
        return 0;
    y += spaces(t, y);
    return is_year(t, y) ? y + 4 - i : j + d - i;
}

static size_t number(const scan *t, size_t i)
{
    size_t n = digits(t, i);
    while ((at(t, i + n) == ',' || at(t, i + n) == '.') && isdigit(at(t, i + n + 1)))
        n += 1 + digits(t, i + n + 1);
    return n + (at(t, i + n) == '%');
}

/* A web or mail address: a run without white space that says so; closing punctuation is not part. */
static size_t address(const scan *t, size_t i)
{
    size_t n = 0;
    bool mail = false, web = false;
    while (i + n < t->size && !isspace(at(t, i + n)) && !strchr("<>\"'()[]{}", t->s[i + n])) {
        mail |= n && t->s[i + n] == '@' && letter(at(t, i + n + 1));
        n++;
    }
    web = (n > 8 && (!memcmp(t->s + i, "http://", 7) || !memcmp(t->s + i, "https://", 8))) ||
          (n > 5 && !memcmp(t->s + i, "www.", 4));
    while (n && strchr(".,;:!?", t->s[i + n - 1]))
        n--;
    return web || (mail && memchr(t->s + i, '.', n)) ? n : 0;
}

/* snake_case, camelCase, a::b, call(): a run of letters, digits, _ and :: that no prose word is. */
static size_t identifier(const scan *t, size_t i)
{
    size_t n = 0;
    bool code = false;
    if (!isalpha(at(t, i)) && at(t, i) != '_')
        return 0;
    for (;; n++) {
        unsigned char c = at(t, i + n), next = at(t, i + n + 1);
        if (c == ':' && next == ':' && (isalpha(at(t, i + n + 2)) || at(t, i + n + 2) == '_')) {
            code = true;
            n++;
        } else if (c == '_' && (isalnum(next) || (n && isalnum(at(t, i + n - 1))))) {
            code = true;
        } else if (!isalnum(c)) {
            break;
        }
        code |= n && upper(c) && islower(at(t, i + n - 1));
    }
    if (n && at(t, i + n) == '(') {
        const char *end = memchr(t->s + i + n, ')', IC_MIN(t->size - i - n, (size_t)40));
        bool call = end && !memchr(t->s + i + n, ' ', (size_t)(end - t->s) - i - n);
        if (call)
            return (size_t)(end - t->s) - i + 1;
    }
    return code ? n : 0;
}

/* Does a sentence start at i? Then its first capital tells nothing. */
static bool starts_sentence(const scan *t, size_t i)
{
    while (i &&
           (t->s[i - 1] == ' ' || t->s[i - 1] == '"' || t->s[i - 1] == '\'' || t->s[i - 1] == '('))
        i--;
    if (!i || t->s[i - 1] == '\n' || strchr("!?:", t->s[i - 1]))
        return true;
    if (t->s[i - 1] != '.')
        return false;
    size_t n = 0; /* a short capitalised word before the full stop is a title or an initial: Dr. */
    while (i - 1 > n && isalpha((unsigned char)t->s[i - 2 - n]))
        n++;
    return !(n && n <= 3 && upper((unsigned char)t->s[i - 1 - n]));
}

/* Capitalised words one after another: Anna Smith, Dr. Brown, New York. */
static size_t name(const scan *t, size_t i)
{
    size_t end = i, first = 0;
    while (upper(at(t, end))) {
        size_t n = word(t, end);
        if (!first)
            first = n;
        end += n;
        size_t more = end + (at(t, end) == '.' && n <= 3);
        if (at(t, more) != ' ' || !upper(at(t, more + 1)) || word(t, more + 1) < 2)
            break;
        end = more + 1;
    }
    if (first < 2 && end - i < 3) /* I, A */
        return 0;
    return starts_sentence(t, i) && end - i == first ? 0 : end - i;
}

static int find(scan *t)
{
    int rc = ICAE_OK;
    for (size_t i = 0; i < t->size;) {
        unsigned char c = at(t, i);
        ic_fact_kind kind = IC_FACT_URL;
        size_t n = letter(c) || isdigit(c) ? address(t, i) : 0;
        if (!n && isdigit(c)) {
            kind = IC_FACT_DATE;
            if (!(n = date_of_digits(t, i))) {
                kind = IC_FACT_NUMBER;
                n = number(t, i);
            }
        } else if (!n && (letter(c) || c == '_')) {
            kind = IC_FACT_DATE;
            if (!(n = date_of_month(t, i))) {
                kind = IC_FACT_IDENTIFIER;
                n = identifier(t, i);
            }
            if (!n) {
                kind = IC_FACT_NAME;
                n = name(t, i);
            }
        }
        if (n)
            IC_TRY(ic_words_add(&t->list[kind], t->s + i, n));
        else
            n = 1;
        i += n;
        while (letter(at(t, i - 1)) &&
               (letter(at(t, i)) || isdigit(at(t, i)))) /* never within a word */
            i++;
    }
done:
    return rc;
}

int ic_facts_compare(ic_facts *out, const char *text, size_t size, const char *restored,
                     size_t restored_size)
{
    int rc = ICAE_OK;
    scan a = {.s = text, .size = size}, b = {.s = restored, .size = restored_size};
    IC_TRY(find(&a));
    IC_TRY(find(&b));
    for (int k = 0; k < IC_FACT_KINDS; k++) {
        uint64_t common;
        IC_TRY(ic_words_number(&a.list[k], &b.list[k]));
        IC_TRY(ic_words_common(&common, &a.list[k], &b.list[k], 1));
        out->found[k] += a.list[k].count;
        out->kept[k] += common;
    }
done:
    for (int k = 0; k < IC_FACT_KINDS; k++) {
        ic_words_free(&a.list[k]);
        ic_words_free(&b.list[k]);
    }
    return rc;
}
