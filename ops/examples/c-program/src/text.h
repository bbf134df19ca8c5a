/* Text that grows, and the few things done to it. */
#ifndef TEXT_H
#define TEXT_H

#include <stddef.h>
#include <stdio.h>

struct text {
    char *bytes; /* always ends with NUL, once anything was added */
    size_t length;
    size_t room;
};

/* Add to the text. Out of memory ends the program. */
void text_add(struct text *text, const char *bytes, size_t length);
void text_add_string(struct text *text, const char *string);
void text_free(struct text *text);

/* The whole stream. Answers 0, or -1 where it cannot be read. */
int text_read(struct text *text, FILE *stream);

/* A copy of the bytes without spaces around them; to be freed by the caller. */
char *text_trimmed(const char *bytes, size_t length);

/* Memory, or the end of the program. */
void *text_allocate(void *old, size_t size);

#endif
