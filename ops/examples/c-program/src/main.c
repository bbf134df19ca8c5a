#include "commands.h"

int main(int count, char **words)
{
    return command_run(count, words);
}
