use crate::testkit::check;

#[test]
fn a_new_incarnation_ends_the_leases_of_the_older_one() {
    check(
        "0s  agent A1 slots=2       -> agent-1 incarnation-1
         0s  agent A2               -> agent-2 incarnation-1
         0s  admit R1 a b c
         0s  assign job-1 agent-1 job-2 agent-1 job-3 agent-2
         1s  agent A1               -> revoke L1 agent-1, revoke L2 agent-1, agent-1 incarnation-2, dispatch
         1s  show job-1             -> queued
         1s  show job-3             -> L3
         2s  complete L1 success    -> ! lease is not held under this epoch
         3s  retire-agent agent-1 incarnation=1 -> ! incarnation is not the agent's current one
         3s  retire-agent agent-9   -> ! agent is not known",
    );
}

#[test]
fn a_retired_agent_takes_no_more_work_until_it_registers_again() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a b
         0s  assign job-1 agent-1
         1s  retire-agent agent-1     -> ! agent holds a lease
         2s  complete L1 success      -> dispatch
         2s  retire-agent agent-1     -> nothing
         2s  show place agent-1       ->
         3s  agent A1                 -> agent-1 incarnation-2, dispatch
         3s  show place agent-1       -> job-2 agent-1",
    );
}

#[test]
fn a_full_table_forgets_who_retired_first() {
    check(
        "0s  agent A1
         0s  agent A2
         0s  agent A3
         0s  agent A4
         1s  agent A5               -> ! a limit is exceeded: number of agents is 5, at most 4
         2s  retire-agent agent-3
         3s  retire-agent agent-1
         4s  agent A5               -> agent-5 incarnation-1
         5s  agent A1               -> agent-1 incarnation-2
         6s  agent A3               -> ! a limit is exceeded: number of agents is 5, at most 4",
    );
}

#[test]
fn a_registration_that_comes_late_ends_nothing() {
    check(
        "0s   agent A1 slots=1 start=7   -> agent-1 incarnation-1
         0s   admit R1 build
         1s   assign job-1 agent-1
         2s   agent A1 slots=1 start=7   -> agent-1 incarnation-1
         3s   agent A1 slots=1 start=8   -> revoke L1 agent-1, agent-1 incarnation-2, dispatch
         4s   assign job-1 agent-1 incarnation=2
         5s   agent A1 slots=1 start=7   -> ! incarnation is not the agent's current one
         5s   agent A1 slots=1 start=8   -> agent-1 incarnation-2
         6s   complete L2 success",
    );
}
