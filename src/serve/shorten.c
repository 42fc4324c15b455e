/*
 * shorten.c - icae.compress_over: the older part of a conversation is read as slots.
 *
 * While the text is too long the oldest message that is no system message becomes slots, which stand in
 * front of what is left; what is left begins with a message of the user. A last message that is too long by
 * itself keeps the text behind its last blank line: that is where the question is.
 */
#include "serve/shorten.h"

#include <string.h>

static int add_front(ic_shortening *s, icae_part part)
{
    icae_part *more = ic_resize(s->front, s->front_count + 1, sizeof *more);
    if (!more)
        return ICAE_ENOMEM;
    s->front = more;
    s->front[s->front_count++] = part;
    return ICAE_OK;
}

static int compress(icae_slots **out, ic_shortening *s, ic_call *c, const char *text, size_t size,
                    ic_usage *usage)
{
    int rc = ICAE_OK;
    icae_slots *slots = NULL;
    icae_slots **more = ic_resize(s->made, s->made_count + 1, sizeof *more);
    if (!more)
        return ICAE_ENOMEM;
    s->made = more;
    IC_TRY(ic_serve_compress(&slots, c, text, size, NULL, NULL, NULL));
    s->made[s->made_count++] = *out = slots;
    usage->compressed = true;
    usage->tokens += slots->tokens;
    usage->slots += slots->count;
done:
    return rc;
}

static int text_tokens(uint64_t *tokens, const ic_call *c, const ic_turn *turn)
{
    int rc = ICAE_OK;
    *tokens = 0;
    for (size_t i = 0; i < turn->count; i++) {
        uint64_t n = 0;
        if (!turn->parts[i].slots)
            IC_TRY(ic_conversation_count(&n, c->server->session, turn->parts[i].text,
                                         turn->parts[i].size));
        *tokens += n;
    }
done:
    return rc;
}

/* All of a message goes to the front, its text as slots of "User: …". */
static int move_message(ic_shortening *s, ic_call *c, const ic_turn *turn, ic_usage *usage)
{
    int rc = ICAE_OK;
    ic_buffer text = {0};
    const char *who = turn->role == IC_ASSISTANT ? "Assistant: " : "User: ";
    for (size_t i = 0; i < turn->count; i++) {
        icae_part part = turn->parts[i];
        if (!part.slots) {
            icae_slots *slots;
            text.size = 0;
            IC_TRY(ic_buffer_addf(&text, "%s", who));
            IC_TRY(ic_buffer_add(&text, part.text, part.size));
            IC_TRY(ic_buffer_addf(&text, "\n\n"));
            IC_TRY(compress(&slots, s, c, text.data, text.size, usage));
            part = (icae_part){.slots = slots};
        }
        IC_TRY(add_front(s, part));
    }
    usage->messages++;
done:
    ic_buffer_free(&text);
    return rc;
}

/* Where the text behind the last blank line begins; 0: there is no blank line before text. */
static size_t last_paragraph(const char *text, size_t size)
{
    while (size && (text[size - 1] == '\n' || text[size - 1] == ' '))
        size--;
    for (size_t i = size; i >= 2; i--)
        if (text[i - 1] == '\n' && text[i - 2] == '\n')
            return i;
    return 0;
}

/* The last message: its parts but the last, or what stands before its last blank line. */
static int cut_last(ic_shortening *s, ic_call *c, ic_turn *turn, ic_usage *usage)
{
    int rc = ICAE_OK;
    icae_slots *slots;
    bool some = false;
    for (size_t i = 0; i + 1 < turn->count; i++) {
        if (turn->parts[i].slots || !turn->parts[i].size)
            continue;
        IC_TRY(compress(&slots, s, c, turn->parts[i].text, turn->parts[i].size, usage));
        turn->parts[i] = (icae_part){.slots = slots};
        some = true;
    }
    icae_part *last = &turn->parts[turn->count - 1];
    size_t cut = turn->count == 1 && !last->slots ? last_paragraph(last->text, last->size) : 0;
    if (cut) {
        IC_TRY(compress(&slots, s, c, last->text, cut, usage));
        s->last[0] = (icae_part){.slots = slots};
        s->last[1] = (icae_part){.text = last->text + cut, .size = last->size - cut};
        turn->parts = s->last;
        turn->count = 2;
        some = true;
    }
    usage->messages += some;
done:
    return rc;
}

int ic_shorten(ic_shortening *s, ic_call *c, const icae_part *front, size_t front_count,
               ic_turn *turns, size_t count, uint64_t most, ic_usage *usage)
{
    int rc = ICAE_OK;
    uint64_t total = 0, n;
    size_t system = 0, at;
    *s = (ic_shortening){.turns = turns, .count = count};
    for (size_t i = 0; i < front_count; i++)
        IC_TRY(add_front(s, front[i]));
    for (size_t i = 0; i < count; i++) {
        IC_TRY(text_tokens(&n, c, &turns[i]));
        total += n;
    }
    /* messages of the system come first, in their order */
    for (size_t i = 0; i < count; i++)
        if (turns[i].role == IC_SYSTEM) {
            ic_turn one = turns[i];
            memmove(turns + system + 1, turns + system, (i - system) * sizeof *turns);
            turns[system++] = one;
        }
    for (at = system; at + 1 < count; at++) {
        if (total <= most && (at == system || turns[at].role == IC_USER))
            break;
        IC_TRY(text_tokens(&n, c, &turns[at]));
        IC_TRY(move_message(s, c, &turns[at], usage));
        total -= n;
    }
    memmove(turns + system, turns + at, (count - at) * sizeof *turns);
    s->count = count - (at - system);
    if (total > most && s->count > system && turns[s->count - 1].count)
        IC_TRY(cut_last(s, c, &turns[s->count - 1], usage));
done:
    return rc;
}

void ic_shortening_free(ic_shortening *s)
{
    for (size_t i = 0; i < s->made_count; i++)
        icae_slots_free(s->made[i]);
    ic_free(s->made);
    ic_free(s->front);
}
