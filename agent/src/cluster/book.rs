//! Which coordinator is asked: a pure account of what was said about who leads.
//!
//! Four things are heard. A replica says that it leads a term: of two terms the larger
//! counts, and a smaller one is ignored (a leader that was deposed may believe in itself
//! for a while); of the same term, its leader's own word counts again, though the agent
//! was sent elsewhere meanwhile. The one that is asked names
//! another: it is followed, for who asks it again gets no other answer. It names itself:
//! it is about to lead, and is asked again soon. The one that is asked breaks: the next
//! one is asked. It answers: it is the right one. Moves between two answers are counted, so that replicas
//! that send the agent to each other, or are all away, do not keep it spinning.

use std::collections::BTreeSet;

/// Endpoints that are remembered. A farm has three or five replicas.
pub(super) const ENDPOINTS_MAX: usize = 16;

/// What was heard so far.
#[derive(Debug)]
pub(super) struct Book {
    /// As the agent was given them: never forgotten.
    given: Vec<String>,
    /// As the coordinators say.
    learned: Vec<String>,
    /// Who is asked.
    current: String,
    /// The largest term whose leader was heard of.
    term: u64,
    /// Moves since the last answer.
    moves: usize,
    /// Those that are connected.
    alive: BTreeSet<String>,
    /// Who said that it leads this term itself, and is connected. Others may know it by a name
    /// that does not reach it from here.
    here: Option<String>,
}

impl Book {
    /// Asks the first one.
    pub(super) fn new(endpoints: Vec<String>) -> Self {
        let mut given: Vec<String> = Vec::new();
        for endpoint in endpoints {
            if !given.contains(&endpoint) && given.len() < ENDPOINTS_MAX {
                given.push(endpoint);
            }
        }
        let current = given.first().cloned().unwrap_or_default();
        Self {
            given,
            learned: Vec::new(),
            current,
            term: 0,
            moves: 0,
            alive: BTreeSet::new(),
            here: None,
        }
    }

    pub(super) fn current(&self) -> &str {
        &self.current
    }

    /// All that are known.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = &String> {
        self.given.iter().chain(&self.learned)
    }

    pub(super) fn knows(&self, endpoint: &str) -> bool {
        self.endpoints().any(|known| known == endpoint)
    }

    /// One that is connected, the same one for the same number; else the one that is asked.
    pub(super) fn any(&self, number: u64) -> &str {
        let alive: Vec<&String> =
            self.endpoints().filter(|endpoint| self.alive.contains(*endpoint)).collect();
        match alive.len() {
            0 => &self.current,
            count => alive[(number % count as u64) as usize],
        }
    }

    /// The replicas of the farm are these. Those that were learned before and are not
    /// among them are forgotten. None at all: whoever says so does not know yet.
    pub(super) fn learn(&mut self, endpoints: &[String]) {
        if endpoints.iter().all(String::is_empty) {
            return;
        }
        let room = ENDPOINTS_MAX - self.given.len();
        let new = endpoints.iter().filter(|endpoint| !endpoint.is_empty());
        let new = new.filter(|endpoint| !self.given.contains(endpoint)).take(room);
        let mut learned: Vec<String> = new.cloned().collect();
        // The one that is asked stays until it sends the agent elsewhere.
        let stays = self.learned.contains(&self.current) && !learned.contains(&self.current);
        if stays && learned.len() < room {
            learned.push(self.current.clone());
        }
        self.learned = learned;
        if !self.knows(&self.current.clone()) {
            self.next();
        }
    }

    pub(super) fn connected(&mut self, endpoint: &str, connected: bool) {
        if !connected {
            self.alive.remove(endpoint);
            self.here.take_if(|here| here == endpoint);
        } else if self.knows(endpoint) {
            self.alive.insert(endpoint.to_owned());
        }
    }

    /// Somebody says that `leader` leads this term. True where another one is asked now.
    pub(super) fn led_by(&mut self, term: u64, leader: &str) -> bool {
        if term <= self.term || leader.is_empty() {
            return false;
        }
        self.term = term;
        self.here = None;
        // The terms bound these moves.
        self.moves = 0;
        self.ask(leader)
    }

    /// `leader` itself says that it leads this term, and may be asked now. True where a
    /// try is worth making at once, also with the one that was asked before: it may have
    /// answered that it does not lead yet.
    pub(super) fn leads(&mut self, term: u64, leader: &str) -> bool {
        let is_news = term >= self.term;
        if !self.led_by(term, leader) && is_news {
            self.ask(leader);
        }
        if is_news {
            self.here = Some(leader.to_owned());
        }
        is_news
    }

    /// `endpoint` does not lead, and names who does, if it knows. True where another one
    /// is worth asking at once.
    pub(super) fn sent_on(&mut self, endpoint: &str, leader: Option<&str>) -> bool {
        if endpoint != self.current {
            return false;
        }
        match leader {
            Some(leader) if leader != endpoint => {
                let moved = self.ask(leader);
                moved && self.count_move()
            }
            // It does not lead yet. Not for ever: its moves are counted, too.
            Some(_) if self.count_move() => false,
            _ => self.failed(endpoint),
        }
    }

    /// `endpoint` cannot be reached, or broke. True where another one is worth asking at
    /// once.
    pub(super) fn failed(&mut self, endpoint: &str) -> bool {
        self.alive.remove(endpoint);
        if endpoint != self.current {
            return false;
        }
        let before = self.current.clone();
        match self.here.clone().filter(|here| here != endpoint && self.knows(here)) {
            Some(here) => self.current = here,
            None => self.next(),
        }
        self.current != before && self.count_move()
    }

    /// `endpoint` did as it was asked.
    pub(super) fn answered(&mut self, endpoint: &str) {
        if endpoint == self.current {
            self.moves = 0;
        }
    }

    /// As many moves as there are places to look, and one hint of each, are free.
    fn count_move(&mut self) -> bool {
        self.moves += 1;
        self.moves < 2 * self.endpoints().count()
    }

    fn ask(&mut self, endpoint: &str) -> bool {
        if !self.knows(endpoint) {
            if self.given.len() + self.learned.len() >= ENDPOINTS_MAX {
                return false;
            }
            self.learned.push(endpoint.to_owned());
        }
        let moved = self.current != endpoint;
        self.current = endpoint.to_owned();
        moved
    }

    /// The next one in line; of those behind, the first that is connected.
    fn next(&mut self) {
        let all: Vec<String> = self.endpoints().cloned().collect();
        let place = all.iter().position(|endpoint| *endpoint == self.current);
        let behind = place.map_or(0, |place| place + 1);
        let line: Vec<&String> = all.iter().cycle().skip(behind).take(all.len()).collect();
        let others = || line.iter().filter(|endpoint| ***endpoint != self.current);
        let alive = others().find(|endpoint| self.alive.contains(**endpoint));
        if let Some(next) = alive.or_else(|| others().next()) {
            self.current = (**next).clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_term_counts_and_a_smaller_one_does_not() {
        check(
            "a,b,c",
            &[
                ("led 5 b", "b at once"),
                // A deposed leader that still believes in itself.
                ("led 4 a", "b"),
                ("led 6 c", "c at once"),
                ("led 6 b", "c"),
                ("led 7 ?", "c"),
                ("led 7 c", "c"),
            ],
        );
    }

    #[test]
    fn a_leader_that_says_so_itself_is_asked_again_whatever_was_heard_meanwhile() {
        check(
            "a,b,c",
            &[
                // A follower's word is early: the new leader does not serve yet.
                ("led 5 b", "b at once"),
                ("sent b b", "b"),
                ("leads 5 b", "b at once"),
                ("answered b", "b"),
                // It is lost for a moment, and the next one has been stopped.
                ("failed b", "c at once"),
                ("sent c a", "a at once"),
                ("leads 4 c", "a"),
                ("leads 5 b", "b at once"),
            ],
        );
        // One that is always about to lead, and never does.
        let early = [("sent a a", "a"), ("sent a a", "a"), ("sent a a", "a")];
        check("a,b", &[&early[..], &[("sent a a", "b")]].concat());
    }

    #[test]
    fn a_hint_is_followed_and_a_break_goes_to_the_next() {
        check(
            "a,b,c",
            &[
                ("sent a c", "c at once"),
                // Said by one that is no longer asked.
                ("sent a b", "c"),
                ("answered c", "c"),
                ("failed c", "a at once"),
                ("failed c", "a"),
                ("sent a ?", "b at once"),
            ],
        );
    }

    #[test]
    fn replicas_that_send_the_agent_to_each_other_do_not_keep_it_spinning() {
        check(
            "a,b",
            &[
                ("sent a b", "b at once"),
                ("sent b a", "a at once"),
                ("sent a b", "b at once"),
                ("sent b a", "a"),
                ("sent a b", "b"),
                ("answered b", "b"),
                ("sent b a", "a at once"),
            ],
        );
        check("a", &[("failed a", "a"), ("sent a ?", "a")]);
    }

    #[test]
    fn a_leader_that_others_know_by_another_name_is_found_again() {
        check(
            "a,b,c",
            &[
                ("up c", "a"),
                ("leads 5 b", "b at once"),
                ("failed b", "c at once"),
                ("sent c other-b", "other-b at once"),
                ("failed other-b", "b at once"),
                // It does not lead any more.
                ("failed b", "c at once"),
                ("led 6 other-a", "other-a at once"),
                ("failed other-a", "c at once"),
            ],
        );
    }

    #[test]
    fn those_that_are_connected_are_asked_first() {
        check("a,b,c", &[("up c", "a"), ("failed a", "c at once"), ("failed c", "a at once")]);
    }

    #[test]
    fn what_is_learned_joins_what_was_given_and_may_be_forgotten() {
        check(
            "a",
            &[
                ("learn b,c", "a"),
                ("failed a", "b at once"),
                // The one that is asked stays.
                ("learn c", "b"),
                ("failed b", "a at once"),
                ("learn c", "a"),
                ("failed a", "c at once"),
                ("led 1 new", "new at once"),
                ("learn ", "new"),
                ("learn c", "new"),
                ("failed new", "a at once"),
            ],
        );
        let mut book = Book::new(vec!["a".to_owned()]);
        let many: Vec<String> = (0..100).map(|number| format!("e{number}")).collect();
        book.learn(&many);
        assert_eq!(book.endpoints().count(), ENDPOINTS_MAX);
        assert!(!book.led_by(1, "one too many"));
    }

    /// Plays what was heard, and compares who is asked afterwards, and whether at once.
    fn check(given: &str, story: &[(&str, &str)]) {
        let mut book = Book::new(given.split(',').map(str::to_owned).collect());
        for (heard, want) in story {
            let words: Vec<&str> = heard.split(' ').collect();
            let at_once = match words[..] {
                ["led", term, leader] => {
                    book.led_by(term.parse().unwrap(), leader.trim_matches('?'))
                }
                ["leads", term, leader] => book.leads(term.parse().unwrap(), leader),
                ["sent", from, leader] => book.sent_on(from, (leader != "?").then_some(leader)),
                ["failed", endpoint] => book.failed(endpoint),
                ["up", endpoint] => {
                    book.connected(endpoint, true);
                    false
                }
                ["answered", endpoint] => {
                    book.answered(endpoint);
                    false
                }
                ["learn", endpoints] => {
                    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
                    book.learn(&endpoints);
                    false
                }
                _ => panic!("`{heard}` is not heard"),
            };
            let got = match at_once {
                true => format!("{} at once", book.current()),
                false => book.current().to_owned(),
            };
            assert_eq!(got, *want, "after `{heard}`");
        }
    }
}
