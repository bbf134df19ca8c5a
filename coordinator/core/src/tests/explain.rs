use crate::testkit::check;

#[test]
fn a_job_that_nobody_could_run_says_what_is_missing_and_is_given_up() {
    check(
        "0s  admit R1 a(on=gpu) b(on=linux+mac) c(cpu=5000) d(spot=only) e
         0s  show wait job-1      -> no agent is known
         0s  agent A1 on=linux cpu=4000
         0s  agent A2 on=mac cpu=2000
         0s  show wait job-1      -> no agent has label `gpu`; known labels: linux, mac
         0s  show wait job-2      -> no agent has all of its labels: linux, mac
         0s  show wait job-3      -> no agent with its labels has 5000 millicores and 0 MiB; the largest has 4000 millicores and 1000000 MiB
         0s  show wait job-4      -> `spot: only`, and no agent with its labels is a spot machine
         0s  show wait job-5      -> the agents that could run it are not connected: A1, A2
         9s  agent A3 on=gpu
         9s  give-up job-1 job-2 job-3 job-5 job-9
         9s  show job-1           -> queued
         9s  show job-2           -> failure config
         9s  show why job-2       -> it waited too long: no agent has all of its labels: linux, mac
         9s  show job-5           -> queued
         9s  show wait job-2      -> it does not wait",
    );
}

#[test]
fn a_job_in_line_says_who_is_ahead() {
    check(
        "0s  agent A1
         0s  admit R1 a b c
         0s  show wait job-1 agent-1   -> an agent has room; it is about to be placed
         0s  show wait job-1 agent-1 declined agent-1 -> the agents that have room declined what they were offered: A1 (no disk)
         0s  assign job-1 agent-1
         0s  show wait job-1 agent-1   -> it does not wait
         0s  show wait job-2 agent-1   -> all 1 agents that could run it are full; it is the next in line
         0s  show wait job-3 agent-1   -> all 1 agents that could run it are full; 1 jobs are ahead, first job-2
         1s  cordon A1
         1s  show wait job-3 agent-1   -> the agents that could run it take no work (cordoned, draining or leaving): A1
         2s  uncordon A1
         2s  complete L1 success
         2s  retire-agent agent-1
         2s  show wait job-3 agent-1   -> the agents that could run it are not connected: A1",
    );
}

#[test]
fn a_job_behind_a_lock_says_whose_it_is() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a group=g
         0s  admit R2 a group=g
         0s  admit R3 a/0(max=1) a/1(max=1) b(group=h) c(group=h,queues)
         0s  admit R4 open d
         0s  show wait job-2 agent-1   -> the run's concurrency group `g` is held by run-1 (ci)
         0s  show wait job-6 agent-1   -> concurrency group `h` is held by job-5 (b of run-3)
         0s  show wait job-7 agent-1   -> its run is still being submitted
         0s  assign job-3 agent-1
         0s  show wait job-4 agent-1   -> as many legs of its matrix run as `max-parallel` allows: 1",
    );
}
