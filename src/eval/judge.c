/*
 * judge.c - has a language model behind an OpenAI-compatible server compare two answers.
 *
 * Every verdict is kept in the journal under a hash of what was asked, so nothing is asked twice. A
 * server that is busy is asked again after the time it names; one that cannot be reached ends the
 * judging, not the evaluation.
 */
#include "eval/eval.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TRIES = 5, NONSENSE_TRIES = 2 };

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

static void pause_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    nanosleep(&t, NULL);
}

/* One request, again where that helps. ICAE_EIO: the judge cannot be used. */
static int ask(ic_buffer *answer, const ic_eval *e, const char *body)
{
    int rc = ICAE_OK, status = 0;
    double wait = -1, seconds = e->options->judge_timeout > 0 ? e->options->judge_timeout : 60;
    const char *base = e->options->judge, *key = getenv("ICAE_JUDGE_KEY");
    size_t n = strlen(base);
    char *url = ic_format("%s%schat/completions", base, n && base[n - 1] == '/' ? "" : "/");
    if (!url)
        return ICAE_ENOMEM;
    for (int i = 0; i < TRIES; i++) {
        rc = ic_http_post(answer, &status, &wait, url, key, body, seconds);
        if (rc == ICAE_EUNSUPPORTED || rc == ICAE_ENOMEM || rc == ICAE_EINVAL ||
            (rc == ICAE_OK && status != 429 && status < 500))
            break;
        double back = wait >= 0 && rc == ICAE_OK ? IC_MIN(wait, 120) : 0.5 * (1 << i);
        if (i + 1 < TRIES)
            pause_for(back);
    }
    if (rc == ICAE_OK && status != 200)
        rc = ic_fail(ICAE_EIO, "%s: answered with status %d: %.200s", url, status,
                     answer->data ? answer->data : "");
    ic_free(url);
    return rc;
}

/* The verdict on (a, b) in this order: 'A', 'B', 'T', or 0 if there is none to be had. */
static int judge_once(char *verdict, ic_eval *e, const ic_question *q, const char *a, const char *b)
{
    int rc = ICAE_OK;
    char hash[65], key[256];
    ic_buffer body = {0}, answer = {0}, record = {0};
    *verdict = 0;
    IC_TRY(make_body(&body, e, q, a, b));
    IC_TRY(ic_hash_of(hash, body.data, body.size));
    IC_TRY(ic_eval_key(key, "judge|%s", hash));
    const char *known = ic_record_text(ic_journal_get(e->journal, key), "verdict");
    *verdict = *known;
    for (int i = 0; i < NONSENSE_TRIES && !*verdict && e->judging; i++) {
        rc = ask(&answer, e, body.data);
        if (rc == ICAE_EIO || rc == ICAE_EUNSUPPORTED || rc == ICAE_EINVAL) {
            ic_report_note(&e->report,
                           "The judge cannot be used: %s. What it had judged is kept; run again "
                           "with --resume to "
                           "have the rest judged.",
                           icae_error_message());
            e->judging = false;
            rc = ICAE_OK;
            goto done;
        }
        IC_TRY(rc);
        *verdict = parse(&answer);
    }
    if (*verdict && !*known) {
        IC_TRY(ic_buffer_addf(&record, "{\"verdict\":\"%c\"}", *verdict));
        IC_TRY(ic_journal_put(e->journal, key, &record));
    }
done:
    ic_buffer_free(&body);
    ic_buffer_free(&answer);
    ic_buffer_free(&record);
    return rc;
}

int ic_judge_pair(ic_eval *e, ic_verdicts *v, const ic_question *q, const char *first,
                  const char *second)
{
    int rc = ICAE_OK;
    char one, two;
    IC_TRY(judge_once(&one, e, q, first, second));
    IC_TRY(judge_once(&two, e, q, second, first));
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
