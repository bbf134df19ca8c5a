#include "text.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

void *text_allocate(void *old, size_t size)
{
    void *new = realloc(old, size);
    if (new == NULL) {
        fputs("ini: out of memory\n", stderr);
        exit(3);
    }
    return new;
}

void text_add(struct text *text, const char *bytes, size_t length)
{
    size_t needed = text->length + length + 1;
    if (needed > text->room) {
        text->room = needed * 2;
        text->bytes = text_allocate(text->bytes, text->room);
    }
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    text->bytes[text->length] = '\0';
}

void text_add_string(struct text *text, const char *string)
{
    text_add(text, string, strlen(string));
}

void text_free(struct text *text)
{
    free(text->bytes);
    text->bytes = NULL;
    text->length = text->room = 0;
}

int text_read(struct text *text, FILE *stream)
{
    char part[4096];
    size_t length;
    while ((length = fread(part, 1, sizeof part, stream)) > 0)
        text_add(text, part, length);
    if (text->bytes == NULL)
        text_add_string(text, "");
    return ferror(stream) ? -1 : 0;
}

char *text_trimmed(const char *bytes, size_t length)
{
    while (length > 0 && isspace((unsigned char)bytes[0])) {
        bytes++;
        length--;
    }
    while (length > 0 && isspace((unsigned char)bytes[length - 1]))
        length--;
    char *copy = text_allocate(NULL, length + 1);
    memcpy(copy, bytes, length);
    copy[length] = '\0';
    return copy;
}
