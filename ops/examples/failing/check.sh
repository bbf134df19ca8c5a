#!/bin/sh
# Prints what a failing test prints, and fails.
for number in 1 2 3; do
    echo "case $number: ok"
done
echo "::error file=check.sh,line=9,title=case 4::want 4, got 5"
echo "case 4: want 4, got 5" >&2
exit 7
