/*
 * dist.c - several processes on one run, by MPI (the only file that includes it).
 *
 * Sums are made in the order of ranks, in double precision, so that the same number of processes gives
 * the same bits every time. Every wait is a poll: a process that waits can save its state when it is
 * told to end, and does not wait for ever. Without MPI there is one process.
 */
#include "train/run.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Processes that a launcher says it started; 1: none. */
static int launched(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS",
                                        "SLURM_STEP_NUM_TASKS"};
    int most = 1;
    for (size_t i = 0; i < IC_COUNT(names); i++) {
        const char *text = getenv(names[i]);
        most = text ? (int)IC_MAX(most, strtol(text, NULL, 10)) : most;
    }
    return most;
}

#if ICAE_HAVE_MPI

#include <mpi.h>

#define PIECE       ((size_t)1 << 22) /* floats at a time */
#define SHARE_PIECE ((size_t)1 << 26) /* bytes */

static int lost(ic_dist *d, const char *why)
{
    d->failed = true;
    if (d->waiting)
        d->waiting(d->user, true);
    return ic_fail(ICAE_EIO, "process %d of %d: %s", d->rank, d->ranks, why);
}

static int check(ic_dist *d, int status)
{
    return status == MPI_SUCCESS ? ICAE_OK : lost(d, "another process is gone");
}

/* Until the operation is complete. Spins shortly, then sleeps a little between looks. */
static int wait_for(ic_dist *d, MPI_Request *request)
{
    double start = ic_seconds(), told = start;
    for (int looks = 0;; looks++) {
        int complete = 0, rc = check(d, MPI_Test(request, &complete, MPI_STATUS_IGNORE));
        if (rc < 0 || complete)
            return rc;
        double now = ic_seconds();
        if (now - told > 0.01 && d->waiting) {
            told = now;
            d->waiting(d->user, false);
        }
        if (d->timeout > 0 && now - start > d->timeout)
            return lost(d, "waited too long for the others (timeout)");
        if (now - start > 2e-4)
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        else
            sched_yield();
    }
}

int ic_dist_open(ic_dist *d)
{
    int flag = 0, level;
    MPI_Comm node;
    *d = (ic_dist){.ranks = 1, .local = 1};
    if (launched() < 2)
        return ICAE_OK;
    MPI_Finalized(&flag);
    if (flag)
        return ic_fail(ICAE_EUNSUPPORTED, "MPI was ended already in this process");
    MPI_Initialized(&flag);
    if (!flag && MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS)
        return ic_fail(ICAE_EIO, "MPI does not start");
    d->started = !flag;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &d->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &d->ranks);
    if (MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node) ==
        MPI_SUCCESS) {
        MPI_Comm_size(node, &d->local);
        MPI_Comm_free(&node);
    }
    if (d->ranks > 1 && !(d->scratch = ic_alloc(2 * (PIECE + 4 * (size_t)d->ranks), sizeof(float))))
        return lost(d, "out of memory");
    return ICAE_OK;
}

void ic_dist_close(ic_dist *d)
{
    if (d->started && !d->failed)
        MPI_Finalize();
    ic_free(d->scratch);
    d->scratch = NULL;
    d->started = false;
}

void ic_dist_abort(ic_dist *d)
{
    if (d->ranks > 1)
        MPI_Abort(MPI_COMM_WORLD, 1);
}

/* Every process gets a part of all vectors, adds them up in the order of ranks, and gives the sum to
 * all. `size` of an element: 4 or 8. */
static int sum_piece(ic_dist *d, void *x, size_t n, size_t size)
{
    MPI_Request request;
    MPI_Datatype type = size == 4 ? MPI_FLOAT : MPI_DOUBLE;
    size_t ranks = (size_t)d->ranks, part = (n + ranks - 1) / ranks;
    char *send = (char *)d->scratch, *got = send + part * ranks * size;
    memcpy(send, x, n * size);
    memset(send + n * size, 0, (part * ranks - n) * size);
    int rc = check(
        d, MPI_Ialltoall(send, (int)part, type, got, (int)part, type, MPI_COMM_WORLD, &request));
    if (rc == ICAE_OK)
        rc = wait_for(d, &request);
    for (size_t i = 0; i < part && rc == ICAE_OK; i++) {
        double sum = 0;
        for (size_t r = 0; r < ranks; r++)
            sum += size == 4 ? (double)((float *)got)[r * part + i] : ((double *)got)[r * part + i];
        if (size == 4)
            ((float *)got)[i] = (float)sum;
        else
            ((double *)got)[i] = sum;
    }
    if (rc == ICAE_OK)
        rc = check(d, MPI_Iallgather(got, (int)part, type, send, (int)part, type, MPI_COMM_WORLD,
                                     &request));
    if (rc == ICAE_OK)
        rc = wait_for(d, &request);
    if (rc == ICAE_OK)
        memcpy(x, send, n * size);
    return rc;
}

static int sum(ic_dist *d, void *x, size_t n, size_t size)
{
    size_t step = PIECE * sizeof(float) / size;
    if (d->failed)
        return ICAE_EIO;
    for (size_t at = 0; at < n && d->ranks > 1; at += step) {
        int rc = sum_piece(d, (char *)x + at * size, IC_MIN(step, n - at), size);
        if (rc < 0)
            return rc;
    }
    return ICAE_OK;
}

int ic_dist_share(ic_dist *d, void *data, size_t size)
{
    if (d->failed)
        return ICAE_EIO;
    for (size_t at = 0; at < size && d->ranks > 1; at += SHARE_PIECE) {
        MPI_Request request;
        int n = (int)IC_MIN(SHARE_PIECE, size - at);
        int rc = check(d, MPI_Ibcast((char *)data + at, n, MPI_BYTE, 0, MPI_COMM_WORLD, &request));
        if (rc == ICAE_OK)
            rc = wait_for(d, &request);
        if (rc < 0)
            return rc;
    }
    return ICAE_OK;
}

static int share_message(ic_dist *d, int from)
{
    char text[1024];
    MPI_Request request;
    strncpy(text, icae_error_message(), sizeof text - 1);
    text[sizeof text - 1] = 0;
    int rc = check(d, MPI_Ibcast(text, sizeof text, MPI_CHAR, from, MPI_COMM_WORLD, &request));
    if (rc == ICAE_OK)
        rc = wait_for(d, &request);
    if (rc == ICAE_OK && d->rank != from)
        ic_set_message("process %d: %s", from, text);
    return rc;
}

int ic_dist_agree(ic_dist *d, int mine)
{
    if (d->ranks < 2 || d->failed)
        return mine;
    double *codes = ic_alloc((size_t)d->ranks, sizeof *codes);
    if (!codes)
        return ICAE_ENOMEM;
    codes[d->rank] = mine;
    int rc = ic_dist_sum_f64(d, codes, (size_t)d->ranks), from = 0;
    while (rc == ICAE_OK && from < d->ranks && codes[from] == 0)
        from++;
    if (rc == ICAE_OK && from < d->ranks) {
        rc = share_message(d, from);
        rc = rc < 0 ? rc : (int)codes[from];
    }
    ic_free(codes);
    return rc;
}

#else

int ic_dist_open(ic_dist *d)
{
    *d = (ic_dist){.ranks = 1, .local = 1};
    if (launched() > 1)
        return ic_fail(ICAE_EUNSUPPORTED,
                       "started as several processes, but this icae was built without "
                       "MPI: install it and build again, or start one");
    return ICAE_OK;
}

void ic_dist_close(ic_dist *d)
{
    (void)d;
}

void ic_dist_abort(ic_dist *d)
{
    (void)d;
}

static int sum(ic_dist *d, void *x, size_t n, size_t size)
{
    (void)d, (void)x, (void)n, (void)size;
    return ICAE_OK;
}

int ic_dist_share(ic_dist *d, void *data, size_t size)
{
    return sum(d, data, size, 1);
}

int ic_dist_agree(ic_dist *d, int rc)
{
    (void)d;
    return rc;
}

#endif

int ic_dist_sum_f32(ic_dist *d, float *x, size_t n)
{
    return sum(d, x, n, sizeof *x);
}

int ic_dist_sum_f64(ic_dist *d, double *x, size_t n)
{
    return sum(d, x, n, sizeof *x);
}
