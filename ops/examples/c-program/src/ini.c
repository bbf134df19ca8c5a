#include "ini.h"

#include <stdlib.h>
#include <string.h>

static char *copy(const char *string)
{
    size_t size = strlen(string) + 1;
    return memcpy(text_allocate(NULL, size), string, size);
}

static void line_free(struct ini_line *line)
{
    free(line->raw);
    free(line->name);
    free(line->value);
}

/* Makes room for one line at `at`. */
static struct ini_line *insert(struct ini *ini, size_t at)
{
    ini->lines = text_allocate(ini->lines, (ini->count + 1) * sizeof *ini->lines);
    memmove(ini->lines + at + 1, ini->lines + at, (ini->count - at) * sizeof *ini->lines);
    ini->count++;
    memset(ini->lines + at, 0, sizeof *ini->lines);
    return ini->lines + at;
}

/* Reads one line. Answers NULL, or why it is bad. */
static const char *parse_line(struct ini_line *line, const char *bytes, size_t length)
{
    line->raw = text_allocate(NULL, length + 1);
    memcpy(line->raw, bytes, length);
    line->raw[length] = '\0';

    char *trimmed = text_trimmed(bytes, length);
    const char *why = NULL;
    if (trimmed[0] == '\0' || trimmed[0] == ';' || trimmed[0] == '#') {
        line->kind = INI_OTHER;
    } else if (trimmed[0] == '[') {
        char *end = strchr(trimmed, ']');
        line->kind = INI_SECTION;
        if (end == NULL)
            why = "a section has no `]`";
        else if (end[1] != '\0')
            why = "something follows the `]` of a section";
        else
            line->name = text_trimmed(trimmed + 1, (size_t)(end - trimmed - 1));
    } else {
        char *sign = strchr(trimmed, '=');
        line->kind = INI_ENTRY;
        if (sign == NULL || sign == trimmed) {
            why = "neither a comment, nor a section, nor `key = value`";
        } else {
            line->name = text_trimmed(trimmed, (size_t)(sign - trimmed));
            line->value = text_trimmed(sign + 1, strlen(sign + 1));
        }
    }
    free(trimmed);
    return why;
}

size_t ini_parse(struct ini *ini, const char *text, const char **why)
{
    while (*text != '\0') {
        size_t length = strcspn(text, "\n");
        const char *bad = parse_line(insert(ini, ini->count), text, length);
        if (bad != NULL) {
            *why = bad;
            return ini->count;
        }
        text += length + (text[length] == '\n');
    }
    return 0;
}

/* The index after the last line of the section, with its last entry in `*entry`
 * (or `count`, where the key is not there). Answers `count + 1` for no section. */
static size_t find(const struct ini *ini, const char *section, const char *key, size_t *entry)
{
    int inside = section[0] == '\0';
    size_t end = inside ? 0 : ini->count + 1;
    *entry = ini->count;
    for (size_t at = 0; at < ini->count; at++) {
        const struct ini_line *line = ini->lines + at;
        if (line->kind == INI_SECTION) {
            inside = strcmp(line->name, section) == 0;
            if (inside)
                end = at + 1;
        } else if (inside && line->kind == INI_ENTRY) {
            end = at + 1;
            if (strcmp(line->name, key) == 0)
                *entry = at;
        }
    }
    return end;
}

const char *ini_get(const struct ini *ini, const char *section, const char *key)
{
    size_t entry;
    find(ini, section, key, &entry);
    return entry < ini->count ? ini->lines[entry].value : NULL;
}

static void write_entry(struct ini_line *line, const char *key, const char *value)
{
    struct text raw = {0};
    text_add_string(&raw, key);
    text_add_string(&raw, " = ");
    text_add_string(&raw, value);
    /* `key` may be the line's own name. */
    char *name = copy(key);
    line_free(line);
    *line = (struct ini_line){INI_ENTRY, raw.bytes, name, copy(value)};
}

void ini_set(struct ini *ini, const char *section, const char *key, const char *value)
{
    size_t entry;
    size_t end = find(ini, section, key, &entry);
    if (entry < ini->count) {
        write_entry(ini->lines + entry, key, value);
        return;
    }
    if (end > ini->count) {
        struct text raw = {0};
        text_add_string(&raw, "[");
        text_add_string(&raw, section);
        text_add_string(&raw, "]");
        struct ini_line *line = insert(ini, ini->count);
        *line = (struct ini_line){INI_SECTION, raw.bytes, copy(section), NULL};
        end = ini->count;
    }
    write_entry(insert(ini, end), key, value);
}

size_t ini_remove(struct ini *ini, const char *section, const char *key)
{
    size_t entry, removed = 0;
    for (find(ini, section, key, &entry); entry < ini->count; find(ini, section, key, &entry)) {
        line_free(ini->lines + entry);
        size_t after = ini->count - entry - 1;
        memmove(ini->lines + entry, ini->lines + entry + 1, after * sizeof *ini->lines);
        ini->count--;
        removed++;
    }
    return removed;
}

void ini_write(const struct ini *ini, struct text *text)
{
    text_add_string(text, "");
    for (size_t at = 0; at < ini->count; at++) {
        text_add_string(text, ini->lines[at].raw);
        text_add_string(text, "\n");
    }
}

void ini_free(struct ini *ini)
{
    for (size_t at = 0; at < ini->count; at++)
        line_free(ini->lines + at);
    free(ini->lines);
    ini->lines = NULL;
    ini->count = 0;
}
