//! The scripts: everything that Divider asks of Redis is one call of one of them, but for the pages of a scan after the
//! first one.
//!
//! A script runs alone on the server, so each call is atomic and sees the group as of one moment. Only the text's hash
//! is sent; a server that does not know it (it was started again, or somebody flushed its scripts) says so without
//! having done anything, and gets the text.

use std::sync::LazyLock;

use divider_core::format;
use redis::Cmd;

/// How records, sessions and the group's numbers are stored. It changes with whatever another version would misread.
const LAYOUT: u32 = 3;

/// One script, by text and by hash.
pub(crate) struct Script {
    text: String,
    hash: String,
}

/// `#!lua` makes Redis refuse a script as a whole, and not in its middle, while it is out of memory, cannot write to its
/// disk, or is a replica. What only frees memory or keeps sessions alive may run out of memory too: otherwise the group
/// would lose all its nodes, and could never complete or remove what fills the memory.
macro_rules! script {
    ($flags:literal, $($part:literal),+) => {
        LazyLock::new(|| Script::new($flags, concat!($(include_str!(concat!("lua/", $part))),+)))
    };
}

pub(crate) static APPLY: LazyLock<Script> = script!("#!lua", "lineage.lua", "rights.lua", "ledger.lua", "apply.lua");
pub(crate) static APPLY_FREEING: LazyLock<Script> =
    script!("#!lua flags=allow-oom", "lineage.lua", "rights.lua", "ledger.lua", "apply.lua");
pub(crate) static POLL: LazyLock<Script> =
    script!("#!lua flags=allow-oom", "lineage.lua", "rights.lua", "ledger.lua", "poll.lua");
pub(crate) static RENEW: LazyLock<Script> = script!("#!lua flags=allow-oom", "lineage.lua", "renew.lua");
pub(crate) static READ: LazyLock<Script> = script!("#!lua flags=no-writes", "lineage.lua", "read.lua");
pub(crate) static CHECK: LazyLock<Script> = script!("#!lua flags=no-writes", "lineage.lua", "rights.lua", "check.lua");

impl Script {
    /// The script knows what this program reads and writes.
    fn new(flags: &str, parts: &str) -> Self {
        let (newest, keeps_why) = (format::NEWEST, format::KEEPS_WHY);
        let knows = format!("local LAYOUT, NEWEST_FORMAT, KEEPS_WHY = '{LAYOUT}', {newest}, {keeps_why}");
        let text = format!("{flags}\n{knows}\n{parts}");
        Self { hash: redis::Script::new(&text).get_hash().to_owned(), text }
    }

    /// The call by hash.
    pub(crate) fn by_hash(&self, keys: &[String], args: &[&[u8]]) -> Cmd {
        call("EVALSHA", &self.hash, keys, args)
    }

    /// The call for a server that does not know the hash.
    pub(crate) fn by_text(&self, keys: &[String], args: &[&[u8]]) -> Cmd {
        call("EVAL", &self.text, keys, args)
    }
}

fn call(command: &str, script: &str, keys: &[String], args: &[&[u8]]) -> Cmd {
    let mut cmd = redis::cmd(command);
    cmd.arg(script).arg(keys.len()).arg(keys).arg(args);
    cmd
}
