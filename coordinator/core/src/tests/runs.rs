use crate::testkit::check;

#[test]
fn a_run_goes_from_its_admission_to_its_end() {
    check(
        "0s  agent A1                             -> agent-1 incarnation-1
         0s  admit R1 build                       -> run-1, dispatch
         0s  show run-1                           -> open
         1s  assign job-1 agent-1                 -> offer L1 agent-1 job-1#1
         2s  complete L1 success                  -> run-1 is success
         3s  complete L1 success                  -> ! lease is not held under this epoch
         3s  show job-1                           -> success
         3s  show outstanding                     -> nothing",
    );
}

#[test]
fn a_repeated_submission_has_one_effect() {
    check(
        "0s  admit R1 build               -> run-1, dispatch
         1s  admit R1 build               -> run-1 again
         1s  admit R1 build body=other    -> ! request id was used with another body
         1s  admit R1 build by=you        -> run-2, dispatch
         1s  admit R1 build project=q     -> run-3, dispatch
         2s  show queue                   -> job-1 job-2 job-3
         25h admit R1 build body=other    -> run-4, dispatch",
    );
}

#[test]
fn a_full_table_of_requests_refuses_until_old_ones_expire() {
    check(
        "0s  admit R1
         0s  admit R2
         0s  admit R3
         0s  admit R4
         0s  admit R5
         0s  admit R6
         0s  admit R7
         1h  admit R8  -> run-8, run-8 is success
         1h  admit R9  -> ! too many request ids are remembered
         1h  admit R8  -> run-8 again
         24h admit R9  -> run-9, run-9 is success",
    );
}

#[test]
fn nothing_of_a_run_starts_before_it_is_sealed() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 open a b             -> run-1
         0s  show queue                    ->
         0s  assign job-1 agent-1          -> not job-1: run is not sealed
         1s  append run-1 at=1 c           -> ! chunk begins at job 1, the run has 2
         1s  append run-1 at=2 c           -> nothing
         1s  append run-1 at=2 c           -> ! chunk begins at job 2, the run has 3
         1s  extend run-1 d                -> ! run is not sealed
         2s  append run-1 at=3 d seal      -> dispatch
         2s  append run-1 at=4 e           -> ! run is already sealed
         2s  show queue                    -> job-1 job-2 job-3 job-4
         3s  append run-9 at=0 e           -> ! run is not known",
    );
}

#[test]
fn a_key_is_in_a_run_once() {
    check(
        "0s  admit R1 a/0 a/0              -> ! job key `a` is in the run already
         0s  admit R1 a/0 a/1              -> run-1, dispatch
         0s  show queue                    -> job-1 job-2",
    );
}

#[test]
fn the_end_of_a_needed_job_leaves_a_plan_due() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 more a(needed) b(needed) c  -> run-1, dispatch
         1s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1
         2s  complete L1 success                  -> plan run-1 r0
         2s  show outstanding                     -> offer L2 agent-1 job-2#1, offer L3 agent-1 job-3#1, plan run-1 r0
         3s  complete L2 success                  -> nothing
         4s  extend run-1 r=0 seen=1 d more       -> plan run-1 r1, dispatch
         4s  extend run-1 r=0 seen=1 d more       -> ! plan is of revision 0, the run is at 1
         5s  extend run-1 r=1 seen=3              -> ! a limit is exceeded: number of ended jobs seen is 3, at most 2
         5s  extend run-1 r=1 seen=2 e            -> dispatch
         5s  extend run-1 r=2 seen=2 f            -> ! every job of the run is planned already
         6s  assign job-4 agent-1 job-5 agent-1
         7s  complete L3 success
         7s  complete L4 success
         7s  complete L5 success                  -> run-1 is success",
    );
}

#[test]
fn a_plan_that_saw_every_end_leaves_none_due() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 more a(needed) b(needed)
         0s  assign job-1 agent-1 job-2 agent-1
         1s  complete L1 success                  -> plan run-1 r0
         2s  extend run-1 r=0 seen=1 more         -> nothing
         2s  show outstanding                     -> offer L2 agent-1 job-2#1
         3s  complete L2 success                  -> plan run-1 r1
         4s  extend run-1 r=1 seen=1 more         -> plan run-1 r2
         5s  extend run-1 r=2 seen=2              -> run-1 is success",
    );
}

#[test]
fn skipped_and_impossible_jobs_are_done_at_once() {
    check(
        "0s  admit R1 a(skipped) b(skipped)    -> run-1, run-1 is success
         0s  show job-1                        -> skipped
         1s  admit R2 a(failed)                -> run-2, run-2 is failure
         1s  show job-3                        -> failure config
         2s  admit R3 more a(skipped,needed)   -> run-3, plan run-3 r0
         3s  extend run-3 r=0 seen=1 b(skipped,needed) more -> plan run-3 r1
         4s  extend run-3 r=1 seen=2           -> run-3 is success",
    );
}

#[test]
fn an_empty_first_plan_is_followed_by_another_and_a_stuck_one_fails() {
    check(
        "0s  admit R1 more              -> run-1, plan run-1 r0
         1s  extend run-1 r=0 more      -> run-1 is failure
         2s  admit R2                   -> run-2, run-2 is success",
    );
}

#[test]
fn the_rest_of_a_plan_that_came_in_part_is_asked_for() {
    check(
        "0s  agent A1
         0s  admit R1 more                        -> run-1, plan run-1 r0
         1s  extend run-1 r=0 a more              -> dispatch
         1s  assign job-1 agent-1
         2s  complete L1 success                  -> plan run-1 r1
         3s  extend run-1 r=1 b(skipped) more     -> plan run-1 r2
         4s  extend run-1 r=2                     -> run-1 is success",
    );
}

#[test]
fn a_failure_fails_the_run_unless_its_job_may_fail() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a b
         0s  admit R2 a(coe)
         0s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1
         1s  complete L1 failure user      -> nothing
         2s  complete L2 success           -> run-1 is failure
         3s  complete L3 failure user      -> run-2 is success",
    );
}

#[test]
fn a_failing_leg_ends_the_others() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 more a/0(fast) a/1(fast) a/2(fast) b(needed)
         0s  assign job-1 agent-1 job-2 agent-1
         1s  complete L1 failure user      -> cancel L2 agent-1, dispatch
         1s  show job-2                    -> L2 cancelling
         1s  show job-3                    -> cancelled cancelled
         1s  show queue                    -> job-4
         2s  assign job-4 agent-1
         3s  complete L3 success           -> plan run-1 r0
         4s  extend run-1 r=0 seen=1 a/3(fast) a/4  -> dispatch
         4s  show job-5                    -> cancelled cancelled
         4s  show job-6                    -> queued
         5s  complete L2 cancelled cancelled
         6s  assign job-6 agent-1
         7s  complete L4 success           -> run-1 is failure",
    );
}

#[test]
fn a_failing_leg_that_may_fail_ends_nothing() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a/0(fast,coe) a/1(fast)
         0s  assign job-1 agent-1
         1s  complete L1 failure user      -> dispatch
         1s  show job-2                    -> queued",
    );
}

#[test]
fn a_cancel_ends_queued_jobs_and_asks_leased_ones() {
    check(
        "0s  agent A1
         0s  admit R1 a b
         0s  assign job-1 agent-1
         1s  cancel run-1 C1                 -> cancel L1 agent-1
         1s  cancel run-1 C1                 -> nothing
         1s  cancel run-1 C2                 -> nothing
         1s  cancel run-1 C2 body=other      -> ! request id was used with another body
         1s  show outstanding                -> offer L1 agent-1 job-1#1, cancel L1 agent-1
         2s  show job-2                      -> cancelled cancelled
         3s  complete L1 cancelled cancelled -> run-1 is cancelled
         4s  cancel run-1 C1                 -> nothing
         4s  cancel run-1 C3                 -> ! run has ended
         4s  cancel run-2 C4                 -> ! run is not known",
    );
}

#[test]
fn a_cancel_makes_a_plan_that_knew_nothing_of_it_stale() {
    check(
        "0s  agent A1
         0s  admit R1 more a(needed)
         0s  assign job-1 agent-1
         1s  complete L1 success                    -> plan run-1 r0
         2s  cancel run-1 C1                        -> plan run-1 r1
         3s  extend run-1 r=0 seen=1 b              -> ! plan is of revision 0, the run is at 1
         3s  extend run-1 r=1 seen=1 b(skipped) always -> dispatch
         3s  show queue                             -> job-3
         4s  assign job-3 agent-1
         5s  complete L2 success                    -> run-1 is cancelled",
    );
}

#[test]
fn a_cancelled_run_that_was_never_sealed_ends_at_once() {
    check(
        "0s  admit R1 open more a b        -> run-1
         1s  cancel run-1 C1               -> run-1 is cancelled
         2s  append run-1 at=2 c seal      -> ! run has ended",
    );
}

#[test]
fn a_silent_agents_cancelled_job_ends_with_its_lease() {
    check(
        "0s  agent A1
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  cancel run-1 C1             -> cancel L1 agent-1
         9s  expire L1                   -> revoke L1 agent-1, run-1 is cancelled
         9s  show job-1                  -> cancelled cancelled",
    );
}

#[test]
fn ended_runs_and_abandoned_ones_are_forgotten() {
    check(
        "0s  agent A1
         0s  admit R1 a(skipped) b(fast,skipped)
         0s  admit R2 a
         0s  admit R3 open a
         1s  show retirable                   ->
         1s  retire run-1 run-2 run-3 run-9   -> nothing
         1s  show run-1                       -> gone
         1s  show job-1                       -> gone
         1s  show run-2                       -> open
         1s  show run-3                       -> unsealed
         1s  admit R1                         -> run-1 again
         25h agent A1                         -> agent-1 incarnation-2, dispatch
         25h show retirable                   -> run-3
         25h retire run-3
         25h show run-3                       -> gone
         25h show queue                       -> job-3",
    );
}
