//! Who may ask for what.
//!
//! A certificate says what its holder is called, and no more; what somebody of that name may do is said by the
//! configuration of whoever is asked. Where nothing is proved (plaintext), everybody who reaches the port is believed to be
//! who they say they are, and only mistakes are kept out.
//!
//! | | asked by | |
//! | --- | --- | --- |
//! | Raft's own calls | a member | in its own name; what only a leader says, while it leads |
//! | to be taken in, to found | a member | itself |
//! | to remove, promote, replace, step up | a member, an administrator; to leave, whoever leaves | |
//! | all else | whoever was let in | |

use uuid::Uuid;

use crate::{
    config::RaftConfig,
    consensus::raft::View,
    net::security::Proof,
    protocol::{
        messages::{Call, Hello, Request},
        peer::Peer,
        raft_messages::RaftRequest,
    },
};

/// Who is at the other end of a connection, as far as that was proved.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The member that it is; `None` for a client.
    pub(crate) member: Option<Peer>,
    /// The cluster that it belongs to, where it knows one.
    pub(crate) cluster_id: Option<Uuid>,
    /// Whether it may do what an administrator does.
    administrates: bool,
}

impl Caller {
    /// Whoever says `hello` and has proved that much, to a member that sees the cluster so.
    ///
    /// # Errors
    /// Why it is not who it says it is.
    pub(crate) fn of(hello: &Hello, proved: Option<&Proof>, config: &RaftConfig, view: &View) -> Result<Self, String> {
        if let (Some(proved), Some(from)) = (proved, &hello.from) {
            let named = config.members.iter().any(|pattern| fits(pattern, &from.name));
            proved.objection(&from.name, named).map_or(Ok(()), Err)?;
        }
        hello.from.as_ref().and_then(|from| mistaken(from, view)).map_or(Ok(()), Err)?;
        let named = |proved: &Proof| config.administrators.iter().any(|name| proved.carries(name));
        let administrates = hello.from.is_some() || proved.is_none_or(named);
        Ok(Self { member: hello.from.clone(), cluster_id: hello.cluster_id, administrates })
    }

    /// Whether it may ask for this of the member `here`, which sees the cluster so.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn may(&self, request: &Request, here: u64, view: &View) -> Result<(), String> {
        // What was not known of a newcomer may be by now.
        self.member.as_ref().and_then(|me| mistaken(me, view)).map_or(Ok(()), Err)?;
        match request {
            Request::Raft(_) if self.member.as_ref().is_some_and(|me| me.id == here) => {
                Err("a member does not take part in Raft with itself".into())
            }
            Request::Raft(request) => self.may_raft(request, view),
            Request::Call(call) => self.may_call(call),
            Request::Subscribe { .. } => Ok(()),
        }
    }

    fn may_raft(&self, request: &RaftRequest, view: &View) -> Result<(), String> {
        let Some(me) = &self.member else { return Err("only a member takes part in Raft".into()) };
        if request.speaker().is_some_and(|speaker| speaker != me.id) {
            return Err("a member speaks in its own name alone".into());
        }
        match request {
            RaftRequest::TimeoutNow if view.leader != Some(me.id) => Err("only who leads can hand over".into()),
            RaftRequest::Differs { .. } if view.leader != Some(me.id) => {
                Err("only who leads compares the others".into())
            }
            _ => request.flaw().map_or(Ok(()), |flaw| Err(flaw.into())),
        }
    }

    fn may_call(&self, call: &Call) -> Result<(), String> {
        let is = |id: u64| self.member.as_ref().is_some_and(|me| me.id == id);
        match call {
            Call::Join { peer, .. }
                if self.member.as_ref().is_some_and(|me| (me.id, &me.name) == (peer.id, &peer.name)) =>
            {
                Ok(())
            }
            Call::Join { .. } => Err("a member can only join itself".into()),
            Call::Found { by, .. } if is(*by) => Ok(()),
            Call::Found { .. } => Err("a member founds in its own name alone".into()),
            Call::Leave { id } if self.administrates || is(*id) => Ok(()),
            Call::Promote { .. } | Call::Replace { .. } | Call::StepUp if self.administrates => Ok(()),
            Call::Leave { .. } | Call::Promote { .. } | Call::Replace { .. } | Call::StepUp => {
                Err("only a member, or one of the configured `administrators`, may change the membership or the format"
                    .into())
            }
            Call::Apply { .. }
            | Call::Renew { .. }
            | Call::Poll { .. }
            | Call::Resign { .. }
            | Call::Beats { .. }
            | Call::Confirm
            | Call::Read { .. }
            | Call::Status
            | Call::Silences { .. } => Ok(()),
        }
    }
}

/// Why whoever says to be this member is another one: a name is proved, an id is not.
fn mistaken(me: &Peer, view: &View) -> Option<String> {
    let (known, _) = view.members.get(&me.id)?;
    (known.name != me.name).then(|| format!("the member {:016x} has another name than {:?}", me.id, me.name))
}

/// Whether a name is the pattern, or ends as it does after its `*`.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(end) => name.len() > end.len() && name.ends_with(end),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use divider_core::{Beat, Claim, Group, SessionId, Term, Topic};
    use openraft::raft::{AppendEntriesRequest, VoteRequest};

    use super::*;
    use crate::protocol::{messages::Query, snapshot::SnapshotMeta, types::Vote};

    fn peer(id: u64) -> Peer {
        Peer { id, name: format!("node-{id}"), address: "h:1".into(), wants_vote: true, reads: 2 }
    }

    fn view() -> View {
        let members = BTreeMap::from([(1, (peer(1), true)), (2, (peer(2), true))]);
        View { term: 3, leader: Some(1), leads: false, lost: false, members, stopped: false }
    }

    fn caller(member: Option<Peer>, administrates: bool) -> Caller {
        Caller { member, cluster_id: None, administrates }
    }

    /// Every request that there is, as the member 1 would say it.
    fn requests() -> (Vec<Request>, Vec<Request>, Vec<Request>) {
        let vote = Vote::new_committed(9, 1);
        let append = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        let raft = vec![
            RaftRequest::Append(append),
            RaftRequest::Vote(VoteRequest::new(Vote::new(9, 1), None)),
            RaftRequest::SnapshotBegin { stream: 1, vote, meta: SnapshotMeta::default() },
            RaftRequest::SnapshotChunk { stream: 1, offset: 0, bytes: Vec::new() },
            RaftRequest::SnapshotEnd { stream: 1 },
            RaftRequest::TimeoutNow,
            RaftRequest::Differs { index: 1, sum: 1 },
            RaftRequest::Compare { index: 1 },
        ];
        let of_members = vec![
            Call::Join { peer: peer(1), votes: true },
            Call::Leave { id: 1 },
            Call::Leave { id: 2 },
            Call::Promote { id: 2 },
            Call::Replace { old: 2, new: 1 },
            Call::Found { by: 1, taken_back: false },
            Call::StepUp,
        ];
        let (group, session, term) = (Group::new("/g/").unwrap(), SessionId::fresh(), Term(1));
        let of_all = vec![
            Call::Apply { group: group.clone(), ops: Vec::new() },
            Call::Renew { group: group.clone(), session },
            Call::Poll { group: group.clone(), session, claim: Claim::Take { stale: Some((term, Beat(1))) } },
            Call::Resign { group: group.clone(), session, term },
            Call::Beats { group: group.clone() },
            Call::Confirm,
            Call::Read { group: group.clone(), query: Query::Stats },
            Call::Status,
            Call::Silences { group: group.clone() },
        ];
        let mut of_all: Vec<_> = of_all.into_iter().map(Request::Call).collect();
        of_all.push(Request::Subscribe { group, topic: Topic::Group });
        let raft = raft.into_iter().map(Request::Raft).collect();
        (raft, of_members.into_iter().map(Request::Call).collect(), of_all)
    }

    #[test]
    fn a_client_neither_votes_appends_deposes_installs_snapshots_joins_nor_administrates() {
        let (raft, of_members, of_all) = requests();
        let client = caller(None, false);
        for request in raft.iter().chain(&of_members) {
            assert!(client.may(request, 3, &view()).is_err(), "{request:?}");
        }
        for request in &of_all {
            client.may(request, 3, &view()).unwrap();
        }
    }

    #[test]
    fn an_administrator_changes_the_membership_and_is_no_member() {
        let (raft, of_members, _) = requests();
        let administrator = caller(None, true);
        for request in &raft {
            assert!(administrator.may(request, 3, &view()).is_err(), "{request:?}");
        }
        for request in &of_members {
            let of_itself = matches!(request, Request::Call(Call::Join { .. } | Call::Found { .. }));
            assert_eq!(administrator.may(request, 3, &view()).is_ok(), !of_itself, "{request:?}");
        }
    }

    #[test]
    fn a_member_speaks_in_its_own_name_alone() {
        let (raft, of_members, of_all) = requests();
        for request in raft.iter().chain(&of_members).chain(&of_all) {
            caller(Some(peer(1)), true).may(request, 3, &view()).unwrap();
        }
        for request in &raft[..3] {
            assert!(caller(Some(peer(2)), true).may(request, 3, &view()).is_err(), "{request:?}");
        }
        // It does not lead, so it has nothing to hand over, and has not compared anybody.
        for request in &raft[5..7] {
            assert!(caller(Some(peer(2)), true).may(request, 3, &view()).is_err(), "{request:?}");
        }
        for request in [&of_members[0], &of_members[5]] {
            assert!(caller(Some(peer(2)), true).may(request, 3, &view()).is_err(), "{request:?}");
        }
        assert!(caller(Some(peer(1)), true).may(&raft[0], 1, &view()).is_err(), "to itself");
        // With the id of another one.
        let named = Peer { name: "node-7".into(), ..peer(1) };
        for request in raft.iter().chain(&of_members).chain(&of_all) {
            assert!(caller(Some(named.clone()), true).may(request, 3, &view()).is_err(), "{request:?}");
        }
        let join = Request::Call(Call::Join { peer: named.clone(), votes: true });
        assert!(caller(Some(named), true).may(&join, 3, &view()).is_err());
    }

    #[test]
    fn a_pattern_is_a_name_or_the_end_of_one() {
        for (pattern, name, fit) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.example", "a.example", true),
            ("*.example", ".example", false),
            ("*.example", "a.example.org", false),
            ("*", "anything", true),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }
}
