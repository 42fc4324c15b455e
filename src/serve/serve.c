/*
 * serve.c - icae_serve: checks what is asked for, starts the parts, tends them, drains and ends.
 */
#include "serve/serve.h"

#include <netdb.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* ---- what is asked for ------------------------------------------------------------------------ */

static void fill_in(icae_serve_options *o)
{
    if (!o->host)
        o->host = "127.0.0.1";
    if (!o->sequences)
        o->sequences = 32;
    if (!o->queue)
        o->queue = 64;
    if (!o->max_n)
        o->max_n = 8;
    if (!o->max_tokens)
        o->max_tokens = 4096;
    if (!o->max_body)
        o->max_body = 16 << 20;
    if (!o->max_connections)
        o->max_connections = 2048;
    if (!o->prefix_bytes)
        o->prefix_bytes = 256 << 20;
    if (!(o->timeout > 0))
        o->timeout = 60;
    if (!(o->drain > 0))
        o->drain = 30;
    if (!(o->gc > 0))
        o->gc = 300;
}

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
    return false;
}

/* Beyond this machine only those with a token may come in. */
static int check_host(const icae_serve_options *o)
{
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    int wrong = getaddrinfo(o->host, NULL, &hints, &found);
    if (wrong)
        return ic_fail(ICAE_EINVAL, "host %s: %s", o->host, gai_strerror(wrong));
    bool loopback = true;
    for (struct addrinfo *a = found; a; a = a->ai_next)
        loopback &= is_loopback(a->ai_addr);
    freeaddrinfo(found);
    if (loopback || o->tokens || o->insecure)
        return ICAE_OK;
    return ic_fail(ICAE_EINVAL,
                   "%s can be reached from other machines, and nobody would need a token: give "
                   "a token file, or say that this is meant (insecure)",
                   o->host);
}

static int check(const icae_session *session, const icae_serve_options *o)
{
    if (!session->model->tokenizer)
        return ic_fail(ICAE_ENOTFOUND, "%s: no tokenizer.json, so text cannot be served",
                       session->model->path);
    if (!o->cert != !o->key)
        return ic_fail(ICAE_EINVAL, "TLS needs both a certificate and its key");
    if (o->port < 0 || o->port > 65535 || o->sequences < 0 || o->sequences > 1024 || o->queue < 0 ||
        o->queue > 4096 || o->max_n < 0 || o->max_n > 128 || o->max_connections < 0 ||
        o->max_per_ip < 0)
        return ic_fail(ICAE_EINVAL,
                       "a limit of the server is out of range (port up to 65535, sequences "
                       "up to 1024, queue up to 4096, n up to 128)");
    if (o->max_body > (uint64_t)1 << 30)
        return ic_fail(ICAE_EINVAL, "bodies may have up to 1 GiB");
    return ICAE_OK;
}

/* The model's name: as told, or the last part of its path. */
static void name_model(ic_server *s)
{
    const char *name = s->options.name, *path = s->session->model->path, *end = path + strlen(path);
    if (name) {
        snprintf(s->name, sizeof s->name, "%s", name);
        return;
    }
    while (end > path + 1 && end[-1] == '/')
        end--;
    const char *start = end;
    while (start > path && start[-1] != '/')
        start--;
    snprintf(s->name, sizeof s->name, "%.*s", (int)(end - start), start);
    if (strcmp(s->name, "model") == 0) /* the bundled one lies in a folder of that name */
        snprintf(s->name, sizeof s->name, "icae");
}

/* ---- the store ---------------------------------------------------------------------------------- */

/* A thread of its own: a database that is slow or gone must not keep others waiting. Only what has
 * expired goes; a store that is over its quota refuses, as docs/serving.md says, and evicts nothing. */
static void *keep_store(void *argument)
{
    ic_server *s = argument;
    pthread_mutex_lock(&s->lock);
    while (!s->over) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += (time_t)ceil(s->options.gc);
        while (!s->over && pthread_cond_timedwait(&s->ended, &s->lock, &until) == 0)
            ;
        if (s->over)
            break;
        pthread_mutex_unlock(&s->lock);
        icae_gc_result removed = {0};
        int rc = icae_store_gc(&removed, s->store, UINT64_MAX);
        if (rc < 0 || removed.expired) {
            ic_log_line l = ic_log_begin(s->log, "gc");
            ic_log_count(&l, "expired", removed.expired);
            ic_log_count(&l, "bytes", removed.bytes);
            ic_log_text(&l, "error", rc < 0 ? icae_error_message() : NULL);
            ic_log_end(&l);
        }
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int start_keeper(ic_server *s)
{
    char host[48] = "?";
    gethostname(host, sizeof host - 1);
    snprintf(s->holder, sizeof s->holder, "%s:%ld", host, (long)getpid());
    if (!s->store)
        return ICAE_OK;
    if (pthread_create(&s->keeper, NULL, keep_store, s) != 0)
        return ic_fail(ICAE_ENOMEM, "cannot start a thread");
    s->keeps = true;
    return ICAE_OK;
}

static void end_keeper(ic_server *s)
{
    if (!s->keeps)
        return;
    pthread_mutex_lock(&s->lock);
    s->over = true;
    pthread_cond_signal(&s->ended);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->keeper, NULL);
}

/* ---- start, tend, end ------------------------------------------------------------------------- */

static int start(ic_server *s)
{
    int rc = ICAE_OK;
    const icae_serve_options *o = &s->options;
    if (o->tokens)
        IC_TRY(ic_tokens_read(&s->tokens, o->tokens));
    IC_TRY(ic_log_open(&s->log, o->log));
    IC_TRY(ic_page_policy(&s->page_policy));
    IC_TRY(ic_worker_start(
        &s->worker, s->session,
        &(ic_worker_options){.sequences = o->sequences, .rows = 256, .prefixes = o->prefix_bytes}));
    IC_TRY(
        ic_http_start(&s->http, &(ic_http_options){
                                    .host = o->host,
                                    .port = o->port,
                                    .cert = o->cert,
                                    .key = o->key,
                                    .body = (size_t)o->max_body,
                                    .header = 32 << 10,
                                    .connections = o->max_connections,
                                    .per_ip = o->max_per_ip,
                                    /* those that compute, and some that need not wait for them */
                                    .threads = o->sequences + o->queue + 16,
                                    .timeout = o->timeout,
                                    .handle = ic_serve_route,
                                    .too_large = ic_serve_too_large,
                                    .user = s,
                                }));
    rc = start_keeper(s);
done:
    return rc;
}

static void tell_ready(const ic_server *s)
{
    const icae_serve_options *o = &s->options;
    char url[300];
    bool six = strchr(o->host, ':') != NULL;
    snprintf(url, sizeof url, "http%s://%s%.200s%s:%d", o->cert ? "s" : "", six ? "[" : "", o->host,
             six ? "]" : "", ic_http_port(s->http));
    ic_log_line l = ic_log_begin(s->log, "start");
    ic_log_text(&l, "url", url);
    ic_log_text(&l, "model", s->name);
    ic_log_text(&l, "base", s->session->model->identity);
    ic_log_text(&l, "adapter", s->session->adapter ? s->session->adapter->identity : NULL);
    ic_log_end(&l);
    if (o->ready)
        o->ready(o->user, url);
}

/* What has been begun is ended, for so long; then it is cut. */
static void drain(ic_server *s)
{
    double end = ic_seconds() + s->options.drain;
    atomic_store(&s->draining, true);
    ic_http_refuse(s->http);
    while (ic_http_active(s->http) > 0 && ic_seconds() < end) {
        ic_http_tend(s->http);
        pause_ms(20);
    }
    int cut = ic_http_active(s->http);
    ic_worker_halt(s->worker);
    for (end = ic_seconds() + 1; cut && ic_http_active(s->http) > 0 && ic_seconds() < end;)
        pause_ms(10); /* the last errors go out */
    ic_log_line l = ic_log_begin(s->log, "stop");
    ic_log_count(&l, "cut", (uint64_t)cut);
    ic_log_end(&l);
}

static void end_server(ic_server *s)
{
    if (s->worker)
        ic_worker_halt(s->worker);
    ic_http_stop(s->http); /* its handlers may still wait for the worker */
    ic_worker_stop(s->worker);
    end_keeper(s);
    ic_log_close(s->log);
    ic_tokens_free(s->tokens);
    ic_free(s->page_policy);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->ended);
    ic_free(s);
}

int icae_serve(icae_session *session, const icae_serve_options *options)
{
    int rc = ICAE_OK;
    ic_server *s = ic_alloc(1, sizeof *s);
    if (!s)
        return ICAE_ENOMEM;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->ended, NULL);
    s->session = session;
    icae_progress_fn progress = session->progress;
    session->progress = NULL; /* many requests at a time have no one progress */
    if (options)
        s->options = *options;
    s->store = s->options.store;
    s->started = (int64_t)time(NULL);
    IC_TRY(check(session, &s->options));
    fill_in(&s->options);
    IC_TRY(check_host(&s->options));
    name_model(s);
    IC_TRY(start(s));
    tell_ready(s);
    while (!s->options.stop || !s->options.stop(s->options.user)) {
        ic_http_tend(s->http);
        pause_ms(50);
    }
    drain(s);
done:
    end_server(s);
    session->progress = progress;
    return rc;
}
