/*
 * judge.c - has a language model behind an OpenAI-compatible server compare two answers.
 *
 * Every verdict is kept in the journal under a hash of what was asked, so nothing is asked twice; what is
 * not there yet is asked first, several requests at a time, and counted then. A server that is busy is
 * asked again, by none of the threads, before the time it names; one that cannot be reached ends the
 * judging, not the evaluation.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TRIES = 5, NONSENSE_TRIES = 2, PARALLEL = 4, MOST_PARALLEL = 64 };

const char *const ic_verdict_columns =
    "System 1|System 2|By|Asked:0|Judged:0|Win %:1|win from:1|win to:1|Lose %:1|lose from:1|lose "
    "to:1|Tie %:1|On par %:1|on par from:1|on par to:1|Win / lose:1";

/* k of n in percent and its interval. */
static void share(double v[3], uint64_t k, uint64_t n)
{
    v[0] = v[1] = v[2] = (double)NAN;
    if (!n)
        return;
    ic_wilson(&v[1], &v[2], k, n);
    v[0] = 100 * (double)k / (double)n;
    v[1] *= 100;
    v[2] *= 100;
}

void ic_verdicts_row(ic_report *r, const char *first, const char *second, const ic_verdicts *v,
                     const char *by)
{
    uint64_t n = v->win + v->lose + v->tie;
    double win[3], lose[3], tie[3], par[3];
    share(win, v->win, n);
    share(lose, v->lose, n);
    share(tie, v->tie, n);
    share(par, v->win + v->tie, n);
    ic_report_row(r, "sssiinnnnnnnnnnn", first, second, by, n + v->failed, n, win[0], win[1],
                  win[2], lose[0], lose[1], lose[2], tie[0], par[0], par[1], par[2],
                  v->lose ? (double)v->win / (double)v->lose : (double)NAN);
}

void ic_verdicts_stack(ic_report *r, const char *name, const ic_verdicts *v)
{
    double n = (double)(v->win + v->lose + v->tie);
    if (n > 0)
        ic_report_stack(r, name,
                        (double[]){(double)v->win / n, (double)v->tie / n, (double)v->lose / n}, 3);
}

static const char instructions[] = "You compare two answers to a question about a text. The better "
                                   "answer is right by the text, complete and to "
                                   "the point; length by itself counts for nothing. Reply with one "
                                   "word: A if answer A is better, B if answer B is "
                                   "better, TIE if they are equally good.";

static void add_message(ic_report *w, const char *role, const char *content, size_t size)
{
    ic_report_open(w, NULL, '{');
    ic_report_text(w, "role", role);
    ic_report_bytes(w, "content", content, size);
    ic_report_close(w, '}');
}

static int make_body(ic_buffer *out, const ic_eval *e, const ic_question *q, const char *a,
                     const char *b)
{
    int rc = ICAE_OK;
    ic_buffer user = {0};
    ic_report w = {0};
    IC_TRY(ic_buffer_addf(&user, "Text:\n"));
    IC_TRY(ic_buffer_add(&user, q->context, strlen(q->context)));
    IC_TRY(ic_buffer_addf(&user, "\n\nQuestion: "));
    IC_TRY(ic_buffer_add(&user, q->prompt, strlen(q->prompt)));
    IC_TRY(ic_buffer_addf(&user, "\n\nAnswer A: "));
    IC_TRY(ic_buffer_add(&user, a, strlen(a)));
    IC_TRY(ic_buffer_addf(&user, "\n\nAnswer B: "));
    IC_TRY(ic_buffer_add(&user, b, strlen(b)));
    IC_TRY(ic_buffer_addf(&user, "\n\nWhich answer is better: A, B or TIE?"));
    ic_report_open(&w, NULL, '{');
    ic_report_text(&w, "model", e->options->judge_model ? e->options->judge_model : "judge");
    ic_report_number(&w, "temperature", 0);
    ic_report_number(&w, "max_tokens", 8);
    ic_report_open(&w, "messages", '[');
    add_message(&w, "system", instructions, strlen(instructions));
    add_message(&w, "user", user.data, user.size);
    ic_report_close(&w, ']');
    ic_report_close(&w, '}');
    IC_TRY(w.rc);
    *out = w.json;
    w.json = (ic_buffer){0};
done:
    ic_buffer_free(&user);
    ic_buffer_free(&w.json);
    return rc;
}

/* 'A', 'B', 'T', or 0: no verdict. */
static char verdict_in(const char *s)
{
    s += strspn(s, " \t\r\n\"'*[(");
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
    if (n == 1 && (*s == 'A' || *s == 'a' || *s == 'B' || *s == 'b'))
        return *s == 'A' || *s == 'a' ? 'A' : 'B';
    char word[8] = "";
    for (size_t i = 0; i < n && i < sizeof word - 1; i++)
        word[i] = (char)(s[i] | 32);
    if (!strcmp(word, "tie"))
        return 'T';
    return !strcmp(word, "answer") && n == 6 ? verdict_in(s + 6) : 0;
}

static char parse(const ic_buffer *answer)
{
    ic_json *json = NULL;
    if (!answer->size || ic_json_parse(&json, answer->data, answer->size, "the judge's reply") < 0)
        return 0;
    const ic_json *choice = ic_json_first(ic_json_get(json, "choices"));
    const char *text = ic_json_string(ic_json_get(ic_json_get(choice, "message"), "content"));
    char verdict = 0;
    if (text)
        verdict = verdict_in(text);
    ic_json_free(json);
    return verdict;
}

/* ---- asking ----------------------------------------------------------------------------------- */

/* A pair in one order. */
typedef struct question {
    const ic_question *q;
    const char *a, *b;
    char key[80];
    char verdict; /* out; 0: none was to be had */
} question;

typedef struct court {
    ic_eval *e;
    question *list;
    size_t count, begin, end; /* of list: those that are asked now */
    int members;
    uint64_t done, total;
    char *url;
    _Atomic uint64_t not_before; /* milliseconds of the clock: the server asked to wait */
    atomic_bool unusable;
} court;

static void pause_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&t, NULL);
}

static uint64_t now(void)
{
    return (uint64_t)(ic_seconds() * 1000);
}

/* Nobody asks for so long. */
static void hold(court *c, double seconds)
{
    uint64_t until = now() + (uint64_t)(seconds * 1000), was = atomic_load(&c->not_before);
    while (was < until && !atomic_compare_exchange_weak(&c->not_before, &was, until))
        ;
}

static void wait_for_turn(const court *c)
{
    uint64_t at, until;
    while ((until = atomic_load(&c->not_before)) > (at = now()) && !atomic_load(&c->unusable))
        pause_for(fmin((double)(until - at) / 1000, 1));
}

/* One request, again where that helps. ICAE_EIO: the judge cannot be used. */
static int request(ic_buffer *answer, court *c, const char *body)
{
    int rc = ICAE_OK, status = 0;
    const icae_eval_options *o = c->e->options;
    double wait = -1, seconds = o->judge_timeout > 0 ? o->judge_timeout : 60;
    for (int i = 0; i < TRIES && !atomic_load(&c->unusable); i++) {
        wait_for_turn(c);
        rc = ic_http_post(answer, &status, &wait, c->url, getenv("ICAE_JUDGE_KEY"), body, seconds);
        if (rc == ICAE_EUNSUPPORTED || rc == ICAE_ENOMEM || rc == ICAE_EINVAL ||
            (rc == ICAE_OK && status != 429 && status < 500))
            break;
        if (rc == ICAE_OK && wait >= 0)
            hold(c, fmin(wait, 120));
        else if (i + 1 < TRIES)
            pause_for(0.5 * (1 << i));
    }
    if (rc == ICAE_OK && !status)
        answer->size = 0; /* not asked: another thread found that it is of no use */
    else if (rc == ICAE_OK && status != 200)
        rc = ic_fail(ICAE_EIO, "%s: answered with status %d: %.200s", c->url, status,
                     answer->data ? answer->data : "");
    return rc;
}

static int ask(court *c, question *q)
{
    int rc = ICAE_OK;
    ic_buffer body = {0}, answer = {0};
    IC_TRY(make_body(&body, c->e, q->q, q->a, q->b));
    for (int i = 0; i < NONSENSE_TRIES && !q->verdict && !atomic_load(&c->unusable); i++) {
        IC_TRY(request(&answer, c, body.data));
        q->verdict = parse(&answer);
    }
done:
    ic_buffer_free(&body);
    ic_buffer_free(&answer);
    return rc;
}

/* In a thread of its own. */
static int ask_some(ic_gang *gang, int number, void *user)
{
    int rc = ICAE_OK;
    court *c = user;
    for (size_t i = c->begin + (size_t)number; i < c->end && rc == ICAE_OK;
         i += (size_t)c->members) {
        if (atomic_load(&c->unusable))
            break;
        rc = ask(c, &c->list[i]);
        if (rc < 0)
            atomic_store(&c->unusable, true); /* nobody need ask or wait any longer */
        else
            rc = ic_gang_give(gang, &c->list[i]);
    }
    return rc;
}

static int keep(void *user, const void *result)
{
    int rc = ICAE_OK;
    court *c = user;
    const question *q = result;
    ic_buffer record = {0};
    if (q->verdict) {
        IC_TRY(ic_buffer_addf(&record, "{\"verdict\":\"%c\"}", q->verdict));
        IC_TRY(ic_journal_put(c->e->journal, q->key, &record));
    }
    IC_TRY(ic_eval_progress(c->e, "judgements", ++c->done, c->total));
done:
    ic_buffer_free(&record);
    return rc;
}

/* The first alone: a wrong key or name is found with one request. */
static int ask_all(court *c)
{
    int rc = ICAE_OK, parallel = c->e->options->judge_parallel;
    parallel = IC_MIN(parallel > 0 ? parallel : (int)PARALLEL, (int)MOST_PARALLEL);
    while (c->end < c->count && rc == ICAE_OK) {
        c->begin = c->end;
        c->end = c->begin ? c->count : 1;
        c->members = (int)IC_MIN((size_t)parallel, c->end - c->begin);
        rc = ic_gang_run(&(ic_gang_plan){c->members, ask_some, keep, c});
    }
    bool its_fault = rc == ICAE_EIO || rc == ICAE_EUNSUPPORTED || rc == ICAE_EINVAL;
    if (its_fault && atomic_load(&c->unusable)) {
        ic_report_note(&c->e->report,
                       "The judge cannot be used: %s. What it had judged is kept; run again with "
                       "--resume to have the rest judged.",
                       icae_error_message());
        c->e->judging = false;
        rc = ICAE_OK;
    }
    return rc;
}

static int key_of(char key[80], const ic_eval *e, const ic_question *q, const char *a,
                  const char *b)
{
    int rc = ICAE_OK;
    char hash[65];
    ic_buffer body = {0};
    IC_TRY(make_body(&body, e, q, a, b));
    IC_TRY(ic_hash_of(hash, body.data, body.size));
    snprintf(key, 80, "judge|%s", hash);
done:
    ic_buffer_free(&body);
    return rc;
}

static int by_key(const void *a, const void *b)
{
    const question *const *x = a, *const *y = b;
    int order = strcmp((*x)->key, (*y)->key);
    return order ? order : (*x > *y) - (*x < *y);
}

/* Drops what was judged before, and all but the first of equal questions; the order stays. */
static int drop_known(court *c)
{
    size_t kept = 0;
    question **sorted = ic_alloc(c->count, sizeof *sorted);
    if (!sorted)
        return ICAE_ENOMEM;
    for (size_t i = 0; i < c->count; i++)
        sorted[i] = &c->list[i];
    qsort(sorted, c->count, sizeof *sorted, by_key);
    for (size_t i = 0; i < c->count; i++) /* q NULL: dropped */
        if ((i && !strcmp(sorted[i]->key, sorted[i - 1]->key)) ||
            ic_journal_get(c->e->journal, sorted[i]->key))
            sorted[i]->q = NULL;
    ic_free(sorted);
    for (size_t i = 0; i < c->count; i++)
        if (c->list[i].q)
            c->list[kept++] = c->list[i];
    c->count = kept;
    return ICAE_OK;
}

int ic_judge_pairs(ic_eval *e, const ic_judge_pair *pairs, size_t count)
{
    int rc = ICAE_OK;
    court c = {.e = e, .count = 2 * count};
    const char *base = e->options->judge;
    size_t n = strlen(base);
    if (!e->judging || !count)
        return ICAE_OK;
    c.url = ic_format("%s%schat/completions", base, n && base[n - 1] == '/' ? "" : "/");
    c.list = ic_alloc(c.count, sizeof *c.list);
    if (!c.url || !c.list) {
        rc = ICAE_ENOMEM;
        goto done;
    }
    for (size_t i = 0; i < c.count; i++) {
        const ic_judge_pair *p = &pairs[i / 2];
        question *q = &c.list[i];
        *q = i % 2 ? (question){.q = p->question, .a = p->second, .b = p->first}
                   : (question){.q = p->question, .a = p->first, .b = p->second};
        IC_TRY(key_of(q->key, e, q->q, q->a, q->b));
    }
    IC_TRY(drop_known(&c));
    c.total = c.count;
    IC_TRY(ask_all(&c));
done:
    ic_free(c.list);
    ic_free(c.url);
    return rc;
}

/* ---- counting --------------------------------------------------------------------------------- */

/* The verdict on (a, b) in this order: 'A', 'B', 'T', or 0 if there is none. */
static int verdict_of(char *verdict, const ic_eval *e, const ic_question *q, const char *a,
                      const char *b)
{
    char key[80];
    int rc = key_of(key, e, q, a, b);
    *verdict = rc < 0 ? 0 : *ic_record_text(ic_journal_get(e->journal, key), "verdict");
    return rc;
}

int ic_judge_count(ic_verdicts *v, const ic_eval *e, const ic_judge_pair *p)
{
    int rc = ICAE_OK;
    char one, two;
    IC_TRY(verdict_of(&one, e, p->question, p->first, p->second));
    IC_TRY(verdict_of(&two, e, p->question, p->second, p->first));
    if (!one || !two) {
        v->failed++;
        return ICAE_OK;
    }
    int score = (one == 'A') - (one == 'B') + (two == 'B') - (two == 'A');
    v->win += score > 0;
    v->lose += score < 0;
    v->tie += score == 0;
done:
    return rc;
}
