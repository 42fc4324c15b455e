/*
 * error.c - the message of this thread's last error.
 *
 * Messages quote names and values from files that may be hostile, and end on terminals and in logs:
 * everything that is not a printable character is replaced here, once, for the whole library.
 */
#include "base/base.h"

#include <stdio.h>
#include <string.h>

#define MESSAGE_SIZE 1024

static _Thread_local char message[MESSAGE_SIZE];

const char *icae_error_message(void)
{
    return message;
}

void icae_free(void *memory)
{
    ic_free(memory);
}

/* Control characters include U+0080..U+009F, which some terminals obey. */
static bool is_printable(uint32_t code)
{
    return code >= 0x20 && (code < 0x7f || code >= 0xa0);
}

static void copy_printable(char *dst, const char *src, size_t size)
{
    while (size > 0) {
        uint32_t code;
        int n = ic_utf8_decode(&code, src, size);
        size_t step = (size_t)(n < 0 ? -n : n);
        if (n > 0 && is_printable(code)) {
            memcpy(dst, src, step);
            dst += step;
        } else {
            *dst++ = '?';
        }
        src += step;
        size -= step;
    }
    *dst = 0;
}

void ic_set_message(const char *format, ...)
{
    /* Formatted aside, because an argument may be the old message itself. */
    char text[MESSAGE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (wanted < 0)
        strcpy(text, "error (its message could not be formatted)");
    size_t size = strlen(text);
    if (wanted >= (int)sizeof text) {
        size = ic_utf8_whole(text, size - 3);
        memcpy(text + size, "...", 4);
        size += 3;
    }
    copy_printable(message, text, size);
}
