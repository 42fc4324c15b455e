/*
 * text_request.c - reads the bodies of POST /v1/contexts and …/append: a text, JSON, or a slots file.
 *
 * Pure, as request.c. Knows nothing of stores or HTTP.
 */
#include "serve/contexts.h"
#include "serve/fields.h"

#include <string.h>

static const char *const members[] = {"text", "name",   "rate", "check", "exact",
                                      "int8", "refine", "ttl",  NULL};

enum { LONGEST_NAME = 200 };
static const int64_t longest_ttl = INT64_C(100) * 365 * 86400;

static int check_name(ic_fields *f, const char *name)
{
    if (!name)
        return ICAE_OK;
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return ic_fields_wrong(f, "name", "no control characters");
    if (strlen(name) > LONGEST_NAME || ic_fields_utf8(name, strlen(name), "name") < 0)
        return ic_fields_wrong(f, "name", "UTF-8 of at most 200 bytes");
    return ICAE_OK;
}

static int read_json(ic_text_request *r, ic_fields *f, double *rate, int64_t *refine, int64_t *ttl,
                     const char *body, size_t size)
{
    int rc = ICAE_OK;
    r->text = NULL;
    IC_TRY(ic_fields_parse(&r->root, body, size));
    f->object = r->root;
    IC_TRY(ic_fields_text(f, "text", &r->text));
    if (!r->text)
        return ic_fields_wrong(f, "text", "a string");
    r->size = strlen(r->text);
    IC_TRY(ic_fields_text(f, "name", &r->name));
    IC_TRY(ic_fields_real(f, "rate", rate, 1, 65536));
    IC_TRY(ic_fields_flag(f, "check", &r->options.check));
    IC_TRY(ic_fields_flag(f, "exact", &r->options.exact));
    IC_TRY(ic_fields_flag(f, "int8", &r->options.int8));
    IC_TRY(ic_fields_whole(f, "refine", refine, 0, IC_SERVE_REFINING));
    IC_TRY(ic_fields_whole(f, "ttl", ttl, 1, longest_ttl));
    rc = ic_fields_unknown(&r->unknown, r->root, members, "");
done:
    return rc;
}

static int read_query(ic_text_request *r, ic_fields *f, double *rate, int64_t *refine, int64_t *ttl,
                      const ic_text_query *q)
{
    int rc = ICAE_OK;
    r->name = q->name ? q->name : r->name;
    IC_TRY(ic_query_real(f, "rate", q->rate, rate, 1, 65536));
    IC_TRY(ic_query_flag(f, "check", q->check, &r->options.check));
    IC_TRY(ic_query_flag(f, "exact", q->exact, &r->options.exact));
    IC_TRY(ic_query_flag(f, "int8", q->int8, &r->options.int8));
    IC_TRY(ic_query_whole(f, "refine", q->refine, refine, 0, IC_SERVE_REFINING));
    IC_TRY(ic_query_whole(f, "ttl", q->ttl, ttl, 1, longest_ttl));
    rc = check_name(f, r->name);
done:
    return rc;
}

int ic_text_request_parse(ic_text_request *r, const char *type, const char *body, size_t size,
                          const ic_text_query *query)
{
    int rc = ICAE_OK;
    ic_fields f = {0};
    double rate = 0;
    int64_t refine = IC_ADAPTERS, ttl = 0;
    *r = (ic_text_request){.options.check = true, .text = body, .size = size};
    if (ic_is_media_type(type, "application/json")) {
        IC_TRY(read_json(r, &f, &rate, &refine, &ttl, body, size));
    } else if (ic_is_media_type(type, "text/plain")) {
        IC_TRY(ic_fields_utf8(body, size, "the text"));
    } else if (ic_is_media_type(type, "application/vnd.icae") ||
               ic_is_media_type(type, "application/octet-stream")) {
        r->file = true;
    } else {
        return ic_fail(ICAE_EUNSUPPORTED,
                       "Content-Type %.80s: expected application/json, text/plain or "
                       "application/vnd.icae",
                       *type ? type : "(none)");
    }
    IC_TRY(read_query(r, &f, &rate, &refine, &ttl, query));
    if (!r->size)
        rc = ic_fields_wrong(&f, "text", "a text that is not empty");
    r->options.rate = (float)rate;
    r->options.refine = (int)refine;
    r->ttl = (uint64_t)ttl;
done:
    memcpy(r->param, f.param, sizeof r->param);
    return IC_MIN(rc, ICAE_OK);
}

void ic_text_request_free(ic_text_request *r)
{
    ic_json_free(r->root);
    ic_buffer_free(&r->unknown);
    *r = (ic_text_request){0};
}
