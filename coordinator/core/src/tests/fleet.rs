use crate::testkit::check;

#[test]
fn what_is_handed_back_is_at_the_head_of_its_queue_and_not_counted() {
    check(
        "0s  agent A1 slots=3
         0s  agent A2 slots=3
         0s  admit R1 a b c
         1s  admit R2 d
         1s  assign job-1 agent-1 job-2 agent-1 job-3 agent-2
         2s  hand-back agent-1 L2 L3 L9 window=15s -> dispatch
         2s  show queue                  -> job-2 job-4
         2s  show job-3                  -> L3
         2s  show attempts job-2         -> #1 none
         3s  assign job-2 agent-1        -> not job-2: agent is cordoned, drained or leaving, and gets no work
         3s  show place agent-1          ->
         3s  hand-back agent-1 L2 window=15s -> nothing
         4s  release L1 preempted started -> dispatch
         5s  agent A1                    -> agent-1 incarnation-2, dispatch
         5s  hand-back agent-1 L3 window=15s -> ! incarnation is not the agent's current one
         5s  hand-back agent-9 L3        -> ! agent is not known
         5s  assign job-2 agent-1        -> offer L4 agent-1 job-2#2",
    );
}

#[test]
fn a_cancelled_job_that_is_handed_back_has_ended() {
    check(
        "0s  agent A1
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  cancel run-1 C1             -> cancel L1 agent-1
         2s  hand-back agent-1 L1 window=15s -> run-1 is cancelled
         2s  show job-1                  -> cancelled cancelled",
    );
}

#[test]
fn a_cordoned_agent_keeps_what_it_has_and_gets_no_more() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a b
         0s  assign job-1 agent-1
         1s  cordon A1                   -> nothing
         1s  cordon A1                   -> nothing
         1s  cordon A9                   -> ! agent is not known
         1s  show place agent-1          ->
         2s  complete L1 success         -> dispatch
         3s  agent A1                    -> agent-1 incarnation-2, dispatch
         3s  show place agent-1          ->
         4s  uncordon A1                 -> dispatch
         4s  show place agent-1          -> job-2 agent-1",
    );
}

#[test]
fn a_drain_lasts_until_somebody_ends_it() {
    check(
        "0s  agent A1 slots=2
         0s  admit R1 a b
         0s  assign job-1 agent-1
         1s  drain A1 D1 within=60s      -> empty agent-1
         1s  drain A1 D1 within=60s      -> nothing
         1s  assign job-2 agent-1        -> not job-2: agent is cordoned, drained or leaving, and gets no work
         2s  drain A1 D2                 -> empty agent-1
         3s  release L1 preempted started -> dispatch
         4s  agent A1
         4s  show place agent-1          ->
         5s  uncordon A1                 -> keep agent-1, dispatch
         5s  show place agent-1          -> job-1 agent-1",
    );
}

#[test]
fn a_removed_agent_never_comes_back() {
    check(
        "0s  agent A1
         0s  admit R1 a
         0s  assign job-1 agent-1
         1s  remove-agent A1             -> empty agent-1
         1s  remove-agent A1             -> nothing
         1s  show denied agent/A1        -> no
         2s  release L1 preempted started -> dispatch
         2s  show denied agent/A1        -> yes
         2s  show place agent-1          ->
         3s  agent A1                    -> ! agent was removed and may not come back: use another name
         3s  uncordon A1                 -> ! agent was removed and may not come back: use another name
         3s  drain A1 D1                 -> ! agent was removed and may not come back: use another name
         4s  agent A2                    -> agent-2 incarnation-1, dispatch
         4s  remove-agent A2             -> empty agent-2
         4s  show denied agent/A2        -> yes",
    );
}
