/* crew.h - threads that do jobs as they come; see crew.c. */
#ifndef IC_SERVE_CREW_H
#define IC_SERVE_CREW_H

#include "base/base.h"

typedef struct ic_crew_job ic_crew_job; /* lies in what the job is about */
struct ic_crew_job {
    void (*run)(ic_crew_job *job);
    ic_crew_job *next;
};

typedef struct ic_crew ic_crew;
int ic_crew_new(ic_crew **out, int threads); /* at most; made as they are needed */
void ic_crew_add(ic_crew *c, ic_crew_job *job);
void ic_crew_free(ic_crew *c); /* when all jobs that were added are done */

#endif
