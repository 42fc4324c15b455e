/*
 * svg.c - a chart as inline SVG: lines over numbers, boxes and bars over names.
 *
 * Colours are classes that the page defines for light and dark. Sizes are for a column of about 460
 * pixels, which is also a phone's width, so that letters stay readable.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    WIDTH = 460,
    LEFT = 56,
    RIGHT = 22,
    TOP = 10,
    PLOT = 210,
    BOTTOM = 40,
    COLOURS = 8,
    MOST = 96,
    ROW = 24,
    ABOVE = 18, /* what a name above its row takes */
    LONG = 22,  /* letters of a name that stands above */
    PARTS = 4   /* of a stack */
};

typedef enum { BOX, BAR, STACK } row_kind;

typedef struct series {
    const ic_json *json;
    size_t report; /* which one it is of */
    char name[200];
} series;

typedef struct range {
    double low, high;
    bool log; /* low and high are powers of ten */
} range;

static void widen(range *r, double v)
{
    if (!isfinite(v))
        return;
    r->low = isfinite(r->low) ? fmin(r->low, v) : v;
    r->high = isfinite(r->high) ? fmax(r->high, v) : v;
}

/* Distance between round ticks. */
static double tick_step(double span)
{
    double raw = span / 5, power = pow(10, floor(log10(raw))), m = raw / power;
    return power * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
}

/* Round ends with room; a range of nothing becomes one. */
static range rounded(range r, bool zero)
{
    if (!isfinite(r.low))
        return (range){0, 1, false};
    if (zero)
        r.low = fmin(r.low, 0);
    if (r.high - r.low < 1e-9 * fmax(1, fabs(r.high))) {
        double pad = r.high != 0 ? fabs(r.high) * 0.1 : 1;
        bool share = r.high <= 1 && r.high >= 0;
        r.low -= pad;
        r.high = share ? fmin(1, r.high + pad) : r.high + pad;
    }
    for (int i = 0; i < 3; i++) { /* the wider range may want wider steps */
        double step = tick_step(r.high - r.low);
        r.low = floor(r.low / step + 1e-9) * step;
        r.high = ceil(r.high / step - 1e-9) * step;
    }
    return r;
}

/* Values that lie far apart: by their logarithms. */
static range logarithmic(range r)
{
    if (!(isfinite(r.low) && r.low > 0 && r.high / r.low > 30))
        return rounded(r, false);
    return (range){floor(log10(r.low)), ceil(log10(r.high)), true};
}

static double place(range r, double v, double from, double to)
{
    if (r.log)
        v = log10(v);
    return from + (v - r.low) / (r.high - r.low) * (to - from);
}

static int add_text(ic_buffer *out, double x, double y, const char *anchor, const char *s)
{
    int rc = ic_buffer_addf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    if (rc == ICAE_OK)
        rc = ic_html_escape(out, s, strlen(s));
    return rc == ICAE_OK ? ic_buffer_addf(out, "</text>") : rc;
}

static int begin(ic_buffer *out, int height, const char *title)
{
    int rc =
        ic_buffer_addf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, height);
    if (rc == ICAE_OK)
        rc = ic_html_escape(out, title, strlen(title));
    return rc == ICAE_OK ? ic_buffer_addf(out, "\">\n") : rc;
}

static int tooltip(ic_buffer *out, const char *name, const char *format, ...) IC_PRINTF(3, 4);
static int tooltip(ic_buffer *out, const char *name, const char *format, ...)
{
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    int rc = ic_buffer_addf(out, "<title>");
    if (rc == ICAE_OK)
        rc = ic_html_escape(out, name, strlen(name));
    return rc == ICAE_OK ? ic_buffer_addf(out, ": %s</title>", text) : rc;
}

/* A grid line and its number at every round value. */
static int axis(ic_buffer *out, range r, bool vertical, int bottom)
{
    int rc = ICAE_OK;
    double step = r.log ? 1 : tick_step(r.high - r.low);
    for (int i = 0; r.low + i * step <= r.high + step / 1000; i++) {
        char label[32];
        double v = r.log ? pow(10, r.low + i) : r.low + i * step;
        snprintf(label, sizeof label, "%.6g", !r.log && fabs(v) < step / 1000 ? 0.0 : v);
        if (vertical) {
            double y = place(r, v, bottom, TOP);
            IC_TRY(ic_buffer_addf(
                out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT,
                WIDTH - RIGHT, y, y));
            IC_TRY(add_text(out, LEFT - 6, y + 4, "end", label));
        } else {
            double x = place(r, v, LEFT, WIDTH - RIGHT);
            IC_TRY(ic_buffer_addf(
                out, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>", x, x,
                TOP, bottom));
            IC_TRY(add_text(out, x, bottom + 16, "middle", label));
        }
    }
done:
    return rc;
}

static int legend(ic_buffer *out, const series *s, size_t n)
{
    int rc = ICAE_OK;
    if (n < 2)
        return rc;
    IC_TRY(ic_buffer_addf(out, "<div class=\"legend\">"));
    for (size_t i = 0; i < n; i++) {
        IC_TRY(ic_buffer_addf(out, "<span><i class=\"k%zu\"></i>", i % COLOURS));
        IC_TRY(ic_html_escape(out, s[i].name, strlen(s[i].name)));
        IC_TRY(ic_buffer_addf(out, "</span> "));
    }
    IC_TRY(ic_buffer_addf(out, "</div>"));
done:
    return rc;
}

/* ---- lines ------------------------------------------------------------------------------------ */

static size_t values_of(const ic_json *list, double *v, size_t n)
{
    size_t count = 0;
    for (const ic_json *i = ic_json_first(list); i && count < n; i = ic_json_next(i))
        v[count++] = ic_json_number(i, (double)NAN);
    return count;
}

/* x, y and, if there is a band, its ends; else NaN. False: there is nothing to draw. */
static bool point_of(const ic_json *point, double v[4])
{
    v[0] = v[1] = v[2] = v[3] = (double)NAN;
    values_of(point, v, 4);
    return isfinite(v[0]) && isfinite(v[1]);
}

/* The band around a line: its upper edge, then its lower one back; *drawn: there is one. */
static int band(ic_buffer *out, const series *s, size_t colour, range xs, range ys, int bottom)
{
    int rc = ICAE_OK;
    double v[4], back[MOST][2];
    size_t n = 0;
    const ic_json *points = ic_json_get(s->json, "points");
    for (const ic_json *p = ic_json_first(points); p && n < MOST; p = ic_json_next(p))
        if (point_of(p, v) && isfinite(v[2]) && isfinite(v[3])) {
            double x = place(xs, v[0], LEFT, WIDTH - RIGHT);
            if (!n)
                IC_TRY(ic_buffer_addf(out, "<polygon class=\"f%zu band\" points=\"", colour));
            IC_TRY(ic_buffer_addf(out, "%.1f,%.1f ", x, place(ys, v[3], bottom, TOP)));
            back[n][0] = x;
            back[n++][1] = place(ys, v[2], bottom, TOP);
        }
    for (size_t i = n; i-- > 0;)
        IC_TRY(ic_buffer_addf(out, "%.1f,%.1f ", back[i][0], back[i][1]));
    if (n)
        IC_TRY(ic_buffer_addf(out, "\"/>\n"));
done:
    return rc;
}

static int line(ic_buffer *out, const series *s, size_t colour, range xs, range ys, int bottom)
{
    int rc = ICAE_OK;
    double v[4];
    const ic_json *points = ic_json_get(s->json, "points");
    IC_TRY(ic_buffer_addf(out, "<polyline class=\"c%zu\" points=\"", colour));
    for (const ic_json *p = ic_json_first(points); p; p = ic_json_next(p))
        if (point_of(p, v))
            IC_TRY(ic_buffer_addf(out, "%.1f,%.1f ", place(xs, v[0], LEFT, WIDTH - RIGHT),
                                  place(ys, v[1], bottom, TOP)));
    IC_TRY(ic_buffer_addf(out, "\"/>\n"));
    for (const ic_json *p = ic_json_first(points); p; p = ic_json_next(p)) {
        if (!point_of(p, v))
            continue;
        IC_TRY(ic_buffer_addf(out, "<circle class=\"f%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\">",
                              colour, place(xs, v[0], LEFT, WIDTH - RIGHT),
                              place(ys, v[1], bottom, TOP)));
        if (isfinite(v[2]))
            IC_TRY(tooltip(out, s->name, "%.6g at %.6g (middle half %.4g to %.4g)", v[1], v[0],
                           v[2], v[3]));
        else
            IC_TRY(tooltip(out, s->name, "%.6g at %.6g", v[1], v[0]));
        IC_TRY(ic_buffer_addf(out, "</circle>\n"));
    }
done:
    return rc;
}

static int lines(ic_buffer *out, const ic_json *chart, const series *s, size_t n)
{
    int rc = ICAE_OK, bottom = TOP + PLOT;
    range xs = {(double)NAN, (double)NAN, false}, ys = xs;
    double v[4];
    for (size_t i = 0; i < n; i++)
        for (const ic_json *p = ic_json_first(ic_json_get(s[i].json, "points")); p;
             p = ic_json_next(p))
            if (point_of(p, v)) {
                widen(&xs, v[0]);
                for (int k = 1; k < 4; k++)
                    widen(&ys, v[k]);
            }
    xs = rounded(xs, true);
    ys = logarithmic(ys);
    IC_TRY(begin(out, bottom + BOTTOM, ic_record_text(chart, "title")));
    IC_TRY(axis(out, ys, true, bottom));
    IC_TRY(axis(out, xs, false, bottom));
    for (size_t i = 0; i < n; i++)
        IC_TRY(band(out, &s[i], i % COLOURS, xs, ys, bottom));
    for (size_t i = 0; i < n; i++)
        IC_TRY(line(out, &s[i], i % COLOURS, xs, ys, bottom));
    IC_TRY(add_text(out, (LEFT + WIDTH - RIGHT) / 2.0, bottom + 34, "middle",
                    ic_record_text(chart, "x")));
    IC_TRY(ic_buffer_addf(out, "</svg>"));
    IC_TRY(legend(out, s, n));
done:
    return rc;
}

/* ---- boxes and bars: one row a name ----------------------------------------------------------- */

static int box_row(ic_buffer *out, const series *s, size_t colour, range r, double y, double left)
{
    int rc = ICAE_OK;
    double v[6], x[6], right = WIDTH - RIGHT;
    if (values_of(ic_json_get(s->json, "box"), v, 6) < 6)
        return rc;
    for (int i = 0; i < 6; i++)
        x[i] = place(r, v[i], left, right);
    IC_TRY(ic_buffer_addf(out, "<g>"));
    IC_TRY(tooltip(out, s->name, "least %.4g, quartiles %.4g, %.4g, %.4g, most %.4g, mean %.4g",
                   v[0], v[1], v[2], v[3], v[4], v[5]));
    IC_TRY(ic_buffer_addf(out,
                          "<line class=\"c%zu\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                          colour, x[0], x[4], y, y));
    IC_TRY(ic_buffer_addf(
        out,
        "<rect class=\"c%zu box\" x=\"%.1f\" width=\"%.1f\" y=\"%.1f\" height=\"14\" rx=\"2\"/>",
        colour, x[1], fmax(x[3] - x[1], 1), y - 7));
    IC_TRY(ic_buffer_addf(
        out, "<line class=\"c%zu median\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
        colour, x[2], x[2], y - 7, y + 7));
    IC_TRY(ic_buffer_addf(out, "<circle class=\"mean\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/></g>\n",
                          x[5], y));
done:
    return rc;
}

/* Part i of "a|b|c"; false: there is none. */
static bool part_name(char out[32], const ic_json *chart, size_t i)
{
    const char *at = ic_record_text(chart, "y");
    for (; at && i; i--)
        at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL;
    snprintf(out, 32, "%.*s", at ? (int)IC_MIN(strcspn(at, "|"), (size_t)31) : 0, at ? at : "");
    return *out;
}

static int bar_row(ic_buffer *out, const series *s, size_t colour, range r, double y, double left)
{
    int rc = ICAE_OK;
    double v[3] = {(double)NAN, (double)NAN, (double)NAN}, right = WIDTH - RIGHT,
           zero = place(r, 0, left, right);
    char label[32];
    values_of(ic_json_get(s->json, "bar"), v, 3);
    if (!isfinite(v[0]))
        return rc;
    double end = place(r, v[0], left, right), text = end;
    IC_TRY(ic_buffer_addf(
        out, "<rect class=\"f%zu\" x=\"%.1f\" width=\"%.1f\" y=\"%.1f\" height=\"14\" rx=\"2\">",
        colour, zero, fmax(end - zero, 0.5), y - 7));
    IC_TRY(tooltip(out, s->name, "%.4g", v[0]));
    IC_TRY(ic_buffer_addf(out, "</rect>"));
    if (isfinite(v[1]) && isfinite(v[2])) {
        text = fmax(end, place(r, v[2], left, right));
        IC_TRY(ic_buffer_addf(
            out, "<line class=\"error\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
            place(r, v[1], left, right), place(r, v[2], left, right), y, y));
    }
    snprintf(label, sizeof label, "%.3g", v[0]);
    bool inside = text + 44 > WIDTH; /* no room behind the bar: at its beginning */
    IC_TRY(ic_buffer_addf(out, "<g class=\"%s\">", inside ? "inside" : "value"));
    IC_TRY(add_text(out, inside ? zero + 6 : text + 5, y + 4.5, "start", label));
    IC_TRY(ic_buffer_addf(out, "</g>\n"));
done:
    return rc;
}

/* Parts that are better, as good and worse have colours that say so. */
static bool is_verdict(const ic_json *chart)
{
    return strstr(ic_record_text(chart, "y"), "|tie|") ||
           strstr(ic_record_text(chart, "y"), "|equal|");
}

/* Parts one behind the other, each in its colour. */
static int stack_row(ic_buffer *out, const ic_json *chart, const series *s, range r, double y,
                     double left)
{
    int rc = ICAE_OK;
    double v[PARTS], from = 0, right = WIDTH - RIGHT;
    size_t n = values_of(ic_json_get(s->json, "stack"), v, PARTS);
    for (size_t i = 0; i < n; i++) {
        char part[32], label[24];
        part_name(part, chart, i);
        if (!isfinite(v[i]) || v[i] <= 0)
            continue;
        double a = place(r, from, left, right), b = place(r, from + v[i], left, right);
        IC_TRY(ic_buffer_addf(out,
                              "<rect class=\"%c%zu\" x=\"%.1f\" width=\"%.1f\" y=\"%.1f\" "
                              "height=\"16\" rx=\"1.5\">",
                              is_verdict(chart) ? 'p' : 'f', i, a, fmax(b - a - 1, 0.7), y - 8));
        IC_TRY(tooltip(out, s->name, "%s %.4g", part, v[i]));
        IC_TRY(ic_buffer_addf(out, "</rect>"));
        snprintf(label, sizeof label, "%.3g", v[i]);
        if (b - a > 8.0 * (double)strlen(label)) {
            IC_TRY(ic_buffer_addf(out, "<g class=\"inside\">"));
            IC_TRY(add_text(out, (a + b) / 2, y + 4.5, "middle", label));
            IC_TRY(ic_buffer_addf(out, "</g>"));
        }
        from += v[i];
    }
    IC_TRY(ic_buffer_addf(out, "\n"));
done:
    return rc;
}

static int stack_legend(ic_buffer *out, const ic_json *chart)
{
    int rc = ICAE_OK;
    char part[32];
    IC_TRY(ic_buffer_addf(out, "<div class=\"legend\">"));
    for (size_t i = 0; i < PARTS && part_name(part, chart, i); i++) {
        IC_TRY(
            ic_buffer_addf(out, "<span><i class=\"%c%zu\"></i>", is_verdict(chart) ? 'q' : 'k', i));
        IC_TRY(ic_html_escape(out, part, strlen(part)));
        IC_TRY(ic_buffer_addf(out, "</span> "));
    }
    IC_TRY(ic_buffer_addf(out, "</div>"));
done:
    return rc;
}

static size_t longest_name(const series *s, size_t n)
{
    size_t longest = 0;
    for (size_t i = 0; i < n; i++)
        longest = IC_MAX(longest, strlen(s[i].name));
    return longest;
}

/* Left of the row, or above it. */
static int row_name(ic_buffer *out, const char *name, double left, double y, bool above)
{
    enum { FITS = 58 };
    char text[FITS + 4];
    size_t size = strlen(name);
    if (size > FITS)
        size = ic_utf8_whole(name, FITS);
    snprintf(text, sizeof text, "%.*s%s", (int)size, name, name[size] ? "\u2026" : "");
    return above ? add_text(out, left, y - 13, "start", text)
                 : add_text(out, left - 6, y + 4, "end", text);
}

/* All that a row reaches. */
static void widen_row(range *r, const series *s, row_kind kind)
{
    static const char *const keys[] = {"box", "bar", "stack"};
    double v[6], sum = 0;
    size_t n = values_of(ic_json_get(s->json, keys[kind]), v, 6);
    for (size_t j = 0; j < n; j++) {
        sum += isfinite(v[j]) ? v[j] : 0;
        widen(r, kind == STACK ? sum : v[j]);
    }
}

static int rows(ic_buffer *out, const ic_json *chart, const series *s, size_t n, row_kind kind)
{
    int rc = ICAE_OK;
    range r = {(double)NAN, (double)NAN, false};
    size_t longest = longest_name(s, n);
    bool box = kind == BOX, above = longest > LONG;
    double left = above ? 10 : fmax((double)longest * 7.3 + 12, 40);
    int height = ROW + above * ABOVE;
    for (size_t i = 0; i < n; i++)
        widen_row(&r, &s[i], kind);
    bool share = !box && r.high <= 1 + 1e-9 && r.high > 0.5;
    r = rounded(r, !box);
    if (share)
        r.high = 1;
    int bottom = TOP + (int)n * height;
    double step = tick_step(r.high - r.low);
    IC_TRY(begin(out, bottom + (*ic_record_text(chart, "x") ? BOTTOM : 22),
                 ic_record_text(chart, "title")));
    for (int i = 0; r.low + i * step <= r.high + step / 1000; i++) {
        char label[32];
        double tick = r.low + i * step, x = place(r, tick, left, WIDTH - RIGHT);
        snprintf(label, sizeof label, "%.6g", fabs(tick) < step / 1000 ? 0.0 : tick);
        IC_TRY(ic_buffer_addf(out,
                              "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>",
                              x, x, TOP, bottom));
        IC_TRY(add_text(out, x, bottom + 15, "middle", label));
    }
    for (size_t i = 0; i < n; i++) {
        double y = TOP + height * ((double)i + 1) - ROW / 2.0;
        IC_TRY(row_name(out, s[i].name, left, y, above));
        size_t colour = s[i].report % COLOURS;
        IC_TRY(box           ? box_row(out, &s[i], colour, r, y, left)
               : kind == BAR ? bar_row(out, &s[i], colour, r, y, left)
                             : stack_row(out, chart, &s[i], r, y, left));
    }
    IC_TRY(ic_buffer_addf(out, "</svg>"));
    if (kind == STACK)
        IC_TRY(stack_legend(out, chart));
done:
    return rc;
}

/* ---- charts ----------------------------------------------------------------------------------- */

static size_t count_series(const ic_json *chart)
{
    return ic_json_count(ic_json_get(chart, "series"));
}

/* All series of all reports: lines report by report, boxes and bars name by name so that the same
 * thing of different runs stands together. */
static size_t gather(series *out, const ic_json *const *charts, const char *const *names,
                     size_t count, bool together)
{
    size_t n = 0, most = 0;
    for (size_t i = 0; i < count; i++)
        most = IC_MAX(most, charts[i] ? count_series(charts[i]) : 0);
    for (size_t a = 0; a < (together ? most : count); a++)
        for (size_t b = 0; b < (together ? count : most) && n < MOST; b++) {
            size_t report = together ? b : a, at = together ? a : b;
            const ic_json *s =
                charts[report] ? ic_json_first(ic_json_get(charts[report], "series")) : NULL;
            for (size_t k = 0; s && k < at; k++)
                s = ic_json_next(s);
            if (!s)
                continue;
            out[n].json = s;
            out[n].report = report;
            bool one = count == 1;
            snprintf(out[n].name, sizeof out[n].name, "%s%s%s", one ? "" : names[report],
                     one || !*ic_record_text(s, "name") ? "" : " ", ic_record_text(s, "name"));
            n++;
        }
    return n;
}

int ic_svg_chart(ic_buffer *out, const ic_json *const *charts, const char *const *names,
                 size_t count)
{
    const ic_json *chart = NULL;
    for (size_t i = 0; i < count && !chart; i++)
        chart = charts[i];
    if (!chart)
        return ICAE_OK;
    const char *is = ic_record_text(chart, "chart");
    bool is_line = !strcmp(is, "line");
    row_kind kind = !strcmp(is, "box") ? BOX : !strcmp(is, "stack") ? STACK : BAR;
    series *list = ic_alloc(MOST, sizeof *list);
    if (!list)
        return ICAE_ENOMEM;
    size_t n = gather(list, charts, names, count, !is_line);
    int rc = is_line ? lines(out, chart, list, n) : rows(out, chart, list, n, kind);
    ic_free(list);
    return rc;
}
