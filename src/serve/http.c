/*
 * http.c - HTTP/1.1 by libmicrohttpd, the only file that knows it; see http.h.
 *
 * One thread polls all connections. A request that has come whole is suspended there and given to the
 * crew; when its handler replies or writes, it is resumed. An exchange belongs to up to three at a time
 * (the connection, its handler, its response), and goes with the last of them.
 */
#include "serve/exchange.h"

#ifndef ICAE_HAVE_MICROHTTPD

int ic_http_start(ic_http **out, const ic_http_options *options)
{
    (void)out, (void)options;
    return ic_fail(ICAE_EUNSUPPORTED, "this build cannot serve: it lacks libmicrohttpd");
}
int ic_http_port(const ic_http *h)
{
    (void)h;
    return 0;
}
void ic_http_tend(ic_http *h)
{
    (void)h;
}
void ic_http_refuse(ic_http *h)
{
    (void)h;
}
int ic_http_active(ic_http *h)
{
    (void)h;
    return 0;
}
void ic_http_stop(ic_http *h)
{
    (void)h;
}

#else

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK = 16 << 10 };

/* A connection that has not sent the first line of its first request. */
typedef struct silent silent;
struct silent {
    int fd;
    double since;
    bool spoke;
    silent *next, **link;
};

struct ic_http {
    ic_http_options options;
    struct MHD_Daemon *daemon;
    ic_crew *crew;
    int socket, port;
    char *cert, *key;
    pthread_mutex_t lock; /* of the lists */
    ic_exchange *exchanges;
    silent *silents;
    atomic_int active;
    atomic_ullong made;
    atomic_bool refusing;
};

/* ---- exchanges -------------------------------------------------------------------------------- */

/* Under the lock: lets the polling thread look at the connection again. */
static void wake(ic_exchange *x)
{
    if (x->suspended && x->connection) {
        x->suspended = false;
        MHD_resume_connection(x->connection);
    }
}

static void *begin_exchange(void *user, const char *uri, struct MHD_Connection *connection)
{
    ic_http *h = user;
    (void)uri;
    const union MHD_ConnectionInfo *fd =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    const union MHD_ConnectionInfo *peer =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const union MHD_ConnectionInfo *mine =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    ic_exchange *x = ic_alloc(1, sizeof *x);
    if (!x || !fd)
        return x;
    x->http = h;
    x->connection = connection;
    x->wake = wake;
    x->fd = fd->connect_fd;
    x->references = 1;
    x->deadline = ic_seconds() + h->options.timeout;
    pthread_mutex_init(&x->lock, NULL);
    snprintf(x->id, sizeof x->id, "req_%012llx", (unsigned long long)atomic_fetch_add(&h->made, 1));
    snprintf(x->peer, sizeof x->peer, "?");
    if (peer && peer->client_addr) {
        socklen_t size = peer->client_addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                                  : sizeof(struct sockaddr_in);
        getnameinfo(peer->client_addr, size, x->peer, sizeof x->peer, NULL, 0, NI_NUMERICHOST);
    }
    pthread_mutex_lock(&h->lock);
    if (mine && mine->socket_context)
        ((silent *)mine->socket_context)->spoke = true;
    x->link = &h->exchanges;
    x->next = h->exchanges;
    if (x->next)
        x->next->link = &x->next;
    h->exchanges = x;
    pthread_mutex_unlock(&h->lock);
    return x;
}

static void end_exchange(void *user, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode why)
{
    ic_http *h = user;
    ic_exchange *x = *context;
    (void)connection;
    if (!x)
        return;
    *context = NULL;
    pthread_mutex_lock(&h->lock);
    *x->link = x->next;
    if (x->next)
        x->next->link = x->link;
    pthread_mutex_unlock(&h->lock);
    pthread_mutex_lock(&x->lock);
    x->connection = NULL;
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK)
        atomic_store(&x->gone, true);
    pthread_mutex_unlock(&x->lock);
    if (x->handed)
        atomic_fetch_sub(&h->active, 1);
    ic_exchange_release(x);
}

/* Connections are known from their start on, so that those that say nothing can be cut. */
static void notice_connection(void *user, struct MHD_Connection *connection, void **context,
                              enum MHD_ConnectionNotificationCode what)
{
    ic_http *h = user;
    silent *s = *context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        int on = 1;
        const union MHD_ConnectionInfo *fd =
            MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        if (!fd || !(s = ic_alloc(1, sizeof *s)))
            return;
        setsockopt(fd->connect_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        s->fd = fd->connect_fd;
        s->since = ic_seconds();
        pthread_mutex_lock(&h->lock);
        s->next = h->silents;
        s->link = &h->silents;
        if (s->next)
            s->next->link = &s->next;
        h->silents = s;
        pthread_mutex_unlock(&h->lock);
        *context = s;
    } else if (s) {
        pthread_mutex_lock(&h->lock);
        *s->link = s->next;
        if (s->next)
            s->next->link = s->link;
        pthread_mutex_unlock(&h->lock);
        ic_free(s);
        *context = NULL;
    }
}

/* ---- receiving -------------------------------------------------------------------------------- */

static enum MHD_Result keep_query(void *user, enum MHD_ValueKind kind, const char *name,
                                  const char *value)
{
    ic_exchange *x = user;
    (void)kind;
    if (x->queries == IC_EXCHANGE_QUERY)
        return MHD_NO;
    ic_pair *p = &x->query[x->queries++];
    p->name = ic_strdup(name);
    p->value = ic_strdup(value ? value : "");
    return p->name && p->value ? MHD_YES : MHD_NO;
}

/* The connection's own strings go when the client does: the handler gets copies. */
static bool keep_request(ic_exchange *x, const char *url, const char *method)
{
    x->method = ic_strdup(strcmp(method, "HEAD") ? method : "GET");
    x->path = ic_strdup(url);
    MHD_get_connection_values(x->connection, MHD_GET_ARGUMENT_KIND, keep_query, x);
    for (int i = 0; i < IC_EXCHANGE_HEADERS; i++) {
        const char *value =
            MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, ic_exchange_headers[i]);
        if (value && !(x->header[i] = ic_strdup(value)))
            return false;
    }
    const char *length =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "Content-Length");
    uint64_t bytes = length ? strtoull(length, NULL, 10) : 0; /* ULLONG_MAX if it is more */
    x->too_large = bytes > x->http->options.body;
    /* A little too much is received, and forgotten: most clients hear the answer only then. */
    x->far_too_large = bytes / 4 > x->http->options.body;
    return x->method && x->path;
}

static void run_handler(ic_crew_job *job)
{
    ic_exchange *x = (ic_exchange *)(void *)job;
    x->http->options.handle(x->http->options.user, x);
    ic_exchange_release(x);
}

static enum MHD_Result respond(ic_exchange *x);

static enum MHD_Result receive(void *user, struct MHD_Connection *connection, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **context)
{
    ic_http *h = user;
    ic_exchange *x = *context;
    (void)connection, (void)version;
    if (!x)
        return MHD_NO;
    if (!x->arrived) {
        x->arrived = true;
        x->deadline = ic_seconds() + h->options.timeout;
        if (!keep_request(x, url, method))
            return MHD_NO;
        if (!x->far_too_large)
            return MHD_YES;
        h->options.too_large(h->options.user, x); /* before the body is sent at all */
        return respond(x);
    }
    if (*size) {
        x->too_large |= *size > h->options.body - x->body.size;
        if (!x->too_large && ic_buffer_add(&x->body, data, *size) < 0)
            return MHD_NO;
        /* the time for a body goes with its size */
        x->deadline += h->options.timeout * (double)*size / (64 << 10);
        *size = 0;
        return MHD_YES;
    }
    if (x->handed)
        return respond(x);
    if (x->too_large) {
        h->options.too_large(h->options.user, x);
        return respond(x);
    }
    pthread_mutex_lock(&x->lock);
    x->handed = true;
    x->references++;
    x->suspended = true;
    x->job.run = run_handler;
    atomic_fetch_add(&h->active, 1);
    MHD_suspend_connection(x->connection);
    ic_crew_add(h->crew, &x->job);
    pthread_mutex_unlock(&x->lock);
    return MHD_YES;
}

/* ---- responding ------------------------------------------------------------------------------- */

static ssize_t give(void *user, uint64_t at, char *data, size_t room)
{
    ic_exchange *x = user;
    ssize_t n = 0;
    (void)at;
    pthread_mutex_lock(&x->lock);
    size_t left = x->out.size - x->sent;
    if (left) {
        n = (ssize_t)IC_MIN(left, room);
        memcpy(data, x->out.data + x->sent, (size_t)n);
        x->sent += (size_t)n;
        if (x->sent == x->out.size && x->stream)
            x->sent = x->out.size = 0;
    } else if (x->ended || atomic_load(&x->gone)) {
        bool whole = x->ended && !x->broken && !atomic_load(&x->gone);
        n = whole ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (x->connection) {
        x->suspended = true;
        MHD_suspend_connection(x->connection);
    }
    pthread_mutex_unlock(&x->lock);
    return n;
}

static void forget_response(void *user)
{
    ic_exchange_release(user);
}

/* Hands the response to the connection, if there is one already. */
static enum MHD_Result respond(ic_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool ready = x->status && !x->queued && !atomic_load(&x->gone);
    x->queued = true;
    x->references += ready;
    uint64_t size = x->stream ? MHD_SIZE_UNKNOWN : x->out.size;
    pthread_mutex_unlock(&x->lock);
    if (!ready)
        return MHD_NO;
    struct MHD_Response *r =
        MHD_create_response_from_callback(size, BLOCK, give, x, forget_response);
    if (!r) {
        ic_exchange_release(x);
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", x->type);
    MHD_add_response_header(r, "X-Request-Id", x->id);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Cache-Control", "no-store");
    if (atomic_load(&x->http->refusing))
        MHD_add_response_header(r, "Connection", "close");
    for (int i = 0; i < x->sets; i++)
        MHD_add_response_header(r, x->set[i].name, x->set[i].value);
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)x->status, r);
    MHD_destroy_response(r);
    return result;
}

/* ---- clients that are gone or slow ------------------------------------------------------------ */

/* A suspended connection is not polled: whether its client still listens is asked here. */
static bool has_left(const ic_exchange *x)
{
    struct pollfd p = {.fd = x->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

void ic_http_tend(ic_http *h)
{
    double now = ic_seconds();
    pthread_mutex_lock(&h->lock);
    for (silent *s = h->silents; s; s = s->next)
        if (!s->spoke && now - s->since > h->options.timeout)
            shutdown(s->fd, SHUT_RDWR);
    for (ic_exchange *x = h->exchanges; x; x = x->next) {
        if (!x->handed) {
            if (now > x->deadline)
                shutdown(x->fd, SHUT_RDWR);
        } else if (!atomic_load(&x->gone) && has_left(x)) {
            pthread_mutex_lock(&x->lock);
            atomic_store(&x->gone, true);
            wake(x);
            pthread_mutex_unlock(&x->lock);
        }
    }
    pthread_mutex_unlock(&h->lock);
}

/* ---- start and stop --------------------------------------------------------------------------- */

static int open_socket(ic_http *h)
{
    const ic_http_options *o = &h->options;
    struct addrinfo *found = NULL, hints = {.ai_family = AF_UNSPEC,
                                            .ai_socktype = SOCK_STREAM,
                                            .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    char port[16];
    snprintf(port, sizeof port, "%d", o->port);
    int wrong = getaddrinfo(o->host, port, &hints, &found);
    if (wrong)
        return ic_fail(ICAE_EINVAL, "host %s: %s", o->host, gai_strerror(wrong));
    int why = 0;
    for (struct addrinfo *a = found; a && h->socket < 0; a = a->ai_next) {
        int on = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            why = errno;
            continue;
        }
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, 1024) == 0) {
            h->socket = fd;
        } else {
            why = errno;
            close(fd);
        }
    }
    freeaddrinfo(found);
    if (h->socket < 0)
        return ic_fail(ICAE_EIO, "cannot listen on %s port %d: %s", o->host, o->port,
                       strerror(why));
    struct sockaddr_storage at;
    socklen_t size = sizeof at;
    if (getsockname(h->socket, (struct sockaddr *)&at, &size) == 0)
        h->port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&at)->sin6_port
                                                 : ((struct sockaddr_in *)(void *)&at)->sin_port);
    return ICAE_OK;
}

static int read_pem(char **out, const char *path)
{
    ic_map map;
    int rc = ic_map_open(&map, path);
    if (rc < 0)
        return rc;
    *out = ic_strndup((const char *)map.data, map.size);
    ic_map_close(&map);
    return *out ? ICAE_OK : ICAE_ENOMEM;
}

static void be_silent(void *user, const char *format, va_list arguments)
{
    (void)user, (void)format, (void)arguments;
}

static int start_daemon(ic_http *h)
{
    const ic_http_options *o = &h->options;
    struct MHD_OptionItem tls[] = {
        {h->key ? MHD_OPTION_HTTPS_MEM_KEY : MHD_OPTION_END, 0, h->key},
        {MHD_OPTION_HTTPS_MEM_CERT, 0, h->cert},
        {MHD_OPTION_END, 0, NULL},
    };
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
                     (h->key ? MHD_USE_TLS : 0);
    h->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, receive, h, MHD_OPTION_EXTERNAL_LOGGER, be_silent, NULL,
        MHD_OPTION_LISTEN_SOCKET, h->socket, MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)o->per_ip, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IC_MAX(1, o->timeout), MHD_OPTION_CONNECTION_MEMORY_LIMIT, o->header,
        MHD_OPTION_NOTIFY_COMPLETED, end_exchange, h, MHD_OPTION_NOTIFY_CONNECTION,
        notice_connection, h, MHD_OPTION_URI_LOG_CALLBACK, begin_exchange, h,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 0, MHD_OPTION_ARRAY,
        tls, MHD_OPTION_END);
    if (h->daemon)
        return ICAE_OK;
    if (h->key)
        return ic_fail(ICAE_EINVAL,
                       "cannot serve with the certificate %s and the key %s: they do not "
                       "belong together, or are no PEM files",
                       o->cert, o->key);
    return ic_fail(ICAE_EIO, "cannot start serving: %s", strerror(errno));
}

int ic_http_start(ic_http **out, const ic_http_options *options)
{
    int rc = ICAE_OK;
    ic_http *h = ic_alloc(1, sizeof *h);
    if (!h)
        return ICAE_ENOMEM;
    h->options = *options;
    h->socket = -1;
    pthread_mutex_init(&h->lock, NULL);
    /* ids differ from one start to the next */
    uint32_t start[4];
    ic_random_block(start, (uint64_t)(ic_seconds() * 1e6), (uint64_t)getpid(), 0);
    atomic_store(&h->made, (unsigned long long)start[0] << 16);
    if (options->cert) {
        IC_TRY(read_pem(&h->cert, options->cert));
        IC_TRY(read_pem(&h->key, options->key));
    }
    IC_TRY(ic_crew_new(&h->crew, options->threads));
    IC_TRY(open_socket(h));
    IC_TRY(start_daemon(h));
    *out = h;
    h = NULL;
done:
    ic_http_stop(h);
    return rc;
}

int ic_http_port(const ic_http *h)
{
    return h->port;
}

void ic_http_refuse(ic_http *h)
{
    atomic_store(&h->refusing, true);
    MHD_socket fd = MHD_quiesce_daemon(h->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
    h->socket = -1;
}

int ic_http_active(ic_http *h)
{
    return atomic_load(&h->active);
}

void ic_http_stop(ic_http *h)
{
    if (!h)
        return;
    ic_crew_free(h->crew); /* every handler has ended: nothing is suspended for long */
    if (h->daemon) {
        pthread_mutex_lock(&h->lock);
        for (ic_exchange *x = h->exchanges; x; x = x->next) {
            pthread_mutex_lock(&x->lock);
            atomic_store(&x->gone, true);
            wake(x);
            pthread_mutex_unlock(&x->lock);
        }
        pthread_mutex_unlock(&h->lock);
        MHD_stop_daemon(h->daemon);
    }
    if (h->socket >= 0 && !h->daemon)
        close(h->socket);
    ic_free(h->cert);
    if (h->key)
        explicit_bzero(h->key, strlen(h->key));
    ic_free(h->key);
    pthread_mutex_destroy(&h->lock);
    ic_free(h);
}

#endif
