//! Ops, as the apply script takes them.

use divider_core::{Blame, Declaration, Op, SessionId, Token, Verdict};
use rmp::encode::{write_array_len, write_sint, write_str_len, write_uint};

/// Appends values one after the other. Writing to memory cannot fail.
struct Writer(Vec<u8>);

impl Writer {
    /// Begins an op that consists of its code and `fields` more values.
    fn op(&mut self, code: u64, fields: u32) -> &mut Self {
        _ = write_array_len(&mut self.0, fields + 1);
        self.number(code)
    }

    /// A number, cut off at 2^53: Lua's numbers are doubles, and nothing is ever numbered that high, so the cut-off
    /// number is as unknown to the script as the true one.
    fn number(&mut self, number: u64) -> &mut Self {
        _ = write_uint(&mut self.0, number.min(Token::ABOVE_ALL.0));
        self
    }

    fn signed(&mut self, number: i64) -> &mut Self {
        _ = write_sint(&mut self.0, number);
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        // Every length is bounded by the limits of an op.
        _ = write_str_len(&mut self.0, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
        self
    }

    fn session(&mut self, session: SessionId) -> &mut Self {
        self.bytes(session.0.as_bytes())
    }

    fn verdict(&mut self, Verdict { healthy_below, blame }: Verdict) -> &mut Self {
        let (blame, whom) = match blame {
            Blame::Nobody => (0, 0),
            Blame::Young => (1, 0),
            Blame::Suspects(from) => (2, from.into()),
            Blame::Only(token) => (3, token.0),
        };
        self.number(healthy_below.0).number(blame).number(whom)
    }

    fn add(&mut self, op: &Op) {
        match op {
            Op::Add(work) => self
                .op(1, 6)
                .bytes(work.key.as_str().as_bytes())
                .number(work.weight.into())
                .signed(work.priority.into())
                .number(work.not_before_ms)
                .bytes(&work.payload)
                .number(match work.how {
                    Declaration::Again => 0,
                    Declaration::Once => 1,
                    Declaration::Declare => 2,
                    Declaration::Refresh => 3,
                }),
            Op::Remove { key } => self.op(2, 1).bytes(key.as_str().as_bytes()),
            Op::Retry { key } => self.op(3, 1).bytes(key.as_str().as_bytes()),
            Op::Rebalance => self.op(4, 0),
            Op::Join { session, node, affinity, capacity, lease_ms, seen, reads } => self
                .op(5, 7)
                .session(*session)
                .bytes(node.as_str().as_bytes())
                .number((*affinity).into())
                .signed(capacity.map_or(-1, i64::from))
                .number((*lease_ms).into())
                .number(seen.0)
                .number((*reads).into()),
            Op::SetAffinity { session, number, affinity } => {
                self.op(6, 3).session(*session).number(*number).number((*affinity).into())
            }
            Op::AlterAffinity { session, number, delta } => {
                self.op(7, 3).session(*session).number(*number).signed(*delta)
            }
            Op::Drain { session } => self.op(8, 1).session(*session),
            Op::End { session } => self.op(9, 1).session(*session),
            Op::Confirm { session, key, token, started } => self
                .op(10, 4)
                .bytes(key.as_str().as_bytes())
                .session(*session)
                .number(token.0)
                .number((*started).into()),
            Op::GiveUp { session, key, token, generation, pause_ms, failures, why } => self
                .op(11, 7)
                .bytes(key.as_str().as_bytes())
                .session(*session)
                .number(token.0)
                .number((*generation).into())
                .number(*pause_ms)
                .number((*failures).into())
                .bytes(why.as_bytes()),
            Op::Complete { session, key, token, generation } => self
                .op(12, 4)
                .bytes(key.as_str().as_bytes())
                .session(*session)
                .number(token.0)
                .number((*generation).into()),
            Op::Checkpoint { session, key, token, bytes } => {
                self.op(13, 4).bytes(key.as_str().as_bytes()).session(*session).number(token.0).bytes(bytes)
            }
            Op::Assign { term, key, session } => {
                self.op(14, 3).bytes(key.as_str().as_bytes()).session(*session).number(term.0)
            }
            Op::Revoke { term, key, token } => {
                self.op(15, 3).bytes(key.as_str().as_bytes()).number(token.0).number(term.0)
            }
            Op::Force { term, key, token } => {
                self.op(16, 3).bytes(key.as_str().as_bytes()).number(token.0).number(term.0)
            }
            Op::Expire { term, session, beat, verdict } => {
                self.op(17, 6).session(*session).number(beat.0).number(term.0).verdict(*verdict)
            }
            Op::Quarantine { term, key } => self.op(18, 2).bytes(key.as_str().as_bytes()).number(term.0),
            Op::Settle { term, session } => self.op(19, 2).session(*session).number(term.0),
            Op::ResumeGrants { term } => self.op(20, 1).number(term.0),
            Op::SetAside { session, key, token, generation, why } => self
                .op(21, 5)
                .bytes(key.as_str().as_bytes())
                .session(*session)
                .number(token.0)
                .number((*generation).into())
                .bytes(why.as_bytes()),
            Op::Clear { term, key, blames_only } => {
                self.op(22, 3).bytes(key.as_str().as_bytes()).number(term.0).number((*blames_only).into())
            }
            Op::Absolve { key, token } => self.op(23, 2).bytes(key.as_str().as_bytes()).number(token.0),
            Op::Advance { term, elapsed_ms } => self.op(24, 2).number(term.0).number(*elapsed_ms),
            Op::Step { term, format } => self.op(25, 2).number(term.0).number((*format).into()),
            Op::Sender { session, serial } => self.op(26, 2).session(*session).number(*serial),
        };
    }
}

/// A batch, as the second argument of the apply script.
pub(crate) fn ops(ops: &[Op]) -> Vec<u8> {
    let mut writer = Writer(Vec::with_capacity(16 + ops.iter().map(Op::bytes).sum::<usize>()));
    _ = write_array_len(&mut writer.0, u32::try_from(ops.len()).unwrap_or(u32::MAX));
    for op in ops {
        writer.add(op);
    }
    writer.0
}
