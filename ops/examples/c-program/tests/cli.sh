#!/bin/sh
# What the program does as a whole: tests/cli.sh PROGRAM
set -eu
ini=$1
failures=0

check() { # NAME WANT GOT
    if [ "$2" = "$3" ]; then
        echo "$1: ok"
    else
        echo "$1: FAILED: want '$2', got '$3'"
        failures=$((failures + 1))
    fi
}

sample='top = 1
[a]
b = two words'

check "list" "top=1 a.b=two words" "$(printf '%s\n' "$sample" | "$ini" list - | tr '\n' ' ' | sed 's/ $//')"
check "get" "two words" "$(printf '%s\n' "$sample" | "$ini" get - a b)"
check "set" "3" "$(printf '%s\n' "$sample" | "$ini" set - a c 3 | "$ini" get - a c)"
code=0; printf '%s\n' "$sample" | "$ini" get - a nothing >/dev/null || code=$?
check "a value that is not there" 1 "$code"
code=0; printf '[\n' | "$ini" list - 2>/dev/null || code=$?
check "a bad file" 2 "$code"
code=0; "$ini" list /does/not/exist 2>/dev/null || code=$?
check "a file that is not there" 3 "$code"
exit "$failures"
