//! What can be typed.

use std::time::Duration;

/// One line of standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `add KEY [PAYLOAD]`
    Add(String, String),
    /// `keys N [PREFIX]`: adds `PREFIX0` to `PREFIX(N-1)`, in one call. The prefix is `key-` if there is none.
    Keys(u32, String),
    /// `remove KEY`
    Remove(String),
    /// `affinity N`
    Affinity(i64),
    /// `alter ±N`
    Alter(i64),
    /// `giveup KEY`
    GiveUp(String),
    /// `complete KEY`
    Complete(String),
    /// `assigned`
    Assigned,
    /// `running`: how many keys run here. Asks nobody, so it may be asked often.
    Running,
    /// `stats`
    Stats,
    /// `rebalance`
    Rebalance,
    /// `quarantined`
    Quarantined,
    /// `retry KEY`
    Retry(String),
    /// `block MS`: keeps every thread of the runtime busy, as a program does that computes in its handlers.
    Block(Duration),
    /// `flush`
    Flush,
    /// `cancel`
    Cancel,
    /// `quit`: as SIGTERM.
    Quit,
}

/// What can be typed, for people.
pub const HELP: &str = "add KEY [PAYLOAD] · keys N [PREFIX] · remove KEY · affinity N · alter ±N · giveup KEY · \
     complete KEY · assigned · running · stats · rebalance · quarantined · retry KEY · block MS · flush · cancel · quit";

impl std::str::FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        let rest = rest.trim();
        let (first, second) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let key = || if rest.is_empty() { Err(format!("{word} wants a key")) } else { Ok(rest.to_owned()) };
        let number = |text: &str| {
            text.parse::<i64>().map_err(|_| format!("{word} wants a whole number, not {text:?}; for example: {word} 5"))
        };
        Ok(match word {
            "add" if first.is_empty() => return Err("add wants a key, and may have a payload".into()),
            "add" => Self::Add(first.into(), second.trim().into()),
            "keys" => {
                let count = number(first)?.try_into().map_err(|_| "keys wants a number from 0 on".to_owned())?;
                Self::Keys(count, if second.is_empty() { "key-".into() } else { second.trim().into() })
            }
            "remove" => Self::Remove(key()?),
            "affinity" => Self::Affinity(number(rest)?),
            "alter" => Self::Alter(number(rest)?),
            "giveup" => Self::GiveUp(key()?),
            "complete" => Self::Complete(key()?),
            "assigned" => Self::Assigned,
            "running" => Self::Running,
            "stats" => Self::Stats,
            "rebalance" => Self::Rebalance,
            "quarantined" => Self::Quarantined,
            "retry" => Self::Retry(key()?),
            "block" => Self::Block(Duration::from_millis(number(rest)?.unsigned_abs())),
            "flush" => Self::Flush,
            "cancel" => Self::Cancel,
            "quit" => Self::Quit,
            _ => return Err(format!("{word:?} is no command. There are: {HELP}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_their_arguments() {
        let read = |line: &str| line.parse::<Command>().unwrap();
        assert_eq!(read("add k some words"), Command::Add("k".into(), "some words".into()));
        assert_eq!(read(" add  k "), Command::Add("k".into(), String::new()));
        assert_eq!(read("keys 10"), Command::Keys(10, "key-".into()));
        assert_eq!(read("keys 10 x/"), Command::Keys(10, "x/".into()));
        assert_eq!(read("alter -20"), Command::Alter(-20));
        assert_eq!(read("alter +20"), Command::Alter(20));
        assert_eq!(read("quit"), Command::Quit);
    }

    #[test]
    fn a_refused_command_says_what_would_be_right() {
        for (line, hint) in [("frobnicate", "There are: add"), ("alter x", "whole number"), ("remove", "wants a key")] {
            let error = line.parse::<Command>().unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }
}
