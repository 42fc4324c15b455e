/*
 * hash.c - SHA-256 by OpenSSL. The only file that includes it.
 */
#include "base/base.h"

#include <openssl/evp.h>
#include <string.h>

struct ic_hash {
    EVP_MD_CTX *context;
    bool failed;
};

int ic_hash_new(ic_hash **out)
{
    *out = NULL;
    ic_hash *h = ic_alloc(1, sizeof *h);
    if (!h)
        return ICAE_ENOMEM;
    h->context = EVP_MD_CTX_new();
    if (!h->context || EVP_DigestInit_ex(h->context, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(h->context);
        ic_free(h);
        return ic_fail(ICAE_ENOMEM, "SHA-256 cannot be started");
    }
    *out = h;
    return ICAE_OK;
}

void ic_hash_add(ic_hash *h, const void *data, size_t size)
{
    if (size > 0 && EVP_DigestUpdate(h->context, data, size) != 1)
        h->failed = true;
}

void ic_hash_finish(ic_hash *h, char hex[65])
{
    unsigned char digest[EVP_MAX_MD_SIZE] = {0};
    /* A failure cannot happen with a started context; if it did, zeros match no identity. */
    if (EVP_DigestFinal_ex(h->context, digest, NULL) != 1 || h->failed)
        memset(digest, 0, sizeof digest);
    if (hex) {
        for (int i = 0; i < 32; i++) {
            hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
            hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
        }
        hex[64] = 0;
    }
    EVP_MD_CTX_free(h->context);
    ic_free(h);
}

int ic_hash_of(char hex[65], const void *data, size_t size)
{
    ic_hash *h;
    int rc = ic_hash_new(&h);
    if (rc < 0)
        return rc;
    ic_hash_add(h, data, size);
    ic_hash_finish(h, hex);
    return ICAE_OK;
}

int icae_sha256(char hex[65], const void *data, size_t size)
{
    return ic_hash_of(hex, data, size);
}
