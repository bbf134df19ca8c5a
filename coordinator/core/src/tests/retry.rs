use crate::testkit::check;

#[test]
fn a_run_goes_on_from_what_failed() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 more a(needed) b(needed)
         0s  assign job-1 agent-1 job-2 agent-1
         1s  retry run-1 Q1                          -> ! run still goes on
         1s  complete L1 success                     -> plan run-1 r0
         1s  complete L2 failure user                -> nothing
         2s  extend run-1 seen=2 c(skipped) d(needed) more -> dispatch
         2s  assign job-4 agent-1
         3s  complete L3 success                     -> plan run-1 r1
         3s  extend run-1 r=1 seen=3                 -> run-1 is failure
         4s  retry run-1 Q1 c r=1                    -> ! plan is of revision 1, the run is at 2
         4s  retry run-1 Q1 c                        -> plan run-1 r3, dispatch
         4s  retry run-1 Q1 c                        -> nothing
         4s  show run-1                              -> open
         4s  show queue                              -> job-2
         4s  show job-1                              -> success
         4s  show job-3                              -> gone
         4s  show attempts job-2                     -> #1 user
         5s  extend run-1 r=3 seen=2 more            -> nothing
         6s  assign job-2 agent-1                    -> offer L4 agent-1 job-2#2
         7s  complete L4 success                     -> plan run-1 r4
         7s  extend run-1 r=4 seen=3 c               -> dispatch
         8s  assign job-5 agent-1
         9s  complete L5 success                     -> run-1 is success
         9s  retry run-1 Q2                          -> ! nothing of the run failed or was cancelled
         9s  retry run-9 Q3                          -> ! run is not known",
    );
}

#[test]
fn a_cancelled_run_goes_on_as_if_nothing_had_been_said() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a/0(fast) a/1(fast,max=1) b(failed) group=g
         0s  admit R2 c group=g
         1s  cancel run-1 C1                   -> run-1 is failure, dispatch
         2s  retry run-1 Q1                    -> plan run-1 r2, dispatch
         2s  show group g                      -> run-2 run-1
         2s  show job-3                        -> gone
         3s  extend run-1 r=2 b                -> dispatch
         3s  show queue                        -> job-4
         4s  assign job-4 agent-1
         5s  complete L1 success               -> run-2 is success, dispatch
         5s  show queue                        -> job-1 job-2 job-5
         6s  cancel run-1 C2                   -> run-1 is cancelled",
    );
}

#[test]
fn a_retry_with_nothing_left_to_plan_ends_with_its_jobs() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  artifact L1 bin
         1s  complete L1 failure user      -> run-1 is failure
         2s  retry run-1 Q1                -> plan run-1 r1, dispatch
         2s  assign job-1 agent-1
         3s  complete L2 success           -> nothing
         3s  show run-1                    -> open
         4s  extend run-1 r=1              -> run-1 is success",
    );
}

#[test]
fn a_late_result_is_remembered_and_a_doubled_one_is_not() {
    check(
        "0s   agent A1
         0s   agent A2
         0s   admit R1 a
         0s   assign job-1 agent-1
         15s  expire L1
         15s  show attempts job-1          -> #1 agent_lost
         16s  complete L1 success          -> ! lease is not held under this epoch
         16s  late L1 success
         16s  show stale job-1             -> 1 #1 success
         17s  assign job-1 agent-2
         18s  late L2 success              -> ! result does not come too late
         18s  late L1 failure user
         18s  show stale job-1             -> 2 #1 failure
         19s  complete L2 success
         19s  late L2 success              -> ! result does not come too late
         19s  late L9 success              -> ! job is not known
         20s  retire run-1
         20s  show stale job-1             -> none",
    );
}

#[test]
fn of_many_attempts_the_last_are_remembered() {
    check(
        "0s  agent A1
         0s  admit R1 a(retry=9)
         1s  assign job-1 agent-1
         1s  complete L1 failure user
         2s  assign job-1 agent-1
         2s  complete L2 failure oom
         3s  assign job-1 agent-1
         3s  complete L3 failure timeout
         4s  assign job-1 agent-1
         4s  release L4 preempted started
         4s  show attempts job-1           -> #2 oom, #3 timeout, #4 preempted",
    );
}
