//! What is held for whoever comes, bounded in number, so that one who comes all the time
//! leaves room for others.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// Things by the address that they are held for, the oldest first.
#[derive(Debug)]
pub(super) struct Crowd<T> {
    max: usize,
    held: VecDeque<(IpAddr, T)>,
}

impl<T> Crowd<T> {
    /// At most `max` at once.
    pub(super) const fn new(max: usize) -> Self {
        Self { max, held: VecDeque::new() }
    }

    /// Holds one more. Where that is one too many, gives back the oldest of the address
    /// that has the most: who is to go.
    pub(super) fn push(&mut self, address: IpAddr, thing: T) -> Option<T> {
        self.held.push_back((block(address), thing));
        if self.held.len() <= self.max {
            return None;
        }
        let mut counts = BTreeMap::new();
        for (address, _) in &self.held {
            *counts.entry(*address).or_insert(0_usize) += 1;
        }
        let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let at = self.held.iter().position(|(address, _)| *address == most)?;
        self.held.remove(at).map(|(_, thing)| thing)
    }

    /// Forgets all but those that `keep` says.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.held.retain(|(_, thing)| keep(thing));
    }
}

/// Who has one address of an IPv6 network has all of them.
pub fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_most_goes_first_and_of_it_the_oldest() {
        let mut crowd = Crowd::new(4);
        let push = |crowd: &mut Crowd<u32>, address: &str, thing| {
            crowd.push(address.parse().unwrap(), thing)
        };
        assert_eq!(push(&mut crowd, "10.0.0.1", 1), None);
        // One network, whatever it calls itself.
        assert_eq!(push(&mut crowd, "2001:db8::1", 2), None);
        assert_eq!(push(&mut crowd, "2001:db8::2", 3), None);
        assert_eq!(push(&mut crowd, "::ffff:10.0.0.2", 4), None);
        assert_eq!(push(&mut crowd, "10.0.0.3", 5), Some(2));
        assert_eq!(push(&mut crowd, "10.0.0.2", 6), Some(4));
        crowd.retain(|thing| *thing != 1);
        assert_eq!(push(&mut crowd, "10.0.0.1", 7), None);
    }
}
