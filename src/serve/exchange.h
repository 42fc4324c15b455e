/* exchange.h - what http.c and exchange.c share; everyone else sees http.h only. */
#ifndef IC_SERVE_EXCHANGE_H
#define IC_SERVE_EXCHANGE_H

#include "serve/crew.h"
#include "serve/http.h"

#include <pthread.h>

enum { IC_EXCHANGE_QUERY = 16, IC_EXCHANGE_SET = 8, IC_EXCHANGE_HEADERS = 6 };
extern const char *const ic_exchange_headers[IC_EXCHANGE_HEADERS]; /* that are kept */

typedef struct ic_pair {
    char *name, *value;
} ic_pair;

struct ic_exchange {
    ic_crew_job job;
    ic_http *http;
    ic_exchange *next, **link;    /* of all */
    void *connection;             /* libmicrohttpd's; NULL once it is gone */
    void (*wake)(ic_exchange *x); /* under the lock: the polling thread looks at it again */
    int fd, references;           /* references under `lock` */
    char id[24], peer[64];
    /* the request */
    char *method, *path;
    ic_pair query[IC_EXCHANGE_QUERY];
    char *header[IC_EXCHANGE_HEADERS];
    int queries;
    ic_buffer body;
    double deadline; /* for the rest of the request */
    bool arrived, too_large, far_too_large, handed;
    /* the response; all below under `lock` */
    pthread_mutex_t lock;
    ic_pair set[IC_EXCHANGE_SET];
    int sets, status;
    char type[64];
    ic_buffer out;
    size_t sent;
    uint64_t bytes;
    bool stream, ended, broken, suspended, queued;
    atomic_bool gone;
};

void ic_exchange_release(ic_exchange *x); /* one reference less; the last frees */

#endif
