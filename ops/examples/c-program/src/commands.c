#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ini.h"
#include "version.h"

static const char usage[] =
    "ini " VERSION ": reads and changes INI files\n"
    "\n"
    "  ini list FILE                       every entry as SECTION.KEY=VALUE\n"
    "  ini get FILE SECTION KEY            the value\n"
    "  ini set FILE SECTION KEY VALUE      the file, changed, on standard output\n"
    "  ini remove FILE SECTION KEY         likewise\n"
    "\n"
    "FILE may be -, and SECTION may be \"\" for what stands before the first one.\n";

static int read_file(const char *path, struct ini *ini)
{
    int standard = strcmp(path, "-") == 0;
    FILE *stream = standard ? stdin : fopen(path, "r");
    if (stream == NULL) {
        fprintf(stderr, "ini: %s: %s\n", path, strerror(errno));
        return 3;
    }
    struct text text = {0};
    int failed = text_read(&text, stream);
    if (!standard)
        fclose(stream);
    int code = 0;
    const char *why = NULL;
    if (failed) {
        fprintf(stderr, "ini: %s: cannot be read\n", path);
        code = 3;
    } else {
        size_t line = ini_parse(ini, text.bytes, &why);
        if (line > 0) {
            fprintf(stderr, "%s:%zu: %s\n", path, line, why);
            code = 2;
        }
    }
    text_free(&text);
    return code;
}

static int print_file(const struct ini *ini)
{
    struct text text = {0};
    ini_write(ini, &text);
    size_t written = fwrite(text.bytes, 1, text.length, stdout);
    int code = written == text.length && fflush(stdout) == 0 ? 0 : 3;
    text_free(&text);
    return code;
}

static void list(const struct ini *ini)
{
    const char *section = "";
    for (size_t at = 0; at < ini->count; at++) {
        const struct ini_line *line = ini->lines + at;
        if (line->kind == INI_SECTION)
            section = line->name;
        else if (line->kind == INI_ENTRY)
            printf("%s%s%s=%s\n", section, section[0] ? "." : "", line->name, line->value);
    }
}

static int run_on(struct ini *ini, int count, char **words)
{
    const char *verb = words[1];
    if (strcmp(verb, "list") == 0 && count == 3) {
        list(ini);
        return 0;
    }
    if (strcmp(verb, "get") == 0 && count == 5) {
        const char *value = ini_get(ini, words[3], words[4]);
        if (value != NULL)
            puts(value);
        return value != NULL ? 0 : 1;
    }
    if (strcmp(verb, "set") == 0 && count == 6) {
        ini_set(ini, words[3], words[4], words[5]);
        return print_file(ini);
    }
    if (strcmp(verb, "remove") == 0 && count == 5)
        return ini_remove(ini, words[3], words[4]) > 0 ? print_file(ini) : 1;
    fputs(usage, stderr);
    return 2;
}

int command_run(int count, char **words)
{
    if (count == 2 && strcmp(words[1], "--help") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (count < 3) {
        fputs(usage, stderr);
        return 2;
    }
    struct ini ini = {0};
    int code = read_file(words[2], &ini);
    if (code == 0)
        code = run_on(&ini, count, words);
    ini_free(&ini);
    return code;
}
