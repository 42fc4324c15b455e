/*
 * csv.c - the tables of a report as one CSV file (RFC 4180): section and table name before every cell,
 * one line a figure, so that any program can pivot it.
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

static const char *text_of(const ic_json *o, const char *key)
{
    const char *s = ic_json_string(ic_json_get(o, key));
    return s ? s : "";
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
        IC_TRY(quote(out, text_of(table, "title")));
        IC_TRY(ic_buffer_addf(out, ",%zu,", number));
        IC_TRY(quote(out, text_of(column, "name")));
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

int ic_csv_write(ic_buffer *out, const ic_json *report)
{
    int rc = ICAE_OK;
    IC_TRY(ic_buffer_addf(out, "section,table,row,column,value\n"));
    for (const ic_json *s = ic_json_first(ic_json_get(report, "sections")); s; s = ic_json_next(s))
        for (const ic_json *i = ic_json_first(ic_json_get(s, "items")); i; i = ic_json_next(i)) {
            size_t number = 0;
            if (strcmp(text_of(i, "kind"), "table"))
                continue;
            for (const ic_json *r = ic_json_first(ic_json_get(i, "rows")); r; r = ic_json_next(r))
                IC_TRY(add_row(out, text_of(s, "id"), i, r, ++number));
        }
done:
    return rc;
}
