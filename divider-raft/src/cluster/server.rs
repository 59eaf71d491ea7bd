//! The listening side of a member.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
};

use crate::{
    cluster::{authorization::Caller, failover::Presence, member::Member},
    environment::{Connection, Listener, Stream},
    error::TooOld,
    net::{
        pending::{PendingHandshake, PendingHandshakes},
        wire::{self, Frame},
    },
    protocol::messages::{Answer, Fault, Hello, Request, Welcome},
};

/// How long a newcomer may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// A caller asks for a sign of life every second; one that does not is gone.
const SILENCE: Duration = Duration::from_secs(10);
/// Requests of one connection that are worked on at the same time; more wait in the connection.
const AT_ONCE: usize = 512;
/// Subscriptions of one connection.
pub(crate) const SUBSCRIPTIONS: usize = if cfg!(test) { 64 } else { 1 << 14 };

/// Accepts until it is aborted.
pub(crate) async fn listen(listener: Box<dyn Listener>, member: Arc<Member>) {
    let mut connections = JoinSet::new();
    let pending = PendingHandshakes::default();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, from)) => {
                let (member, place) = (member.clone(), pending.enter());
                connections.spawn(async move {
                    if let Err(error) = serve(stream, &member, place).await
                        && error.kind() != io::ErrorKind::UnexpectedEof
                    {
                        tracing::debug!(target: "divider::raft", %from, %error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(target: "divider::raft", %error, "cannot accept connections for the moment");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Finds out who has come, and lets it in or says why not.
async fn shake_hands(stream: Stream, member: &Arc<Member>) -> io::Result<(Box<dyn Connection>, Caller)> {
    let (mut stream, proved) = member.config().security.accepted(stream, &*member.config().environment).await?;
    let supported = member.formats.supported();
    let hello: Hello = match wire::greeted(&mut stream, supported).await {
        Ok(hello) => hello,
        Err(error) => {
            if let Some(too_old) = TooOld::within(&error) {
                let problem = format!("no format in common: {} is needed", too_old.needs);
                wire::greet(&mut stream, supported, &Welcome::Refused(problem)).await?;
            }
            return Err(error);
        }
    };
    let caller = member.authenticate(&hello, proved.as_ref());
    let welcome = match &caller {
        Err(problem) => Welcome::Refused(problem.clone()),
        Ok(_) => Welcome::Ok { id: member.me().id, cluster_id: member.cluster_id() },
    };
    wire::greet(&mut stream, supported, &welcome).await?;
    Ok((stream, caller.map_err(io::Error::other)?))
}

async fn serve(stream: Stream, member: &Arc<Member>, place: PendingHandshake) -> io::Result<()> {
    let (stream, caller) = tokio::select! {
        biased;
        shaken = tokio::time::timeout(HANDSHAKE, shake_hands(stream, member)) => {
            shaken.map_err(|_| io::Error::other("no handshake in time"))??
        }
        () = place.taken() => return Err(io::Error::other("it said nothing, and others had come")),
    };
    drop(place);
    let _presence = caller.member.as_ref().map(|from| Presence::new(member, from.id));
    let (reading, mut writing) = tokio::io::split(stream);
    let (outbox, mut frames) = mpsc::channel::<Vec<u8>>(256);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(mut batch) = frames.recv().await {
            while batch.len() < 256 << 10
                && let Ok(frame) = frames.try_recv()
            {
                batch.extend(frame);
            }
            let send = async {
                writing.write_all(&batch).await?;
                writing.flush().await
            };
            if !matches!(tokio::time::timeout(SILENCE, send).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    let mut reading = BufReader::with_capacity(64 << 10, reading);
    let mut buffer = Vec::new();
    let mut partial: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut subscriptions: HashMap<u64, AbortHandle> = HashMap::new();
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let caller = Arc::new(caller);
    loop {
        while tasks.try_join_next().is_some() {}
        match tokio::time::timeout(SILENCE, wire::read_frame(&mut reading, &mut buffer)).await {
            Ok(read) => read?,
            Err(_) => return Err(io::Error::other("nothing was heard for too long")),
        }
        match Frame::from_bytes(&buffer)? {
            Frame::Request { id, last, body } => {
                let parts = partial.entry(id).or_default();
                parts.extend_from_slice(body);
                if partial.values().map(Vec::len).sum::<usize>() > 2 * wire::MAX_REQUEST || partial.len() > AT_ONCE {
                    return Err(io::Error::other("requests are over the limit"));
                }
                if !last {
                    continue;
                }
                let Some(request) = partial.remove(&id) else { continue };
                let request: Request = match wire::decode(&request) {
                    Ok(request) => request,
                    // Perhaps of a later version: the caller is told, and the connection goes on.
                    Err(error) => {
                        reply(&outbox, id, &Answer::Fault(Fault::Refused(error.to_string()))).await?;
                        continue;
                    }
                };
                let (member, outbox) = (member.clone(), outbox.clone());
                if let Request::Subscribe { group, topic } = request {
                    subscriptions.retain(|_, task: &mut AbortHandle| !task.is_finished());
                    if subscriptions.len() >= SUBSCRIPTIONS {
                        let problem = format!("{SUBSCRIPTIONS} subscriptions of one connection are the limit");
                        reply(&outbox, id, &Answer::Fault(Fault::Refused(problem))).await?;
                        continue;
                    }
                    let task = tasks.spawn(async move {
                        if let Ok(()) = hints(&member, &outbox, id, &group, topic).await
                            && let Ok(end) = (Frame::End { id }).to_bytes()
                        {
                            // The caller may be gone.
                            let _ = outbox.send(end).await;
                        }
                    });
                    if let Some(before) = subscriptions.insert(id, task) {
                        before.abort();
                    }
                    continue;
                }
                let place = at_once.clone().acquire_owned().await.map_err(io::Error::other)?;
                let caller = caller.clone();
                tasks.spawn(async move {
                    let answer = member.serve(request, &caller).await;
                    // The caller may be gone.
                    let _ = reply(&outbox, id, &answer).await;
                    drop(place);
                });
            }
            Frame::End { id } => {
                partial.remove(&id);
                if let Some(task) = subscriptions.remove(&id) {
                    task.abort();
                }
            }
            Frame::Ping => {
                let pong = Frame::Pong.to_bytes()?;
                if outbox.send(pong).await.is_err() {
                    return Ok(());
                }
            }
            Frame::Answer { .. } | Frame::Hint { .. } | Frame::Pong => {
                return Err(io::Error::other("an unexpected frame"));
            }
        }
    }
}

async fn reply(outbox: &mpsc::Sender<Vec<u8>>, id: u64, answer: &Answer) -> io::Result<()> {
    let body = wire::encode(answer)?;
    for frame in wire::parts(&body, |last, body| Frame::Answer { id, last, body })? {
        outbox.send(frame).await.map_err(io::Error::other)?;
    }
    Ok(())
}

/// Sends hints until the subscription ends here. The first one says that it stands.
async fn hints(
    member: &Member,
    outbox: &mpsc::Sender<Vec<u8>>,
    id: u64,
    group: &divider_core::Group,
    topic: divider_core::Topic,
) -> io::Result<()> {
    let mut hints = member.subscribe(group, topic);
    let stands = wire::encode_hint(&divider_core::Hint::Gap)?;
    outbox.send(Frame::Hint { id, body: &stands }.to_bytes()?).await.map_err(io::Error::other)?;
    while let Some(hint) = hints.recv().await {
        let body = wire::encode_hint(&hint)?;
        outbox.send(Frame::Hint { id, body: &body }.to_bytes()?).await.map_err(io::Error::other)?;
    }
    Ok(())
}
