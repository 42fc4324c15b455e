/*
 * html.c - a report, or several side by side, as one self-contained page: no network, no scripts, light
 * and dark, readable on a phone.
 *
 * Everything that comes from texts or names is escaped. Charts are svg.c's.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ic_html_escape(ic_buffer *out, const char *text, size_t size)
{
    int rc = ICAE_OK;
    size_t begin = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        const char *entity = c == '&'                           ? "&amp;"
                             : c == '<'                         ? "&lt;"
                             : c == '>'                         ? "&gt;"
                             : c == '"'                         ? "&quot;"
                             : c < 32 && c != '\n' && c != '\t' ? " "
                                                                : NULL;
        if (!entity)
            continue;
        IC_TRY(ic_buffer_add(out, text + begin, i - begin));
        IC_TRY(ic_buffer_add(out, entity, strlen(entity)));
        begin = i + 1;
    }
    IC_TRY(ic_buffer_add(out, text + begin, size - begin));
done:
    return rc;
}

static int escape(ic_buffer *out, const char *s)
{
    return ic_html_escape(out, s, strlen(s));
}

/* ---- diffs ------------------------------------------------------------------------------------ */

enum { MOST_WORDS = 4000 };

/* The table of common subsequences from (i, j) to the ends, [a+1][b+1]. */
static int32_t *common_table(const ic_words *a, const ic_words *b)
{
    size_t w = b->count + 1;
    int32_t *t = ic_alloc((a->count + 1) * w, sizeof *t);
    for (size_t i = a->count; t && i-- > 0;)
        for (size_t j = b->count; j-- > 0;)
            t[i * w + j] = a->id[i] == b->id[j] ? t[(i + 1) * w + j + 1] + 1
                                                : IC_MAX(t[(i + 1) * w + j], t[i * w + j + 1]);
    return t;
}

/* Word i of w with the white space before it; `tag` wraps the word. */
static int add_word(ic_buffer *out, const ic_words *w, size_t i, const char *start, const char *tag)
{
    int rc = ICAE_OK;
    const char *before = i ? w->word[i - 1] + w->size[i - 1] : start;
    if (!tag || i) /* a run of changed words is spaced by one space */
        IC_TRY(tag ? ic_buffer_add(out, " ", 1)
                   : ic_html_escape(out, before, (size_t)(w->word[i] - before)));
    if (tag)
        IC_TRY(ic_buffer_addf(out, "<%s>", tag));
    IC_TRY(ic_html_escape(out, w->word[i], w->size[i]));
    if (tag)
        IC_TRY(ic_buffer_addf(out, "</%s>", tag));
done:
    return rc;
}

static int diff_words(ic_buffer *out, const char *reference, const char *restored)
{
    int rc = ICAE_OK;
    int32_t *t = NULL;
    ic_words a = {0}, b = {0};
    IC_TRY(ic_words_split(&a, reference, strlen(reference)));
    IC_TRY(ic_words_split(&b, restored, strlen(restored)));
    a.count = IC_MIN(a.count, (size_t)MOST_WORDS);
    b.count = IC_MIN(b.count, (size_t)MOST_WORDS);
    IC_TRY(ic_words_number(&a, &b));
    if (!(t = common_table(&a, &b))) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    size_t w = b.count + 1;
    for (size_t i = 0, j = 0; i < a.count || j < b.count;) {
        if (i < a.count && j < b.count && a.id[i] == b.id[j]) {
            IC_TRY(add_word(out, &a, i++, reference, NULL));
            j++;
        } else if (i < a.count && (j == b.count || t[(i + 1) * w + j] >= t[i * w + j + 1])) {
            IC_TRY(add_word(out, &a, i++, reference, "del"));
        } else {
            IC_TRY(add_word(out, &b, j++, restored, "ins"));
        }
    }
done:
    ic_free(t);
    ic_words_free(&a);
    ic_words_free(&b);
    return rc;
}

/* `open`: the text shows at once. */
static int diff(ic_buffer *out, const ic_json *item, const char *name, bool open)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "<details%s><summary>", open ? " open" : ""));
    IC_TRY(escape(out, name));
    IC_TRY(ic_buffer_addf(out, "%s", *name ? ": " : ""));
    IC_TRY(escape(out, ic_record_text(item, "title")));
    IC_TRY(ic_buffer_addf(out, "</summary><div class=\"diff\">"));
    IC_TRY(diff_words(out, ic_record_text(item, "reference"), ic_record_text(item, "restored")));
    IC_TRY(ic_buffer_addf(out, "</div></details>\n"));
done:
    return rc;
}

/* ---- tables ----------------------------------------------------------------------------------- */

static int cell(ic_buffer *out, const ic_json *value, const ic_json *column)
{
    int rc = ICAE_OK;
    int digits = (int)ic_json_number(ic_json_get(column, "digits"), -1);
    const char *text = ic_json_string(value);
    if (digits < 0) {
        IC_TRY(ic_buffer_addf(out, text && strlen(text) > 40 ? "<td class=\"w\">" : "<td>"));
        IC_TRY(escape(out, text ? text : ""));
    } else if (ic_json_is_number(value)) {
        IC_TRY(ic_buffer_addf(out, "<td class=\"n\">%.*f", IC_MIN(digits, 9),
                              ic_json_number(value, 0)));
    } else {
        IC_TRY(ic_buffer_addf(out, "<td class=\"n\">–"));
    }
    IC_TRY(ic_buffer_addf(out, "</td>"));
done:
    return rc;
}

/* What stands in the column of that name; NaN: there is none. */
static double number_in(const ic_json *table, const ic_json *row, const char *name)
{
    const ic_json *column = ic_json_first(ic_json_get(table, "columns"));
    for (const ic_json *v = ic_json_first(row); v && column;
         v = ic_json_next(v), column = ic_json_next(column))
        if (!strcmp(ic_record_text(column, "name"), name))
            return ic_json_number(v, (double)NAN);
    return (double)NAN;
}

static bool counts_samples(const ic_json *column)
{
    const char *name = ic_record_text(column, "name");
    return !strcmp(name, "Samples") || !strcmp(name, "Questions") || !strcmp(name, "Judged");
}

/* A number of samples that is less than asked for says so. */
static int table_row(ic_buffer *out, const ic_json *table, const ic_json *row, const char *name)
{
    int rc = ICAE_OK;
    const ic_json *column = ic_json_first(ic_json_get(table, "columns"));
    double asked = number_in(table, row, "Asked");
    IC_TRY(ic_buffer_addf(out, "<tr>"));
    if (*name) {
        IC_TRY(ic_buffer_addf(out, "<td>"));
        IC_TRY(escape(out, name));
        IC_TRY(ic_buffer_addf(out, "</td>"));
    }
    for (const ic_json *v = ic_json_first(row); v && column;
         v = ic_json_next(v), column = ic_json_next(column)) {
        double n = counts_samples(column) ? ic_json_number(v, (double)NAN) : (double)NAN;
        if (n < asked)
            IC_TRY(ic_buffer_addf(out, "<td class=\"n few\">only %.0f</td>", n));
        else
            IC_TRY(cell(out, v, column));
    }
    IC_TRY(ic_buffer_addf(out, "</tr>\n"));
done:
    return rc;
}

static const ic_json *row_at(const ic_json *table, size_t i)
{
    const ic_json *row = table ? ic_json_first(ic_json_get(table, "rows")) : NULL;
    while (row && i--)
        row = ic_json_next(row);
    return row;
}

/* The same table of several reports: rows of the same number one below the other. */
static int table(ic_buffer *out, const ic_json *const *tables, const char *const *names,
                 size_t count)
{
    int rc = ICAE_OK;
    const ic_json *first = NULL;
    size_t most = 0;
    for (size_t i = 0; i < count; i++) {
        first = first ? first : tables[i];
        most = IC_MAX(most, tables[i] ? ic_json_count(ic_json_get(tables[i], "rows")) : 0);
    }
    IC_TRY(ic_buffer_addf(out, "<h3>"));
    IC_TRY(escape(out, ic_record_text(first, "title")));
    IC_TRY(ic_buffer_addf(out, "</h3><div class=\"wrap\"><table><thead><tr>%s",
                          count > 1 ? "<th>Run</th>" : ""));
    for (const ic_json *c = ic_json_first(ic_json_get(first, "columns")); c; c = ic_json_next(c)) {
        IC_TRY(ic_buffer_addf(out, ic_json_is_number(ic_json_get(c, "digits")) ? "<th class=\"n\">"
                                                                               : "<th>"));
        IC_TRY(escape(out, ic_record_text(c, "name")));
        IC_TRY(ic_buffer_addf(out, "</th>"));
    }
    IC_TRY(ic_buffer_addf(out, "</tr></thead><tbody>\n"));
    for (size_t i = 0; i < most; i++)
        for (size_t k = 0; k < count; k++) {
            const ic_json *row = row_at(tables[k], i);
            if (row)
                IC_TRY(table_row(out, tables[k], row, count > 1 ? names[k] : ""));
        }
    IC_TRY(ic_buffer_addf(out, "</tbody></table></div>\n"));
done:
    return rc;
}

/* ---- sections --------------------------------------------------------------------------------- */

typedef struct page {
    ic_buffer *out;
    const ic_json *const *reports;
    const char *const *names;
    size_t count;
    const ic_json **match; /* [count] scratch */
    bool charts;           /* a grid of charts is open */
    size_t diffs;          /* so far */
} page;

static bool is_kind(const ic_json *item, const char *kind)
{
    return !strcmp(ic_record_text(item, "kind"), kind);
}

/* The item of a section with this kind and title. */
static const ic_json *find_item(const ic_json *section, const char *kind, const char *title)
{
    for (const ic_json *i = section ? ic_json_first(ic_json_get(section, "items")) : NULL; i;
         i = ic_json_next(i))
        if (is_kind(i, kind) && !strcmp(ic_record_text(i, "title"), title))
            return i;
    return NULL;
}

static const ic_json *find_section(const ic_json *report, const char *id)
{
    for (const ic_json *s = ic_json_first(ic_json_get(report, "sections")); s; s = ic_json_next(s))
        if (!strcmp(ic_record_text(s, "id"), id))
            return s;
    return NULL;
}

/* Fills match; true if `report` is the first that has the item. */
static bool match_item(page *p, size_t report, const char *id, const ic_json *item)
{
    size_t first = p->count;
    for (size_t i = 0; i < p->count; i++) {
        p->match[i] = find_item(find_section(p->reports[i], id), ic_record_text(item, "kind"),
                                ic_record_text(item, "title"));
        if (p->match[i] && first == p->count)
            first = i;
    }
    return first == report;
}

static int chart(page *p, const ic_json *item)
{
    int rc = ICAE_OK;
    const char *y = ic_record_text(item, "y"), *x = ic_record_text(item, "x");
    bool line = !strcmp(ic_record_text(item, "chart"), "line");
    if (strchr(y, '|')) /* names of parts: the legend has them */
        y = "";
    IC_TRY(ic_buffer_addf(p->out, "<figure><figcaption>"));
    IC_TRY(escape(p->out, ic_record_text(item, "title")));
    if (*y || !line) {
        IC_TRY(ic_buffer_addf(p->out, " <small>"));
        IC_TRY(escape(p->out, *y ? y : ""));
        if (!line && *x)
            IC_TRY(ic_buffer_addf(p->out, *y ? " by " : "by "));
        if (!line)
            IC_TRY(escape(p->out, x));
        IC_TRY(ic_buffer_addf(p->out, "</small>"));
    }
    IC_TRY(ic_buffer_addf(p->out, "</figcaption>"));
    IC_TRY(ic_svg_chart(p->out, p->match, p->names, p->count));
    IC_TRY(ic_buffer_addf(p->out, "</figure>\n"));
done:
    return rc;
}

/* The most telling figures, each a link to where it comes from. */
static int figures(page *p, const ic_json *item, const char *name)
{
    int rc = ICAE_OK;
    if (*name) {
        IC_TRY(ic_buffer_addf(p->out, "<h3>"));
        IC_TRY(escape(p->out, name));
        IC_TRY(ic_buffer_addf(p->out, "</h3>"));
    }
    IC_TRY(ic_buffer_addf(p->out, "<div class=\"tiles\">\n"));
    for (const ic_json *f = ic_json_first(ic_json_get(item, "figures")); f; f = ic_json_next(f)) {
        IC_TRY(ic_buffer_addf(p->out, "<a class=\"tile\" href=\"#"));
        IC_TRY(escape(p->out, ic_record_text(f, "section")));
        IC_TRY(ic_buffer_addf(p->out, "\"><span>"));
        IC_TRY(escape(p->out, ic_record_text(f, "title")));
        IC_TRY(ic_buffer_addf(p->out, "</span><b>"));
        IC_TRY(escape(p->out, ic_record_text(f, "value")));
        IC_TRY(ic_buffer_addf(p->out, "</b><small>"));
        IC_TRY(escape(p->out, ic_record_text(f, "detail")));
        IC_TRY(ic_buffer_addf(p->out, "</small></a>\n"));
    }
    IC_TRY(ic_buffer_addf(p->out, "</div>\n"));
done:
    return rc;
}

static int note(page *p, const ic_json *item, const char *name)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(p->out, "<div class=\"note\">"));
    IC_TRY(escape(p->out, name));
    IC_TRY(ic_buffer_addf(p->out, "%s", *name ? ": " : ""));
    IC_TRY(escape(p->out, ic_record_text(item, "text")));
    IC_TRY(ic_buffer_addf(p->out, "</div>\n"));
done:
    return rc;
}

/* Charts that follow each other share a grid. */
static int grid(page *p, bool wanted)
{
    if (p->charts == wanted)
        return ICAE_OK;
    p->charts = wanted;
    return ic_buffer_addf(p->out, wanted ? "<div class=\"charts\">\n" : "</div>\n");
}

static int section(page *p, const char *id)
{
    int rc = ICAE_OK;
    bool headed = false;
    for (size_t i = 0; i < p->count; i++) {
        const ic_json *s = find_section(p->reports[i], id);
        const char *name = p->count > 1 ? p->names[i] : "";
        if (s && !headed) {
            headed = true;
            IC_TRY(ic_buffer_addf(p->out, "<section id=\""));
            IC_TRY(escape(p->out, id));
            IC_TRY(ic_buffer_addf(p->out, "\"><h2>"));
            IC_TRY(escape(p->out, ic_record_text(s, "title")));
            IC_TRY(ic_buffer_addf(p->out, "</h2>\n<p class=\"lead\">"));
            IC_TRY(escape(p->out, ic_record_text(s, "lead")));
            IC_TRY(ic_buffer_addf(p->out, "</p>\n"));
        }
        for (const ic_json *item = s ? ic_json_first(ic_json_get(s, "items")) : NULL; item;
             item = ic_json_next(item)) {
            bool is_chart = is_kind(item, "chart");
            bool shared = is_chart || is_kind(item, "table");
            if (shared && !match_item(p, i, id, item))
                continue;
            if (is_chart && !ic_json_count(ic_json_get(item, "series")))
                continue;
            IC_TRY(grid(p, is_chart));
            if (is_kind(item, "figures"))
                IC_TRY(figures(p, item, name));
            else if (is_chart)
                IC_TRY(chart(p, item));
            else if (shared)
                IC_TRY(table(p->out, p->match, p->names, p->count));
            else
                IC_TRY(is_kind(item, "note") ? note(p, item, name)
                                             : diff(p->out, item, name, p->diffs++ < 3));
        }
        IC_TRY(grid(p, false));
    }
    IC_TRY(ic_buffer_addf(p->out, "</section>\n"));
done:
    return rc;
}

/* ---- the page --------------------------------------------------------------------------------- */

static int about(ic_buffer *out, const ic_json *report, const char *name)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "<p class=\"facts\">"));
    if (*name) {
        IC_TRY(ic_buffer_addf(out, "<b>"));
        IC_TRY(escape(out, name));
        IC_TRY(ic_buffer_addf(out, "</b> · "));
    }
    IC_TRY(ic_buffer_addf(out, "icae "));
    IC_TRY(escape(out, ic_record_text(report, "icae")));
    IC_TRY(ic_buffer_addf(out, ", suite "));
    IC_TRY(escape(out, ic_record_text(report, "suite")));
    const ic_json *texts = ic_json_get(report, "texts");
    IC_TRY(ic_buffer_addf(
        out, ", %.0f samples a measurement, seed %.0f, %.0f documents and %.0f questions",
        ic_json_number(ic_json_get(report, "samples"), 0),
        ic_json_number(ic_json_get(report, "seed"), 0),
        ic_json_number(ic_json_get(texts, "documents"), 0),
        ic_json_number(ic_json_get(texts, "questions"), 0)));
    for (const ic_json *s = ic_json_first(ic_json_get(report, "systems")); s; s = ic_json_next(s)) {
        IC_TRY(ic_buffer_addf(out, "<br>"));
        IC_TRY(escape(out, ic_record_text(s, "name")));
        IC_TRY(ic_buffer_addf(
            out,
            ": %.1f M parameters, base <code>%.12s</code>, adapter <code>%.12s</code>, k %.0f, "
            "rate %.4g, "
            "rank %.0f, ",
            ic_json_number(ic_json_get(s, "parameters"), 0) / 1e6, ic_record_text(s, "base"),
            ic_record_text(s, "adapter"), ic_json_number(ic_json_get(s, "k"), 0),
            ic_json_number(ic_json_get(s, "rate"), 0), ic_json_number(ic_json_get(s, "rank"), 0)));
        IC_TRY(escape(out, ic_record_text(s, "positions")));
        IC_TRY(ic_buffer_addf(out, " positions, "));
        IC_TRY(escape(out, ic_record_text(s, "slots")));
        IC_TRY(ic_buffer_addf(out, " slots; "));
        IC_TRY(escape(out, ic_record_text(s, "compute")));
        IC_TRY(ic_buffer_addf(out, " on "));
        IC_TRY(escape(out, ic_record_text(s, "cpu")));
        IC_TRY(ic_buffer_addf(out, ", %.0f threads", ic_json_number(ic_json_get(s, "threads"), 0)));
    }
    IC_TRY(ic_buffer_addf(out, "</p>\n"));
done:
    return rc;
}

/* Calls f for every section id, once each, the summary first. */
static int each_section(page *p, int (*f)(page *p, const char *id))
{
    int rc = ICAE_OK;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < p->count; i++)
            for (const ic_json *s = ic_json_first(ic_json_get(p->reports[i], "sections")); s;
                 s = ic_json_next(s)) {
                const char *id = ic_record_text(s, "id");
                bool seen = !strcmp(id, "systems") != (pass == 0);
                for (size_t k = 0; k < i && !seen; k++)
                    seen = find_section(p->reports[k], id) != NULL;
                if (!seen)
                    IC_TRY(f(p, id));
            }
done:
    return rc;
}

static int link_to(page *p, const char *id)
{
    int rc = ICAE_OK;
    const char *title = "";
    for (size_t i = 0; i < p->count && !*title; i++)
        title = ic_record_text(find_section(p->reports[i], id), "title");
    IC_TRY(ic_buffer_addf(p->out, "<a href=\"#"));
    IC_TRY(escape(p->out, id));
    IC_TRY(ic_buffer_addf(p->out, "\">"));
    IC_TRY(escape(p->out, title));
    IC_TRY(ic_buffer_addf(p->out, "</a>\n"));
done:
    return rc;
}

int ic_html_write(ic_buffer *out, const ic_json *const *reports, const char *const *names,
                  size_t count)
{
    int rc = ICAE_OK;
    page p = {.out = out, .reports = reports, .names = names, .count = count};
    if (!(p.match = ic_alloc(count, sizeof *p.match)))
        return ICAE_ENOMEM;
    IC_TRY(ic_buffer_addf(out, "<!doctype html>\n<html lang=\"en\"><head><meta "
                               "charset=\"utf-8\">\n<meta name=\"viewport\" "
                               "content=\"width=device-width,initial-scale=1\">\n<title>ICAE "
                               "evaluation</title>\n<style>\n"));
    IC_TRY(ic_buffer_add(out, ic_report_style, strlen(ic_report_style)));
    for (int i = 0; i < 8; i++)
        IC_TRY(ic_buffer_addf(
            out,
            ".c%d{stroke:var(--s%d);fill:var(--s%d)}polyline.c%d{fill:none}.f%d{fill:var(--s%d)}"
            ".k%d{background:var(--s%d)}",
            i, i, i, i, i, i, i, i));
    for (int i = 0; i < 4; i++)
        IC_TRY(ic_buffer_addf(out, ".p%d{fill:var(--p%d)}.q%d{background:var(--p%d)}", i, i, i, i));
    IC_TRY(ic_buffer_addf(out,
                          "\n</style></head>\n<body><main><h1>How much do the slots keep?</h1>\n"));
    for (size_t i = 0; i < count; i++)
        IC_TRY(about(out, reports[i], count > 1 ? names[i] : ""));
    IC_TRY(ic_buffer_addf(out, "<nav>\n"));
    IC_TRY(each_section(&p, link_to));
    IC_TRY(ic_buffer_addf(out, "</nav>\n"));
    IC_TRY(each_section(&p, section));
    IC_TRY(ic_buffer_addf(out, "</main></body></html>\n"));
done:
    ic_free(p.match);
    return rc;
}
