/* An INI file that can be changed without losing its comments, its order or its
 * blank lines. Keys before the first section are in the section "". */
#ifndef INI_H
#define INI_H

#include <stddef.h>

#include "text.h"

enum ini_kind { INI_OTHER, INI_SECTION, INI_ENTRY };

struct ini_line {
    enum ini_kind kind;
    char *raw;   /* as it was written, without its end */
    char *name;  /* of a section, or the key of an entry */
    char *value; /* of an entry */
};

struct ini {
    struct ini_line *lines;
    size_t count;
};

/* Reads the text. Answers 0, or the number of the first bad line, with `why` set. */
size_t ini_parse(struct ini *ini, const char *text, const char **why);

/* The value, or NULL where there is none. Of several the last one counts. */
const char *ini_get(const struct ini *ini, const char *section, const char *key);

/* Changes the value, or adds it at the end of its section, or adds the section. */
void ini_set(struct ini *ini, const char *section, const char *key, const char *value);

/* Takes the value away. Answers how many entries there were. */
size_t ini_remove(struct ini *ini, const char *section, const char *key);

/* The file as it now is. */
void ini_write(const struct ini *ini, struct text *text);

void ini_free(struct ini *ini);

#endif
