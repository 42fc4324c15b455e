/*
 * report.c - writes the report as JSON: sections of notes, tables, charts and diffs.
 *
 * The vocabulary that experiments use and that html.c and csv.c render. The first error sticks, so
 * experiments need not check every word.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put(ic_report *r, const char *s, size_t n)
{
    if (r->rc == ICAE_OK)
        r->rc = ic_buffer_add(&r->json, s, n);
}

static void quote(ic_report *r, const char *s, size_t n)
{
    if (r->rc == ICAE_OK)
        r->rc = ic_json_quote(&r->json, s, n);
}

static void begin_value(ic_report *r, const char *key)
{
    if (r->some[r->depth])
        put(r, ",", 1);
    if (r->depth <= 3)
        put(r, "\n", 1);
    r->some[r->depth] = true;
    if (key) {
        quote(r, key, strlen(key));
        put(r, ":", 1);
    }
}

void ic_report_open(ic_report *r, const char *key, char bracket)
{
    assert(r->depth + 1 < (int)IC_COUNT(r->some));
    begin_value(r, key);
    put(r, &bracket, 1);
    r->some[++r->depth] = false;
}

void ic_report_close(ic_report *r, char bracket)
{
    assert(r->depth > 0);
    r->depth--;
    put(r, &bracket, 1);
}

void ic_report_bytes(ic_report *r, const char *key, const char *text, size_t size)
{
    begin_value(r, key);
    quote(r, text, size);
}

void ic_report_text(ic_report *r, const char *key, const char *text)
{
    if (text) {
        ic_report_bytes(r, key, text, strlen(text));
    } else {
        begin_value(r, key);
        put(r, "null", 4);
    }
}

void ic_report_number(ic_report *r, const char *key, double value)
{
    begin_value(r, key);
    if (r->rc == ICAE_OK)
        r->rc = isfinite(value) ? ic_buffer_addf(&r->json, "%.10g", value)
                                : ic_buffer_add(&r->json, "null", 4);
}

/* ---- sections --------------------------------------------------------------------------------- */

void ic_report_section(ic_report *r, const char *id, const char *title, const char *lead)
{
    ic_report_open(r, NULL, '{');
    ic_report_text(r, "id", id);
    ic_report_text(r, "title", title);
    ic_report_text(r, "lead", lead);
    ic_report_open(r, "items", '[');
}

void ic_report_section_end(ic_report *r)
{
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

static void item(ic_report *r, const char *kind)
{
    ic_report_open(r, NULL, '{');
    ic_report_text(r, "kind", kind);
}

void ic_report_note(ic_report *r, const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    item(r, "note");
    ic_report_text(r, "text", text);
    ic_report_close(r, '}');
    if (r->note)
        r->note(r->user, text);
}

/* ---- tables ----------------------------------------------------------------------------------- */

void ic_report_table(ic_report *r, const char *title, const char *columns)
{
    item(r, "table");
    ic_report_text(r, "title", title);
    ic_report_open(r, "columns", '[');
    for (const char *at = columns, *end; *at; at = *end ? end + 1 : end) {
        end = strchr(at, '|');
        if (!end)
            end = at + strlen(at);
        const char *colon = end - at >= 2 && end[-2] == ':' ? end - 2 : NULL;
        ic_report_open(r, NULL, '{');
        ic_report_bytes(r, "name", at, (size_t)((colon ? colon : end) - at));
        if (colon)
            ic_report_number(r, "digits", colon[1] - '0');
        ic_report_close(r, '}');
    }
    ic_report_close(r, ']');
    ic_report_open(r, "rows", '[');
}

void ic_report_row(ic_report *r, const char *types, ...)
{
    va_list list;
    va_start(list, types);
    ic_report_open(r, NULL, '[');
    for (; *types; types++) {
        if (*types == 's')
            ic_report_text(r, NULL, va_arg(list, const char *));
        else if (*types == 'i')
            ic_report_number(r, NULL, (double)va_arg(list, uint64_t));
        else
            ic_report_number(r, NULL, va_arg(list, double));
    }
    ic_report_close(r, ']');
    va_end(list);
}

void ic_report_table_end(ic_report *r)
{
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

/* ---- charts ----------------------------------------------------------------------------------- */

void ic_report_chart(ic_report *r, const char *kind, const char *title, const char *x,
                     const char *y)
{
    item(r, "chart");
    ic_report_text(r, "chart", kind);
    ic_report_text(r, "title", title);
    ic_report_text(r, "x", x);
    ic_report_text(r, "y", y);
    ic_report_open(r, "series", '[');
}

void ic_report_series(ic_report *r, const char *name)
{
    ic_report_open(r, NULL, '{');
    ic_report_text(r, "name", name);
    ic_report_open(r, "points", '[');
}

void ic_report_point(ic_report *r, double x, double y)
{
    ic_report_open(r, NULL, '[');
    ic_report_number(r, NULL, x);
    ic_report_number(r, NULL, y);
    ic_report_close(r, ']');
}

void ic_report_band(ic_report *r, double x, double y, double low, double high)
{
    ic_report_open(r, NULL, '[');
    ic_report_number(r, NULL, x);
    ic_report_number(r, NULL, y);
    ic_report_number(r, NULL, low);
    ic_report_number(r, NULL, high);
    ic_report_close(r, ']');
}

void ic_report_series_end(ic_report *r)
{
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

void ic_report_box(ic_report *r, const char *label, ic_stats *s)
{
    static const double quantiles[] = {0, 0.25, 0.5, 0.75, 1};
    if (!s->count)
        return;
    ic_report_open(r, NULL, '{');
    ic_report_text(r, "name", label);
    ic_report_open(r, "box", '[');
    for (size_t i = 0; i < IC_COUNT(quantiles); i++)
        ic_report_number(r, NULL, ic_stats_quantile(s, quantiles[i]));
    ic_report_number(r, NULL, ic_stats_mean(s));
    ic_report_close(r, ']');
    ic_report_number(r, "samples", (double)s->count);
    ic_report_close(r, '}');
}

void ic_report_bar(ic_report *r, const char *label, double value, double low, double high)
{
    ic_report_open(r, NULL, '{');
    ic_report_text(r, "name", label);
    ic_report_open(r, "bar", '[');
    ic_report_number(r, NULL, value);
    ic_report_number(r, NULL, low);
    ic_report_number(r, NULL, high);
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

void ic_report_stack(ic_report *r, const char *label, const double *parts, size_t count)
{
    ic_report_open(r, NULL, '{');
    ic_report_text(r, "name", label);
    ic_report_open(r, "stack", '[');
    for (size_t i = 0; i < count; i++)
        ic_report_number(r, NULL, parts[i]);
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

void ic_report_chart_end(ic_report *r)
{
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

void ic_report_histogram(ic_report *r, const char *title, const char *x, const ic_stats *s)
{
    enum { BARS = 10 };
    uint64_t count[BARS] = {0};
    char y[48];
    if (!s->count)
        return;
    for (size_t i = 0; i < s->count; i++) {
        double v = IC_MIN(IC_MAX(s->value[i], 0.0), 1.0);
        count[IC_MIN((int)(v * BARS), BARS - 1)]++;
    }
    snprintf(y, sizeof y, "share of %zu samples", s->count);
    ic_report_chart(r, "bar", title, x, y);
    for (int i = 0; i < BARS; i++) {
        char label[16];
        snprintf(label, sizeof label, "%.1f", i / (double)BARS);
        ic_report_bar(r, label, (double)count[i] / (double)s->count, (double)NAN, (double)NAN);
    }
    ic_report_chart_end(r);
}

void ic_report_highlights(ic_report *r, const ic_highlight *list, size_t count)
{
    item(r, "figures");
    ic_report_open(r, "figures", '[');
    for (size_t i = 0; i < count; i++) {
        ic_report_open(r, NULL, '{');
        ic_report_text(r, "section", list[i].section);
        ic_report_text(r, "title", list[i].title);
        ic_report_text(r, "value", list[i].value);
        ic_report_text(r, "detail", list[i].detail);
        ic_report_close(r, '}');
    }
    ic_report_close(r, ']');
    ic_report_close(r, '}');
}

void ic_report_diff(ic_report *r, const char *title, const char *reference, const char *restored)
{
    item(r, "diff");
    ic_report_text(r, "title", title);
    ic_report_text(r, "reference", reference);
    ic_report_text(r, "restored", restored);
    ic_report_close(r, '}');
}
