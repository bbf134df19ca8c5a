/* What the program can be asked for. */
#ifndef COMMANDS_H
#define COMMANDS_H

/* Runs the command. Answers the exit code: 0 done, 1 not there, 2 bad usage or a
 * bad file, 3 the system said no. */
int command_run(int count, char **words);

#endif
