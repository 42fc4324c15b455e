/*
 * plot.c - the curves of a run as one self-contained SVG, drawn from its metrics.jsonl; light or dark as
 * the viewer is.
 *
 * Reads only the metrics file; lines that are broken or of another kind are passed over.
 */
#include "train/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    WIDTH = 780,
    HEIGHT = 230,
    LEFT = 64,
    RIGHT = 170,
    TOP = 34,
    BOTTOM = 34,
    POINTS = 600,
    COLOURS = 8
};

typedef struct series {
    char key[48], label[56];
    bool held_out;
    double *x, *y;
    size_t count, capacity;
} series;

typedef enum { FROM_ZERO, SHARE, RANGE, LOG } scale;

typedef struct panel {
    const char *title;
    scale scale; /* of y: from 0, from 0 to 1, as far as there are values, logarithmic */
    bool dashed; /* held-out curves, since those of training are there too */
    series *s;
    size_t count;
} panel;

static int add_point(series *s, double x, double y)
{
    if (s->count == s->capacity) {
        size_t capacity = IC_MAX((size_t)256, s->capacity * 2);
        double *a = ic_resize(s->x, capacity, sizeof *a);
        s->x = a ? a : s->x;
        double *b = a ? ic_resize(s->y, capacity, sizeof *b) : NULL;
        s->y = b ? b : s->y;
        if (!a || !b)
            return ICAE_ENOMEM;
        s->capacity = capacity;
    }
    s->x[s->count] = x;
    s->y[s->count++] = y;
    return ICAE_OK;
}

static series *series_of(panel *p, const char *key, const char *label, bool held_out)
{
    for (size_t i = 0; i < p->count; i++)
        if (p->s[i].held_out == held_out && strcmp(p->s[i].key, key) == 0)
            return &p->s[i];
    series *all = ic_resize(p->s, p->count + 1, sizeof *all);
    if (!all)
        return NULL;
    p->s = all;
    series *s = &all[p->count++];
    *s = (series){.held_out = held_out};
    snprintf(s->key, sizeof s->key, "%s", key);
    snprintf(s->label, sizeof s->label, "%s", label);
    return s;
}

enum { LOSS, RESTORED, PERPLEXITY, NORM, RATE, PANELS };

static const panel panels_of_a_run[PANELS] = {
    {.title = "Loss, nats a token; dashed: held out", .scale = LOG, .dashed = true},
    {.title = "Restored, share of held-out tokens", .scale = SHARE},
    {.title = "Perplexity of held-out continuations", .scale = RANGE},
    {.title = "Gradient norm", .scale = LOG},
    {.title = "Learning rate"},
};

/* Which panel a number of the metrics belongs to, -1: none, and what it is called there. */
static int place(const char *key, bool eval, char label[40])
{
    static const struct {
        const char *key, *label;
        int panel;
        bool eval;
    } places[] = {
        {"ae", "restoring", LOSS, false},
        {"lm", "continuing", LOSS, false},
        {"ft", "answering", LOSS, false},
        {"ae", "restoring", LOSS, true},
        {"lm", "continuing", LOSS, true},
        {"ft", "answering", LOSS, true},
        {"accuracy", "right", RESTORED, true},
        {"exact_prefix", "exact prefix", RESTORED, true},
        {"ppl_slots", "slots", PERPLEXITY, true},
        {"ppl_full", "full text", PERPLEXITY, true},
        {"ppl_none", "no context", PERPLEXITY, true},
        {"norm", "norm", NORM, false},
        {"lr", "rate", RATE, false},
    };
    size_t n = strcspn(key, "/");
    for (size_t i = 0; i < IC_COUNT(places); i++)
        if (places[i].eval == eval && strlen(places[i].key) == n &&
            strncmp(key, places[i].key, n) == 0) {
            snprintf(label, 40, "%.12s%s%.12s%s", places[i].label, key[n] ? " at " : "",
                     key[n] ? key + n + 1 : "", key[n] ? "×" : "");
            return places[i].panel;
        }
    return -1;
}

static int take_line(panel panels[PANELS], const ic_json *line)
{
    double step = ic_json_number(ic_json_get(line, "step"), NAN);
    bool eval = ic_json_bool(ic_json_get(line, "eval"), false);
    for (const ic_json *n = ic_json_first(line); n && isfinite(step); n = ic_json_next(n)) {
        char label[40];
        int at = ic_json_is_number(n) ? place(ic_json_key(n), eval, label) : -1;
        if (at < 0)
            continue;
        series *s = series_of(&panels[at], ic_json_key(n), label, eval);
        if (!s || add_point(s, step, ic_json_number(n, 0)) < 0)
            return ICAE_ENOMEM;
    }
    return ICAE_OK;
}

static int read_metrics(panel panels[PANELS], const char *path)
{
    ic_map map;
    int rc = ic_map_open(&map, path);
    if (rc < 0)
        return rc;
    const char *at = (const char *)map.data, *end = at + map.size;
    while (at < end && rc == ICAE_OK) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        ic_json *line = NULL;
        size_t n = (size_t)((stop ? stop : end) - at);
        if (n && ic_json_parse(&line, at, n, path) == ICAE_OK)
            rc = take_line(panels, line);
        ic_json_free(line);
        at += n + 1;
    }
    ic_map_close(&map);
    return rc;
}

/* ---- drawing ---------------------------------------------------------------------------------- */

/* Long series are drawn as means of equal stretches. */
static void thin(series *s)
{
    if (s->count <= POINTS)
        return;
    for (size_t i = 0; i < POINTS; i++) {
        size_t from = i * s->count / POINTS, to = (i + 1) * s->count / POINTS;
        double x = 0, y = 0;
        for (size_t j = from; j < to; j++) {
            x += s->x[j];
            y += s->y[j];
        }
        s->x[i] = x / (double)(to - from);
        s->y[i] = y / (double)(to - from);
    }
    s->count = POINTS;
}

/* 1, 2 or 5 times a power of ten that cuts `span` into about `parts`. */
static double tick(double span, int parts)
{
    double raw = span / parts, power = pow(10, floor(log10(raw))), f = raw / power;
    return power * (f < 1.5 ? 1 : f < 3.5 ? 2 : f < 7.5 ? 5 : 10);
}

/* Of a logarithmic panel y0 and y1 are logarithms. */
typedef struct frame {
    double x0, x1, y0, y1;
    int top;
    bool log;
} frame;

static double px(const frame *f, double x)
{
    return LEFT + (x - f->x0) / (f->x1 - f->x0) * (WIDTH - LEFT - RIGHT);
}

static double py(const frame *f, double y)
{
    double at = f->log ? y > 0 ? log10(y) : f->y0 : y;
    at = IC_MAX(f->y0, IC_MIN(f->y1, at));
    return f->top + HEIGHT - BOTTOM - (at - f->y0) / (f->y1 - f->y0) * (HEIGHT - TOP - BOTTOM);
}

static frame frame_of(const panel *p, int top, double last)
{
    frame f = {.x0 = 0, .x1 = IC_MAX(last, 1.0), .top = top, .log = p->scale == LOG};
    double least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < p->count; i++)
        for (size_t j = 0; j < p->s[i].count; j++) {
            double y = p->s[i].y[j];
            if (f.log && y <= 0)
                continue;
            y = f.log ? log10(y) : y;
            least = IC_MIN(least, y);
            most = IC_MAX(most, y);
        }
    if (p->scale == SHARE || !(least <= most))
        least = 0, most = 1;
    if (p->scale == FROM_ZERO)
        least = IC_MIN(least, 0.0);
    if (!(most > least))
        most = least + 1;
    double t = f.log ? 0.25 : tick(most - least, 4);
    f.y0 = floor(least / t + 1e-9) * t;
    f.y1 = ceil(most / t - 1e-9) * t;
    return f;
}

static int draw_tick(ic_buffer *b, const frame *f, double y)
{
    return ic_buffer_addf(b,
                          "<line class=\"g\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                          "<text class=\"n\" x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                          LEFT, WIDTH - RIGHT, py(f, y), py(f, y), LEFT - 6, py(f, y) + 4, y);
}

/* Multiples of a round number; of a logarithmic axis 1, 2, 5 times powers of ten. */
static int draw_ticks(ic_buffer *b, const frame *f)
{
    int rc = ICAE_OK;
    double t = tick(f->y1 - f->y0, 4);
    if (!f->log) {
        for (int i = 0; f->y0 + i * t <= f->y1 + t * 1e-6; i++)
            IC_TRY(draw_tick(b, f, f->y0 + i * t));
        return ICAE_OK;
    }
    for (int e = (int)floor(f->y0); e <= (int)ceil(f->y1); e++)
        for (int i = 0; i < 3; i++) {
            double y = pow(10, e) * (i == 0 ? 1 : i == 1 ? 2 : 5);
            if (log10(y) >= f->y0 - 1e-9 && log10(y) <= f->y1 + 1e-9)
                IC_TRY(draw_tick(b, f, y));
        }
done:
    return rc;
}

static int draw_axes(ic_buffer *b, const panel *p, const frame *f)
{
    int rc = ICAE_OK;
    double tx = tick(f->x1 - f->x0, 6);
    IC_TRY(ic_buffer_addf(b, "<text class=\"t\" x=\"%d\" y=\"%d\">%s</text>\n", LEFT, f->top + 20,
                          p->title));
    IC_TRY(draw_ticks(b, f));
    for (int i = 0; i * tx <= f->x1 * (1 + 1e-9); i++)
        IC_TRY(ic_buffer_addf(
            b, "<text class=\"n\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.6g</text>\n",
            px(f, i * tx), f->top + HEIGHT - BOTTOM + 16, i * tx));
done:
    return rc;
}

/* Training and held-out curves of one thing have one colour. */
static size_t colour(const panel *p, size_t i)
{
    size_t n = 0;
    for (size_t j = 0; j < i; j++) {
        if (strcmp(p->s[j].key, p->s[i].key) == 0)
            return colour(p, j);
        bool first = true;
        for (size_t k = 0; k < j; k++)
            first &= strcmp(p->s[k].key, p->s[j].key) != 0;
        n += first;
    }
    return n % COLOURS;
}

static int draw_series(ic_buffer *b, const panel *p, const frame *f, size_t i)
{
    int rc = ICAE_OK;
    const series *s = &p->s[i];
    size_t c = colour(p, i);
    const char *dash = s->held_out && p->dashed ? " stroke-dasharray=\"5 3\"" : "";
    double y = f->top + TOP + 8 + 17.0 * (double)i;
    IC_TRY(ic_buffer_addf(b, "<polyline class=\"c%zu\"%s points=\"", c, dash));
    for (size_t j = 0; j < s->count; j++)
        IC_TRY(ic_buffer_addf(b, "%s%.1f,%.1f", j ? " " : "", px(f, s->x[j]), py(f, s->y[j])));
    IC_TRY(ic_buffer_addf(b, "\"/>\n"));
    for (size_t j = 0; j < s->count && s->held_out && s->count <= 60; j++)
        IC_TRY(ic_buffer_addf(b, "<circle class=\"d%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\"/>", c,
                              px(f, s->x[j]), py(f, s->y[j])));
    IC_TRY(ic_buffer_addf(b,
                          "<line class=\"c%zu\"%s x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                          "<text class=\"n\" x=\"%d\" y=\"%.1f\">%s</text>\n",
                          c, dash, WIDTH - RIGHT + 8, WIDTH - RIGHT + 26, y, y, WIDTH - RIGHT + 30,
                          y + 4, s->label));
done:
    return rc;
}

static const char style[] =
    "<style>svg{background:#fff;font:12px system-ui,sans-serif}.t{font-size:14px;font-weight:600;"
    "fill:#222}.n{fill:#555}.g{stroke:#ddd}polyline,[class^=c]{fill:none;stroke-width:1.6}"
    ".c0{stroke:#1764ab}.c1{stroke:#d1602a}.c2{stroke:#2a8a4a}.c3{stroke:#7a4fb5}.c4{stroke:#"
    "b03a63}"
    ".c5{stroke:#8a6d1f}.c6{stroke:#3a8fa8}.c7{stroke:#777}.d0{fill:#1764ab}.d1{fill:#d1602a}"
    ".d2{fill:#2a8a4a}.d3{fill:#7a4fb5}.d4{fill:#b03a63}.d5{fill:#8a6d1f}.d6{fill:#3a8fa8}.d7{fill:"
    "#777}"
    "@media(prefers-color-scheme:dark){svg{background:#16181c}.t{fill:#eee}.n{fill:#aaa}.g{stroke:#"
    "333}"
    ".c0{stroke:#6cb0f0}.c1{stroke:#f29a6b}.c2{stroke:#6fcf8d}.c3{stroke:#b79af0}.d0{fill:#6cb0f0}"
    ".d1{fill:#f29a6b}.d2{fill:#6fcf8d}.d3{fill:#b79af0}}</style>\n";

static int draw(ic_buffer *b, panel panels[PANELS], double last)
{
    int rc = ICAE_OK, shown = 0, at = 0;
    for (int i = 0; i < PANELS; i++)
        shown += panels[i].count > 0;
    IC_TRY(ic_buffer_addf(b,
                          "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
                          "viewBox=\"0 0 %d %d\">\n<title>Training</title>\n%s",
                          WIDTH, shown * HEIGHT, WIDTH, shown * HEIGHT, style));
    for (int i = 0; i < PANELS; i++) {
        panel *p = &panels[i];
        if (!p->count)
            continue;
        for (size_t s = 0; s < p->count; s++)
            thin(&p->s[s]);
        frame f = frame_of(p, HEIGHT * at++, last);
        IC_TRY(draw_axes(b, p, &f));
        for (size_t s = 0; s < p->count; s++)
            IC_TRY(draw_series(b, p, &f, s));
    }
    IC_TRY(ic_buffer_addf(b, "</svg>\n"));
done:
    return rc;
}

int icae_train_plot(const char *run, const char *svg)
{
    int rc = ICAE_OK;
    panel panels[PANELS];
    ic_buffer b = {0};
    ic_file f = {.fd = -1};
    double last = 0;
    memcpy(panels, panels_of_a_run, sizeof panels);
    char *path = ic_path_is_folder(run) ? ic_path_join(run, "metrics.jsonl") : ic_strdup(run);
    if (!path)
        return ICAE_ENOMEM;
    IC_TRY(read_metrics(panels, path));
    for (int i = 0; i < PANELS; i++)
        for (size_t s = 0; s < panels[i].count; s++)
            last = IC_MAX(last, panels[i].s[s].x[panels[i].s[s].count - 1]);
    if (last <= 0) {
        rc = ic_fail(ICAE_EFORMAT, "%.400s: no step is recorded there", path);
        goto done;
    }
    IC_TRY(draw(&b, panels, last));
    IC_TRY(ic_file_create(&f, svg));
    IC_TRY(ic_file_write(&f, b.data, b.size));
    rc = ic_file_commit(&f);
done:
    ic_file_abandon(&f);
    ic_buffer_free(&b);
    for (int i = 0; i < PANELS; i++) {
        for (size_t s = 0; s < panels[i].count; s++) {
            ic_free(panels[i].s[s].x);
            ic_free(panels[i].s[s].y);
        }
        ic_free(panels[i].s);
    }
    ic_free(path);
    return rc;
}
