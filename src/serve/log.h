/* log.h - log lines as JSON objects, one a line; see log.c. */
#ifndef IC_SERVE_LOG_H
#define IC_SERVE_LOG_H

#include "base/base.h"

typedef struct ic_log ic_log;

/* "-": standard error; NULL: nowhere; else a file that is appended to. */
int ic_log_open(ic_log **out, const char *path);
void ic_log_close(ic_log *log);

/* A line in the making. Members with NULL text are left out. What does not fit in memory is lost. */
typedef struct ic_log_line {
    ic_log *log;
    ic_buffer text;
} ic_log_line;

ic_log_line ic_log_begin(ic_log *log, const char *event);
void ic_log_text(ic_log_line *l, const char *name, const char *text);
void ic_log_count(ic_log_line *l, const char *name, uint64_t value);
void ic_log_real(ic_log_line *l, const char *name, double value);
void ic_log_end(ic_log_line *l);

#endif
