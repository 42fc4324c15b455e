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
    RIGHT = 14,
    TOP = 10,
    PLOT = 210,
    BOTTOM = 40,
    COLOURS = 8,
    MOST = 96,
    ROW = 24
};

typedef struct series {
    const ic_json *json;
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

static const char *text_of(const ic_json *o, const char *key)
{
    const char *s = ic_json_string(ic_json_get(o, key));
    return s ? s : "";
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

static bool point_of(const ic_json *point, double *x, double *y)
{
    const ic_json *a = ic_json_first(point), *b = a ? ic_json_next(a) : NULL;
    *x = ic_json_number(a, (double)NAN);
    *y = ic_json_number(b, (double)NAN);
    return isfinite(*x) && isfinite(*y);
}

static int line(ic_buffer *out, const series *s, size_t colour, range xs, range ys, int bottom)
{
    int rc = ICAE_OK;
    double x, y;
    const ic_json *points = ic_json_get(s->json, "points");
    IC_TRY(ic_buffer_addf(out, "<polyline class=\"c%zu\" points=\"", colour));
    for (const ic_json *p = ic_json_first(points); p; p = ic_json_next(p))
        if (point_of(p, &x, &y))
            IC_TRY(ic_buffer_addf(out, "%.1f,%.1f ", place(xs, x, LEFT, WIDTH - RIGHT),
                                  place(ys, y, bottom, TOP)));
    IC_TRY(ic_buffer_addf(out, "\"/>\n"));
    for (const ic_json *p = ic_json_first(points); p; p = ic_json_next(p)) {
        if (!point_of(p, &x, &y))
            continue;
        IC_TRY(ic_buffer_addf(out, "<circle class=\"f%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\">",
                              colour, place(xs, x, LEFT, WIDTH - RIGHT),
                              place(ys, y, bottom, TOP)));
        IC_TRY(tooltip(out, s->name, "%.6g at %.6g", y, x));
        IC_TRY(ic_buffer_addf(out, "</circle>\n"));
    }
done:
    return rc;
}

static int lines(ic_buffer *out, const ic_json *chart, const series *s, size_t n)
{
    int rc = ICAE_OK, bottom = TOP + PLOT;
    range xs = {(double)NAN, (double)NAN, false}, ys = xs;
    double x, y;
    for (size_t i = 0; i < n; i++)
        for (const ic_json *p = ic_json_first(ic_json_get(s[i].json, "points")); p;
             p = ic_json_next(p))
            if (point_of(p, &x, &y)) {
                widen(&xs, x);
                widen(&ys, y);
            }
    xs = rounded(xs, true);
    ys = logarithmic(ys);
    IC_TRY(begin(out, bottom + BOTTOM, text_of(chart, "title")));
    IC_TRY(axis(out, ys, true, bottom));
    IC_TRY(axis(out, xs, false, bottom));
    for (size_t i = 0; i < n; i++)
        IC_TRY(line(out, &s[i], i % COLOURS, xs, ys, bottom));
    IC_TRY(add_text(out, (LEFT + WIDTH - RIGHT) / 2.0, bottom + 34, "middle", text_of(chart, "x")));
    IC_TRY(ic_buffer_addf(out, "</svg>"));
    IC_TRY(legend(out, s, n));
done:
    return rc;
}

/* ---- boxes and bars: one row a name ----------------------------------------------------------- */

static size_t values_of(const ic_json *list, double *v, size_t n)
{
    size_t count = 0;
    for (const ic_json *i = ic_json_first(list); i && count < n; i = ic_json_next(i))
        v[count++] = ic_json_number(i, (double)NAN);
    return count;
}

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

/* Width that the longest name takes, within bounds. */
static double label_width(const series *s, size_t n)
{
    size_t longest = 0;
    for (size_t i = 0; i < n; i++)
        longest = IC_MAX(longest, strlen(s[i].name));
    return fmin(fmax((double)longest * 7 + 12, 40), 180);
}

static int rows(ic_buffer *out, const ic_json *chart, const series *s, size_t n, bool box,
                size_t groups)
{
    int rc = ICAE_OK;
    range r = {(double)NAN, (double)NAN, false};
    double left = label_width(s, n), v[6];
    for (size_t i = 0; i < n; i++) {
        size_t k = values_of(ic_json_get(s[i].json, box ? "box" : "bar"), v, 6);
        for (size_t j = 0; j < k; j++)
            widen(&r, v[j]);
    }
    bool share = !box && r.high <= 1 && r.high > 0.5;
    r = rounded(r, !box);
    if (share)
        r.high = 1;
    int bottom = TOP + (int)n * ROW;
    double step = tick_step(r.high - r.low);
    IC_TRY(begin(out, bottom + (*text_of(chart, "x") ? BOTTOM : 22), text_of(chart, "title")));
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
        double y = TOP + ROW * ((double)i + 0.5);
        char name[40];
        snprintf(name, sizeof name, strlen(s[i].name) > 26 ? "%.25s…" : "%s", s[i].name);
        IC_TRY(add_text(out, left - 6, y + 4, "end", name));
        size_t colour = groups ? i % groups % COLOURS : 0;
        IC_TRY(box ? box_row(out, &s[i], colour, r, y, left)
                   : bar_row(out, &s[i], colour, r, y, left));
    }
    IC_TRY(ic_buffer_addf(out, "</svg>"));
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
            bool one = count == 1;
            snprintf(out[n].name, sizeof out[n].name, "%s%s%s", one ? "" : names[report],
                     one || !*text_of(s, "name") ? "" : " ", text_of(s, "name"));
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
    bool is_line = !strcmp(text_of(chart, "chart"), "line"),
         box = !strcmp(text_of(chart, "chart"), "box");
    series *list = ic_alloc(MOST, sizeof *list);
    if (!list)
        return ICAE_ENOMEM;
    size_t n = gather(list, charts, names, count, !is_line);
    int rc = is_line ? lines(out, chart, list, n)
                     : rows(out, chart, list, n, box, count > 1 ? count : 0);
    ic_free(list);
    return rc;
}
