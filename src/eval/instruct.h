/*
 * instruct.h - questions about a context: what the decoder may read of it, and the records of its answers.
 */
#ifndef IC_INSTRUCT_H
#define IC_INSTRUCT_H

#include "eval/eval.h"

/* IC_SUMMARY_TEXT: nothing is asked, the summary itself is written. */
typedef enum {
    IC_FROM_SLOTS,
    IC_FROM_FULL,
    IC_FROM_NONE,
    IC_FROM_SUMMARY,
    IC_SUMMARY_TEXT
} ic_source;

typedef struct ic_reading {
    ic_source source;
    float rate; /* of slots; else 0 */
} ic_reading;

enum { IC_READINGS = IC_RATES + 3 };

/* Slots at every rate, then full, none, summary. */
size_t ic_readings_of(ic_reading out[IC_READINGS], const ic_eval *e, const ic_system *s);
/* The record of an answer; NULL: there is none. */
const ic_json *ic_answer(const ic_eval *e, const ic_system *s, ic_reading r, size_t question);

/* answers.c: the section of the report. chosen [count] questions, of `asked`. */
int ic_report_answers(ic_eval *e, const size_t *chosen, size_t count, uint64_t asked);

#endif
