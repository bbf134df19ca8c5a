use crate::testkit::check;

#[test]
fn one_run_of_a_group_goes_on_and_the_newest_other_waits() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a group=g            -> run-1, dispatch
         1s  admit R2 a group=g            -> run-2, dispatch
         1s  show queue                    -> job-1
         1s  assign job-2 agent-1          -> not job-2: another one has the concurrency group
         2s  admit R3 a group=g            -> run-3, run-2 is cancelled, dispatch
         2s  show why run-2                -> run-3 took its place in line for concurrency group `g`
         2s  show why job-2                -> run-3 took its place in line for concurrency group `g`
         2s  show group g                  -> run-1 run-3
         3s  admit R4 a group=other
         3s  show queue                    -> job-1 job-4
         4s  assign job-1 agent-1
         5s  complete L1 success           -> run-1 is success, dispatch
         5s  show group g                  -> run-3
         5s  show queue                    -> job-3 job-4
         6s  assign job-3 agent-1
         7s  complete L2 success           -> run-3 is success, dispatch
         7s  show group g                  -> free",
    );
}

#[test]
fn a_group_is_the_projects_own() {
    check(
        "0s  admit R1 a group=g
         0s  admit R2 a group=g project=q
         0s  show queue                    -> job-1 job-2",
    );
}

#[test]
fn who_goes_on_is_cancelled_but_holds_the_group_until_its_lease_is_over() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a b group=g
         0s  assign job-1 agent-1
         1s  admit R2 a group=g cancels    -> run-2, cancel L1 agent-1
         1s  show why run-1                -> run-2 cancels what goes on in concurrency group `g`
         1s  show job-2                    -> cancelled cancelled
         1s  show group g                  -> run-1 run-2
         1s  show queue                    ->
         15s expire L1                     -> revoke L1 agent-1, run-1 is cancelled, dispatch
         15s show group g                  -> run-2
         15s show queue                    -> job-3
         16s admit R3 a group=g cancels    -> run-3, run-2 is cancelled, dispatch
         16s show group g                  -> run-3",
    );
}

#[test]
fn an_agent_lost_does_not_free_the_group() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a(group=g)
         0s  admit R2 a(group=g)
         0s  assign job-1 agent-1
         1s  expire L1                     -> revoke L1 agent-1, dispatch
         1s  show queue                    -> job-1
         1s  assign job-1 agent-1
         2s  complete L2 failure user      -> run-1 is failure, dispatch
         2s  show queue                    -> job-2",
    );
}

#[test]
fn jobs_join_their_groups_when_their_run_starts() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 open a(group=g) b
         0s  admit R2 c(group=g)
         0s  show group g                  -> job-3
         1s  append run-1 at=2 seal
         1s  show group g                  -> job-3 job-1
         1s  show queue                    -> job-2 job-3
         2s  cancel run-1 C1               -> run-1 is cancelled
         2s  show group g                  -> job-3",
    );
}

#[test]
fn legs_of_one_matrix_share_a_group_as_any_others_do() {
    check(
        "0s  admit R1 a/0(group=g) a/1(group=g) a/2(group=g)
         0s  show group g                  -> job-1 job-3
         0s  show job-2                    -> cancelled cancelled
         0s  admit R2 a/0(group=h,queues) a/1(group=h,queues) a/2(group=h,queues) a/3(group=h,queues) a/4(group=h,queues)
         0s  show group h                  -> job-4 job-5 job-6 job-7
         0s  show why job-8                -> 3 others wait for concurrency group `h`
         0s  admit R3 b(group=h)
         0s  show group h                  -> job-4 job-9
         0s  show job-7                    -> cancelled cancelled",
    );
}

#[test]
fn a_later_job_of_a_run_joins_when_it_is_planned() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 more a(needed)
         0s  admit R2 b(group=g)
         0s  assign job-1 agent-1
         1s  complete L1 success                   -> plan run-1 r0, dispatch
         2s  extend run-1 seen=1 c(group=g)        -> dispatch
         2s  show group g                          -> job-2 job-3
         3s  assign job-2 agent-1
         4s  complete L2 success                   -> run-2 is success, dispatch
         4s  show queue                            -> job-3",
    );
}

#[test]
fn a_run_that_wants_twice_what_it_has_is_cancelled() {
    check(
        "0s  admit R1 a(group=g) group=g           -> run-1, run-1 is cancelled
         0s  show why run-1                        -> a job of it waits for concurrency group `g`, which it has
         0s  show group g                          -> free",
    );
}

#[test]
fn the_younger_of_two_runs_that_wait_for_each_other_is_cancelled() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 more a(needed) group=g
         0s  admit R2 more b(needed) group=h
         0s  assign job-1 agent-1 job-2 agent-1
         1s  complete L1 success                   -> plan run-1 r0
         2s  extend run-1 seen=1 c(group=h)        -> nothing
         2s  show group h                          -> run-2 job-3
         3s  complete L2 success                   -> plan run-2 r0
         4s  extend run-2 seen=1 d(group=g)        -> run-2 is cancelled, dispatch
         4s  show why run-2                        -> deadlock at concurrency group `g`: it and run-1 wait for each other
         4s  show group g                          -> run-1
         4s  show queue                            -> job-3",
    );
}

#[test]
fn the_younger_run_of_a_cycle_goes_also_where_the_older_one_closes_it() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 more a(needed) group=g
         0s  admit R2 b(group=g) c group=h
         0s  assign job-1 agent-1 job-3 agent-1
         1s  complete L1 success                   -> plan run-1 r0
         2s  extend run-1 seen=1 d(group=h)        -> cancel L2 agent-1
         2s  show group h                          -> run-2 job-4
         2s  show group g                          -> run-1
         3s  complete L2 cancelled                 -> run-2 is cancelled, dispatch
         3s  show queue                            -> job-4",
    );
}

#[test]
fn a_cancel_while_waiting_ends_the_run_at_once() {
    check(
        "0s  admit R1 a group=g
         0s  admit R2 more a group=g
         1s  cancel run-2 C1                       -> run-2 is cancelled
         1s  show group g                          -> run-1
         2s  cancel run-1 C2                       -> run-1 is cancelled
         2s  show group g                          -> free",
    );
}
