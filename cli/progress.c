/*
 * progress.c - how far long work is: a bar on a terminal, a plain line now and then elsewhere.
 *
 * Nothing is shown of work that is over in a moment.
 */
#include "cli.h"

#include <inttypes.h>
#include <time.h>
#include <unistd.h>

#define FIRST 0.4  /* seconds before a bar appears */
#define AGAIN 0.1  /* between two paintings of it */
#define PLAIN 15.0 /* between two plain lines */

enum { WIDTH = 28 };

static bool painted; /* a bar stands on the terminal */

double cli_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void cli_progress_clear(void)
{
    if (painted)
        fputs("\r\033[K", stderr);
    painted = false;
}

void cli_progress_paint(const char *line)
{
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    painted = true;
}

static void format_left(char text[32], double seconds)
{
    if (seconds < 60)
        snprintf(text, 32, "%.0f s left", seconds);
    else if (seconds < 3600)
        snprintf(text, 32, "%d:%02d min left", (int)seconds / 60, (int)seconds % 60);
    else
        snprintf(text, 32, "%d:%02d h left", (int)(seconds / 3600), (int)(seconds / 60) % 60);
}

static void paint(const cli_progress *p, const char *unit, uint64_t done, uint64_t total,
                  double rate)
{
    char bar[WIDTH + 1], left[32];
    uint64_t full = done * WIDTH / total;
    for (uint64_t i = 0; i < WIDTH; i++)
        bar[i] = i < full ? '#' : '.';
    bar[WIDTH] = 0;
    format_left(left, (double)(total - done) / rate);
    fprintf(stderr, "\r%s [%s] %" PRIu64 "/%" PRIu64 " %s  %.0f/s  %s\033[K", p->label, bar, done,
            total, unit, rate, left);
    fflush(stderr);
    painted = true;
}

static void step(cli_progress *p, const char *unit, uint64_t done, uint64_t total)
{
    double now = cli_seconds();
    if (p->start == 0 || done < p->last) /* the next stretch of work */
        p->start = p->painted = now;
    p->last = done;
    if (done >= total) {
        cli_progress_clear();
        p->start = 0;
        return;
    }
    if (done == 0 || now - p->start < FIRST)
        return;
    double rate = (double)done / (now - p->start);
    if (cli_is_terminal(stderr)) {
        if (now - p->painted < AGAIN)
            return;
        paint(p, unit, done, total, rate);
    } else {
        if (now - p->painted < PLAIN)
            return;
        char left[32];
        format_left(left, (double)(total - done) / rate);
        fprintf(stderr, "%s: %" PRIu64 " of %" PRIu64 " %s, %.0f/s, %s\n", p->label, done, total,
                unit, rate, left);
    }
    p->painted = now;
}

int cli_progress_step(void *progress, const char *unit, uint64_t done, uint64_t total)
{
    cli_progress *p = progress;
    if (!p->quiet && total)
        step(p, unit, done, total);
    return cli_interrupted != 0;
}
