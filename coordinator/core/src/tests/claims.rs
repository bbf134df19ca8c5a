use crate::testkit::check;

#[test]
fn one_executes_and_the_others_wait() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a b c
         0s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1
         1s  claim L1 X              -> build L1
         1s  claim L1 X              -> build L1
         1s  claim L2 X              -> wait L2 for L1
         1s  claim L2 X              -> wait L2 for L1
         1s  claim L3 X              -> wait L3 for L1
         1s  claim L3 Y              -> build L3
         2s  resolve L2 X published  -> ! claim is not held by this lease
         2s  show outstanding        -> offer L1 agent-1 job-1#1, offer L2 agent-1 job-2#1, offer L3 agent-1 job-3#1, build L3, build L1, wait L2 for L1, wait L3 for L1
         3s  resolve L1 X published  -> published L2 L3
         3s  resolve L1 X published  -> ! claim is not held by this lease
         4s  claim L2 X              -> build L2
         5s  resolve L2 X failed     -> failed",
    );
}

#[test]
fn the_next_in_line_takes_over_from_one_who_is_lost_or_gives_up() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a b c d
         0s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1 job-4 agent-1
         1s  claim L1 X              -> build L1
         1s  claim L2 X              -> wait L2 for L1
         1s  claim L3 X              -> wait L3 for L1
         1s  claim L4 X              -> wait L4 for L1
         2s  expire L2               -> revoke L2 agent-1, dispatch
         3s  expire L1               -> build L3, revoke L1 agent-1, dispatch
         4s  resolve L1 X published  -> ! claim is not held by this lease
         5s  resolve L3 X abandoned  -> build L4
         6s  complete L4 success     -> dispatch
         7s  claim L3 X              -> build L3",
    );
}

#[test]
fn a_line_has_an_end() {
    check(
        "0s  agent A1 slots=9
         0s  admit R1 a b c d e
         0s  assign job-1 agent-1 job-2 agent-1 job-3 agent-1 job-4 agent-1 job-5 agent-1
         1s  claim L1 X       -> build L1
         1s  claim L2 X
         1s  claim L3 X
         1s  claim L4 X
         1s  claim L5 X       -> ! too many wait for this claim
         2s  artifact L1 one
         2s  artifact L1 two
         2s  artifact L1 three
         2s  artifact L2 two  -> nothing
         2s  artifact L1 four -> ! a limit is exceeded: number of artifacts of the run is 4, at most 3",
    );
}
