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
