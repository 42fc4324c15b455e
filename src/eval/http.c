/*
 * http.c - one POST of JSON to a judge. The only file that knows libcurl; without it every call fails
 * with a clear message.
 */
#include "eval/eval.h"

#ifdef ICAE_HAVE_CURL
#include <curl/curl.h>

#include <pthread.h>
#include <string.h>

static void start(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static size_t receive(char *data, size_t size, size_t count, void *user)
{
    return ic_buffer_add(user, data, size * count) < 0 ? 0 : size * count;
}

/* https and http only; the key must not travel elsewhere, so redirects are not followed. */
static int set_options(CURL *c, struct curl_slist *headers, ic_buffer *answer, const char *url,
                       const char *body, double seconds, char error[CURL_ERROR_SIZE])
{
    bool ok =
        curl_easy_setopt(c, CURLOPT_URL, url) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https") == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, body) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body)) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, receive) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_WRITEDATA, answer) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)(seconds * 1000)) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L) == CURLE_OK &&
        curl_easy_setopt(c, CURLOPT_ERRORBUFFER, error) == CURLE_OK;
    return ok ? ICAE_OK : ic_fail(ICAE_EINVAL, "the judge's address %s cannot be used", url);
}

static struct curl_slist *add_header(struct curl_slist *list, const char *header, bool *ok)
{
    struct curl_slist *longer = curl_slist_append(list, header);
    *ok = *ok && longer;
    return longer ? longer : list;
}

int ic_http_post(ic_buffer *answer, int *status, double *wait, const char *url, const char *key,
                 const char *body, double seconds)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int rc = ICAE_OK;
    bool ok = true;
    char error[CURL_ERROR_SIZE] = "", *bearer = NULL;
    struct curl_slist *headers = NULL;
    pthread_once(&once, start);
    CURL *c = curl_easy_init();
    answer->size = 0;
    answer->limit = 4 << 20;
    headers = add_header(headers, "Content-Type: application/json", &ok);
    if (key && *key) {
        bearer = ic_format("Authorization: Bearer %s", key);
        headers = add_header(headers, bearer ? bearer : "", &ok);
        ok = ok && bearer;
    }
    if (!c || !ok) {
        rc = ic_fail(ICAE_ENOMEM, "out of memory for a request");
        goto done;
    }
    IC_TRY(set_options(c, headers, answer, url, body, seconds, error));
    CURLcode code = curl_easy_perform(c);
    if (code != CURLE_OK) {
        rc = ic_fail(ICAE_EIO, "%s: %s", url, *error ? error : curl_easy_strerror(code));
        goto done;
    }
    long http = 0;
    curl_off_t after = -1;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &http);
    struct curl_header *h;
    bool told = curl_easy_header(c, "Retry-After", 0, CURLH_HEADER, -1, &h) == CURLHE_OK;
    if (told)
        curl_easy_getinfo(c, CURLINFO_RETRY_AFTER, &after);
    *status = (int)http;
    *wait = told ? (double)after : -1;
    IC_TRY(ic_buffer_add(answer, "", 0));
done:
    curl_slist_free_all(headers);
    curl_easy_cleanup(c);
    ic_free(bearer);
    return rc;
}

#else

int ic_http_post(ic_buffer *answer, int *status, double *wait, const char *url, const char *key,
                 const char *body, double seconds)
{
    (void)answer, (void)status, (void)wait, (void)key, (void)body, (void)seconds;
    return ic_fail(ICAE_EUNSUPPORTED, "%s cannot be asked: this build has no libcurl", url);
}

#endif
