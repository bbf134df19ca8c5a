use crate::testkit::check;

#[test]
fn jobs_spread_over_the_agents_with_most_room() {
    check(
        "0s  agent A1 slots=2
         0s  agent A2 slots=3
         0s  admit R1 a b c d e f
         0s  show place agent-1 agent-2   -> job-1 agent-2, job-2 agent-1, job-3 agent-2, job-4 agent-1, job-5 agent-2
         0s  show place agent-1           -> job-1 agent-1, job-2 agent-1
         0s  show place                   ->",
    );
}

#[test]
fn labels_and_resources_must_fit_and_nothing_waits_behind_what_does_not() {
    check(
        "0s  agent A1 slots=9 cpu=1000 on=linux
         0s  agent A2 slots=9 cpu=4000 on=linux+gpu
         0s  admit R1 a(on=mac) b(cpu=5000) c(cpu=2000) d(on=gpu,cpu=2000) e(cpu=900) f(cpu=500)
         0s  show place agent-1 agent-2   -> job-3 agent-2, job-4 agent-2, job-5 agent-1",
    );
}

#[test]
fn priority_goes_before_age() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a
         1s  admit R2 a priority=1
         2s  admit R3 a(cpu=1) priority=2
         3s  show place agent-1   -> job-3 agent-1, job-2 agent-1",
    );
}

#[test]
fn a_large_job_is_not_passed_by_for_ever() {
    check(
        "0s   agent A1 slots=9 cpu=4000
         0s   agent A2 slots=9 cpu=2000
         0s   admit R1 a(cpu=1000) b(cpu=1000)
         0s   assign job-1 agent-1 job-2 agent-1
         0s   admit R2 large(cpu=4000) other(cpu=9000)
         1s   admit R3 c(cpu=1000) d(cpu=1000) e(cpu=1000) f(cpu=1000)
         1s   show place agent-1 agent-2   -> job-5 agent-2, job-6 agent-2, job-7 agent-1, job-8 agent-1
         119s agent A3 slots=1 cpu=500
         119s show place agent-1           -> job-5 agent-1, job-6 agent-1
         120s agent A3 slots=1 cpu=500
         120s show place agent-1 agent-2   -> job-5 agent-2, job-6 agent-2
         120s show place agent-2           -> job-5 agent-2, job-6 agent-2
         121s complete L1 success
         121s show place agent-1           ->
         122s complete L2 success
         122s show place agent-1 agent-2   -> job-3 agent-1, job-5 agent-2, job-6 agent-2",
    );
}

#[test]
fn a_job_has_a_priority_of_its_own_and_nothing_waits_for_ever() {
    check(
        "0s   agent A1 slots=1
         0s   admit R1 a(prio=-3) b
         0s   show place agent-1   -> job-2 agent-1
         181s admit R2 c d(prio=1)
         181s show queue           -> job-2 job-4 job-1 job-3",
    );
}

#[test]
fn spot_machines_are_for_those_who_want_them() {
    check(
        "0s  agent A1 slots=1 pool=spot spot
         0s  agent A2 slots=3 pool=steady
         0s  admit R1 a(spot=never) b(spot=only) c(spot=only) d(spot=prefer) e
         0s  show place agent-1 agent-2 -> job-1 agent-2, job-2 agent-1, job-4 agent-2, job-5 agent-2
         0s  assign job-1 agent-1       -> not job-1: job does not run on machines of this kind
         0s  assign job-2 agent-2       -> not job-2: job does not run on machines of this kind
         1s  admit R2 f(spot=prefer) priority=1
         1s  show place agent-1 agent-2 -> job-6 agent-1, job-1 agent-2, job-4 agent-2, job-5 agent-2",
    );
}

#[test]
fn a_preempted_job_avoids_its_pool_and_prefers_machines_that_stay() {
    check(
        "0s  agent A1 slots=9 pool=a spot
         0s  admit R1 j(spot=prefer) k(spot=only)
         0s  assign job-1 agent-1 job-2 agent-1
         1s  release L1 preempted started
         1s  release L2 preempted started
         1s  show place agent-1                 -> job-1 agent-1, job-2 agent-1
         2s  agent A2 slots=5 pool=a spot
         2s  agent A3 slots=1 pool=b spot
         2s  show place agent-1 agent-2 agent-3 -> job-1 agent-3, job-2 agent-2
         3s  agent A4 slots=1 pool=steady
         3s  show place agent-1 agent-2 agent-3 agent-4 -> job-1 agent-4, job-2 agent-3",
    );
}

#[test]
fn what_is_handed_back_unstarted_does_so_as_well() {
    check(
        "0s  agent A1 slots=9 pool=a spot
         0s  admit R1 j(spot=prefer)
         0s  assign job-1 agent-1
         1s  hand-back agent-1 L1 window=15s
         2s  agent A2 slots=5 pool=a spot
         2s  agent A3 slots=1 pool=b spot
         2s  show place agent-2 agent-3         -> job-1 agent-3
         3s  agent A4 slots=1 pool=steady
         3s  show place agent-2 agent-3 agent-4 -> job-1 agent-4
         3s  show attempts job-1                -> #1 none",
    );
}

#[test]
fn a_near_deadline_decides_before_cost() {
    check(
        "0s  agent A1 slots=9 pool=a spot
         0s  agent A2 slots=1 pool=steady
         0s  admit R1 j(spot=prefer,due=60000)
         29s agent A3
         29s show place agent-1 agent-2   -> job-1 agent-1
         30s agent A3
         30s show place agent-1 agent-2   -> job-1 agent-2",
    );
}

#[test]
fn another_attempt_goes_to_another_agent_where_there_is_one() {
    check(
        "0s  agent A1 slots=9
         0s  agent A2 slots=1
         0s  admit R1 a
         0s  show place agent-1 agent-2   -> job-1 agent-1
         0s  assign job-1 agent-1
         1s  expire L1
         1s  show place agent-1 agent-2   -> job-1 agent-2
         1s  show place agent-1           -> job-1 agent-1",
    );
}
