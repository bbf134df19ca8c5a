use crate::testkit::check;

#[test]
fn an_expired_lease_cannot_report() {
    check(
        "0s   agent A1
         0s   agent A2
         0s   admit R1 a
         0s   assign job-1 agent-1           -> offer L1 agent-1 job-1#1
         0s   assign job-1 agent-2           -> not job-1: job is not waiting for an agent
         15s  expire L1                      -> revoke L1 agent-1, dispatch
         15s  expire L1                      -> nothing
         16s  complete L1 success            -> ! lease is not held under this epoch
         16s  release L1 preempted started   -> ! lease is not held under this epoch
         16s  artifact L1 bin                -> ! lease is not held under this epoch
         16s  claim L1 X                     -> ! lease is not held under this epoch
         17s  assign job-1 agent-2           -> offer L2 agent-2 job-1#2
         18s  complete L1 success            -> ! lease is not held under this epoch
         19s  complete L2 success            -> run-1 is success",
    );
}

#[test]
fn a_job_that_loses_every_agent_ends() {
    check(
        "0s  agent A1
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  expire L1                  -> revoke L1 agent-1, dispatch
         1s  assign job-1 agent-1
         2s  release L2 preempted started -> dispatch
         2s  assign job-1 agent-1
         3s  complete L3 failure cache  -> dispatch
         3s  assign job-1 agent-1
         4s  complete L4 failure image_pull -> dispatch
         4s  assign job-1 agent-1
         5s  agent A1                   -> revoke L5 agent-1, agent-1 incarnation-2, dispatch
         5s  assign job-1 agent-1
         6s  expire L6                  -> revoke L6 agent-1, run-1 is failure
         6s  show job-1                 -> failure agent_lost",
    );
}

#[test]
fn what_was_never_started_is_given_back_for_free() {
    check(
        "0s  agent A1
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  release L1 preempted   -> dispatch
         1s  assign job-1 agent-1
         2s  release L2 preempted   -> dispatch
         2s  assign job-1 agent-1
         3s  release L3 preempted   -> dispatch
         3s  assign job-1 agent-1
         4s  release L4 preempted   -> dispatch
         4s  assign job-1 agent-1
         5s  release L5 preempted   -> dispatch
         5s  assign job-1 agent-1
         6s  release L6 preempted   -> dispatch
         6s  assign job-1 agent-1   -> offer L7 agent-1 job-1#7",
    );
}

#[test]
fn a_users_failure_is_not_tried_again() {
    check(
        "0s  agent A1
         0s  admit R1 a
         0s  admit R2 a
         0s  assign job-1 agent-1
         1s  complete L1 failure oom       -> run-1 is failure, dispatch
         1s  assign job-2 agent-1
         2s  release L2 timeout started    -> run-2 is failure
         2s  show job-2                    -> failure timeout",
    );
}

#[test]
fn a_retried_job_is_at_the_head_of_its_queue() {
    check(
        "0s  agent A1
         0s  admit R1 a
         1s  admit R2 a
         2s  admit R3 a priority=5
         2s  show queue           -> job-3 job-1 job-2
         3s  assign job-1 agent-1
         4s  admit R4 a
         5s  expire L1
         5s  show queue           -> job-3 job-1 job-2 job-4",
    );
}

#[test]
fn an_assignment_is_checked_when_it_is_applied() {
    check(
        "0s  agent A1 slots=2 cpu=2000 mem=100 on=linux
         0s  agent A2
         0s  admit R1 a(cpu=1500,on=linux) b(cpu=501) c(mem=101) d(on=linux+gpu) e(cpu=500) f
         1s  assign job-1 agent-1         -> offer L1 agent-1 job-1#1
         1s  assign job-2 agent-1         -> not job-2: agent has no room
         1s  assign job-3 agent-1         -> not job-3: agent has no room
         1s  assign job-4 agent-1         -> not job-4: agent lacks label `gpu`
         1s  assign job-5 agent-9         -> not job-5: agent is not known
         1s  assign job-9 agent-1         -> not job-9: job is not waiting for an agent
         2s  assign job-5 agent-1 job-6 agent-1 -> offer L2 agent-1 job-5#1, not job-6: agent has no room
         3s  retire-agent agent-2
         3s  assign job-6 agent-2         -> not job-6: agent has left and takes no more work",
    );
}

#[test]
fn no_more_legs_run_than_the_matrix_allows() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a/0(max=2) a/1(max=2) a/2(max=2)
         0s  show place agent-1        -> job-1 agent-1, job-2 agent-1
         1s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1 -> offer L1 agent-1 job-1#1, offer L2 agent-1 job-2#1, not job-3: key of the job runs as many legs as it may
         1s  show place agent-1        ->
         2s  complete L2 success       -> dispatch
         2s  show place agent-1        -> job-3 agent-1
         3s  assign job-3 agent-1      -> offer L3 agent-1 job-3#1",
    );
}

#[test]
fn a_failure_of_the_users_own_is_tried_again_as_often_as_the_pipeline_says() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a(retry=2) b
         0s  assign job-1 agent-1
         1s  complete L1 failure user   -> dispatch
         1s  assign job-1 agent-1       -> offer L2 agent-1 job-1#2
         2s  expire L2                  -> revoke L2 agent-1, dispatch
         2s  assign job-1 agent-1
         3s  complete L3 failure timeout -> dispatch
         3s  assign job-1 agent-1
         4s  complete L4 failure oom    -> dispatch
         4s  show job-1                 -> failure oom",
    );
}

#[test]
fn a_cancelled_job_and_one_that_can_never_run_are_not_tried_again() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a(retry=2) b(retry=2)
         0s  assign job-1 agent-1 job-2 agent-1
         1s  complete L1 failure config
         1s  show job-1                 -> failure config
         2s  cancel run-1 C1            -> cancel L2 agent-1
         3s  complete L2 failure user   -> run-1 is failure",
    );
}
