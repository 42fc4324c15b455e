/*
 * csv.c - the figures of a report as one CSV file (RFC 4180), one line a figure: section and table before
 * every cell, section and chart before every number drawn, so that any program can pivot it.
 */
#include "eval/eval.h"

#include <math.h>
#include <string.h>

static int quote(ic_buffer *out, const char *s)
{
    int rc = ICAE_OK;
    if (!strpbrk(s, ",\"\r\n"))
        return ic_buffer_add(out, s, strlen(s));
    IC_TRY(ic_buffer_add(out, "\"", 1));
    for (; *s; s++) {
        if (*s == '"')
            IC_TRY(ic_buffer_add(out, "\"", 1));
        IC_TRY(ic_buffer_add(out, s, 1));
    }
    IC_TRY(ic_buffer_add(out, "\"", 1));
done:
    return rc;
}

/* One line a cell; empty where nothing was measured. */
static int add_row(ic_buffer *out, const char *section, const ic_json *table, const ic_json *row,
                   size_t number)
{
    int rc = ICAE_OK;
    const ic_json *column = ic_json_first(ic_json_get(table, "columns"));
    for (const ic_json *cell = ic_json_first(row); cell && column;
         cell = ic_json_next(cell), column = ic_json_next(column)) {
        IC_TRY(quote(out, section));
        IC_TRY(ic_buffer_addf(out, ","));
        IC_TRY(quote(out, ic_record_text(table, "title")));
        IC_TRY(ic_buffer_addf(out, ",%zu,", number));
        IC_TRY(quote(out, ic_record_text(column, "name")));
        IC_TRY(ic_buffer_addf(out, ","));
        if (ic_json_string(cell))
            IC_TRY(quote(out, ic_json_string(cell)));
        else if (ic_json_is_number(cell))
            IC_TRY(ic_buffer_addf(out, "%.10g", ic_json_number(cell, 0)));
        IC_TRY(ic_buffer_addf(out, "\n"));
    }
done:
    return rc;
}

/* One number of a chart: the column is the series and what of it. */
static int add_value(ic_buffer *out, const char *section, const ic_json *chart, const char *series,
                     const char *what, size_t number, double value)
{
    int rc = ICAE_OK;
    ic_buffer column = {0};
    IC_TRY(ic_buffer_addf(&column, "%s%s%s", series, *series && *what ? ": " : "", what));
    IC_TRY(quote(out, section));
    IC_TRY(ic_buffer_addf(out, ","));
    IC_TRY(quote(out, ic_record_text(chart, "title")));
    IC_TRY(ic_buffer_addf(out, ",%zu,", number));
    IC_TRY(quote(out, column.data));
    if (isfinite(value))
        IC_TRY(ic_buffer_addf(out, ",%.10g\n", value));
    else
        IC_TRY(ic_buffer_addf(out, ",\n"));
done:
    ic_buffer_free(&column);
    return rc;
}

static int add_list(ic_buffer *out, const char *section, const ic_json *chart,
                    const ic_json *series, const char *key, const char *const *names, size_t count,
                    size_t number)
{
    int rc = ICAE_OK;
    size_t i = 0;
    for (const ic_json *v = ic_json_first(ic_json_get(series, key)); v && i < count;
         v = ic_json_next(v), i++)
        IC_TRY(add_value(out, section, chart, ic_record_text(series, "name"), names[i], number,
                         ic_json_number(v, (double)NAN)));
done:
    return rc;
}

static int add_series(ic_buffer *out, const char *section, const ic_json *chart, const ic_json *s,
                      size_t number)
{
    static const char *const box[] = {"least",      "quartile 1", "median",
                                      "quartile 3", "most",       "mean"};
    static const char *const bar[] = {"", "from", "to"};
    static const char *const point[] = {"x", "y", "quartile 1", "quartile 3"};
    static const char *const stack[] = {"part 1", "part 2", "part 3", "part 4"};
    int rc = ICAE_OK;
    IC_TRY(add_list(out, section, chart, s, "box", box, IC_COUNT(box), number));
    if (ic_json_get(s, "samples"))
        IC_TRY(add_value(out, section, chart, ic_record_text(s, "name"), "samples", number,
                         ic_json_number(ic_json_get(s, "samples"), (double)NAN)));
    IC_TRY(add_list(out, section, chart, s, "bar", bar, IC_COUNT(bar), number));
    IC_TRY(add_list(out, section, chart, s, "stack", stack, IC_COUNT(stack), number));
    size_t i = 0;
    for (const ic_json *p = ic_json_first(ic_json_get(s, "points")); p; p = ic_json_next(p)) {
        size_t k = 0;
        i++;
        for (const ic_json *v = ic_json_first(p); v && k < IC_COUNT(point);
             v = ic_json_next(v), k++)
            IC_TRY(add_value(out, section, chart, ic_record_text(s, "name"), point[k], i,
                             ic_json_number(v, (double)NAN)));
    }
done:
    return rc;
}

static int add_figures(ic_buffer *out, const char *section, const ic_json *item)
{
    int rc = ICAE_OK;
    size_t number = 0;
    for (const ic_json *f = ic_json_first(ic_json_get(item, "figures")); f; f = ic_json_next(f)) {
        static const char *const keys[] = {"value", "detail"};
        number++;
        for (size_t k = 0; k < IC_COUNT(keys); k++) {
            IC_TRY(quote(out, section));
            IC_TRY(ic_buffer_addf(out, ",Key figures,%zu,", number));
            IC_TRY(quote(out, k ? "detail" : ic_record_text(f, "title")));
            IC_TRY(ic_buffer_addf(out, ","));
            IC_TRY(quote(out, ic_record_text(f, keys[k])));
            IC_TRY(ic_buffer_addf(out, "\n"));
        }
    }
done:
    return rc;
}

int ic_csv_write(ic_buffer *out, const ic_json *report)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "section,table,row,column,value\n"));
    for (const ic_json *s = ic_json_first(ic_json_get(report, "sections")); s; s = ic_json_next(s))
        for (const ic_json *i = ic_json_first(ic_json_get(s, "items")); i; i = ic_json_next(i)) {
            size_t number = 0;
            const char *kind = ic_record_text(i, "kind"), *id = ic_record_text(s, "id");
            if (!strcmp(kind, "figures"))
                IC_TRY(add_figures(out, id, i));
            for (const ic_json *r = ic_json_first(ic_json_get(i, "rows")); r; r = ic_json_next(r))
                IC_TRY(add_row(out, id, i, r, ++number));
            for (const ic_json *r = ic_json_first(ic_json_get(i, "series")); r; r = ic_json_next(r))
                IC_TRY(add_series(out, id, i, r, ++number));
        }
done:
    return rc;
}
