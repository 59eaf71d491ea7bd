//! How old a grant is, without a clock in the store: tokens only rise, so whoever remembers when it first saw which token
//! can tell that everything below was granted before.

use std::{collections::VecDeque, time::Duration};

use crate::{Instant, Token};

/// How many points in time are remembered.
const KEPT: usize = 256;

/// When which token was the last one. Kept by every node, so that a new leader knows of the time before it led.
#[derive(Clone, Debug)]
pub struct TokenAges {
    marks: VecDeque<(Instant, Token)>,
    /// Least time between two marks.
    every: Duration,
}

impl TokenAges {
    /// For questions about times up to `back` ago, answered to about a fiftieth of it.
    pub fn new(back: Duration) -> Self {
        Self { marks: VecDeque::new(), every: back / 50 }
    }

    /// `token` was the last one that had been issued at `now` or a little before.
    pub fn note(&mut self, now: Instant, token: Token) {
        if self.marks.back().is_some_and(|(at, _)| now.since(*at) < self.every) {
            return;
        }
        if self.marks.len() == KEPT {
            self.marks.pop_front();
        }
        self.marks.push_back((now, token));
    }

    /// A token that is higher than all of which it is certain that they were issued by `at`.
    pub fn issued_by(&self, at: Instant) -> Token {
        let known = self.marks.iter().rev().find(|(noted, _)| *noted <= at);
        known.map_or(Token(0), |(_, token)| Token(token.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_certainly_issued_counts() {
        let mut ages = TokenAges::new(Duration::from_nanos(500));
        assert_eq!(ages.issued_by(Instant(1000)), Token(0));
        ages.note(Instant(100), Token(7));
        ages.note(Instant(105), Token(8)); // Too close to the one before.
        ages.note(Instant(200), Token(9));
        assert_eq!(ages.issued_by(Instant(99)), Token(0));
        assert_eq!(ages.issued_by(Instant(199)), Token(8));
        assert_eq!(ages.issued_by(Instant(200)), Token(10));
    }
}
