/* What the library promises. Prints one line per case; exits with the number of failures. */
#include <stdio.h>
#include <string.h>

#include "../src/ini.h"

static int failures;

static void check(const char *name, int good)
{
    printf("%s: %s\n", name, good ? "ok" : "FAILED");
    failures += !good;
}

static const char sample[] =
    "; who\n"
    "name = top\n"
    "\n"
    "[server]\n"
    "port = 80\n"
    "  host=example.org  \n"
    "# the end\n";

static struct ini parsed(const char *text)
{
    struct ini ini = {0};
    const char *why = NULL;
    if (ini_parse(&ini, text, &why) != 0)
        check(why, 0);
    return ini;
}

static int equals(const char *one, const char *other)
{
    return one != NULL && strcmp(one, other) == 0;
}

static void check_written(const char *name, struct ini *ini, const char *want)
{
    struct text text = {0};
    ini_write(ini, &text);
    check(name, equals(text.bytes, want));
    text_free(&text);
}

static void check_bad(const char *name, const char *text, size_t line)
{
    struct ini ini = {0};
    const char *why = NULL;
    check(name, ini_parse(&ini, text, &why) == line && why != NULL);
    ini_free(&ini);
}

int main(void)
{
    struct ini ini = parsed(sample);
    check("a key before the sections is found", equals(ini_get(&ini, "", "name"), "top"));
    check("spaces around a value are not part of it",
          equals(ini_get(&ini, "server", "host"), "example.org"));
    check("a key is looked for in its section only", ini_get(&ini, "server", "name") == NULL);
    check_written("a file that is not changed is written as it was", &ini, sample);

    ini_set(&ini, "server", "port", "8080");
    ini_set(&ini, "server", "tls", "on");
    ini_set(&ini, "client", "retries", "3");
    check_written("a change keeps comments, order and blank lines", &ini,
                  "; who\nname = top\n\n[server]\nport = 8080\n  host=example.org  \n"
                  "tls = on\n# the end\n[client]\nretries = 3\n");
    check("a removed key is gone", ini_remove(&ini, "server", "tls") == 1 &&
                                       ini_get(&ini, "server", "tls") == NULL);
    ini_free(&ini);

    ini = parsed("a = 1\na = 2\n");
    check("of two values the last one counts", equals(ini_get(&ini, "", "a"), "2"));
    check("both are removed", ini_remove(&ini, "", "a") == 2);
    ini_free(&ini);

    check_bad("a section without its end is bad", "a = 1\n[server\n", 2);
    check_bad("a word alone is bad", "word\n", 1);
    check_bad("a value without key is bad", "= 1\n", 1);
    return failures;
}
