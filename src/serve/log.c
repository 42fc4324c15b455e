/*
 * log.c - log lines as JSON objects, one a line: {"time":"…","event":"request",…}.
 *
 * A line is written at once by one write, so that lines of several threads and processes stay whole.
 */
#include "serve/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct ic_log {
    int fd;
};

int ic_log_open(ic_log **out, const char *path)
{
    ic_log *log = ic_alloc(1, sizeof *log);
    if (!log)
        return ICAE_ENOMEM;
    log->fd = -1;
    if (path && strcmp(path, "-") == 0)
        log->fd = STDERR_FILENO;
    else if (path)
        log->fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (path && log->fd < 0) {
        ic_free(log);
        return ic_fail(ICAE_EIO, "%s: %s", path, strerror(errno));
    }
    *out = log;
    return ICAE_OK;
}

void ic_log_close(ic_log *log)
{
    if (!log)
        return;
    if (log->fd > STDERR_FILENO)
        close(log->fd);
    ic_free(log);
}

ic_log_line ic_log_begin(ic_log *log, const char *event)
{
    ic_log_line l = {.log = log};
    struct timespec now;
    struct tm utc;
    char when[32];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    ic_buffer_addf(&l.text, "{\"time\":\"%s.%03ldZ\",\"event\":\"%s\"", when, now.tv_nsec / 1000000,
                   event);
    return l;
}

void ic_log_text(ic_log_line *l, const char *name, const char *text)
{
    if (!text)
        return;
    ic_buffer_addf(&l->text, ",\"%s\":", name);
    ic_json_quote(&l->text, text, strlen(text));
}

void ic_log_count(ic_log_line *l, const char *name, uint64_t value)
{
    ic_buffer_addf(&l->text, ",\"%s\":%" PRIu64, name, value);
}

void ic_log_real(ic_log_line *l, const char *name, double value)
{
    ic_buffer_addf(&l->text, ",\"%s\":%.6f", name, value);
}

void ic_log_end(ic_log_line *l)
{
    if (ic_buffer_addf(&l->text, "}\n") == ICAE_OK && l->log->fd >= 0) {
        ssize_t written = write(l->log->fd, l->text.data, l->text.size);
        (void)written; /* there is nowhere to tell it */
    }
    ic_buffer_free(&l->text);
}
