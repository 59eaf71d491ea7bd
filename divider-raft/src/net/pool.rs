//! Connections to members, as a caller has them: pooled, multiplexed, dialled again when they break.
//!
//! # What a failure says
//! A caller must know whether its request may have had an effect. [`LinkError::NotSent`] says that it had none; after the
//! others nobody knows.
//!
//! A link on which nothing has been heard for a while although it was asked for a sign of life is closed: the next call
//! dials anew, and no call waits longer than its own limit.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use divider_core::{Group, Hint, Topic};
use futures_util::{FutureExt, Stream};
use parking_lot::{Mutex, RwLock};
use tokio::{
    io::{AsyncWriteExt, BufReader, ReadHalf, WriteHalf},
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};
use uuid::Uuid;

use crate::{
    environment::{Connection, Ground, first_of},
    error::TooOld,
    format::Formats,
    net::{
        address_book::Book,
        cluster_binding::{Bond, Tie},
        security::Security,
        wire::{self, Frame},
    },
    protocol::{
        messages::{Answer, Hello, Request, Welcome},
        peer::Peer,
    },
};

/// How long a dial may take, the handshake included.
const DIAL: Duration = Duration::from_secs(2);
/// After a dial that failed, others fail at once for this long.
const DIAL_PAUSE: Duration = Duration::from_millis(50);
/// A link on which something was sent and nothing has been heard for this long is asked for a sign of life.
const PING: Duration = Duration::from_secs(1);
/// And one on which nothing has been sent for this long: the other side ends it after 10 s.
const QUIET: Duration = Duration::from_secs(2);
/// A link on which something was sent and from which nothing came for this long is dead.
const SILENCE: Duration = Duration::from_millis(3500);
/// Frames that wait to be sent.
const OUTBOX: usize = 256;
/// Hints that wait for their reader.
const BACKLOG: usize = 1024;

/// Whom to call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) address: String,
    /// Which member is meant, where that is known: another one at this address is refused.
    pub(crate) id: Option<u64>,
    /// The name that its certificate must carry; else the host of the address.
    pub(crate) name: Option<String>,
}

impl Target {
    pub(crate) fn member(peer: &Peer) -> Self {
        Self { address: peer.address.clone(), id: Some(peer.id), name: Some(peer.name.clone()) }
    }

    pub(crate) fn seed(address: &str) -> Self {
        Self { address: address.to_owned(), id: None, name: None }
    }

    /// One of the addresses that a name, `host:port`, stands for.
    pub(crate) fn looked_up(address: &str, name: &str) -> Self {
        Self { address: address.to_owned(), id: None, name: Some(host(name).to_owned()) }
    }
}

/// Without the port.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// What a link carries: kinds that must not wait for one another have links of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Entries, heartbeats, votes.
    Raft,
    /// Snapshots.
    Bulk,
    /// Calls to stores.
    Calls,
    /// Renewals.
    Beats,
    /// Subscriptions.
    Hints,
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// The request never left: it had no effect.
    #[error("cannot be reached: {0}")]
    NotSent(String),
    /// The connection broke before the answer.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The other side does not speak with this program, or not the other way round: it had no effect.
    #[error("{0}: {1}")]
    TooOld(String, TooOld),
}

impl LinkError {
    /// Whether the request had no effect for certain.
    pub(crate) fn is_harmless(&self) -> bool {
        matches!(self, Self::NotSent(_) | Self::TooOld(..))
    }
}

/// All links of a process.
pub(crate) struct Links {
    dialer: Arc<Dialer>,
    slots: Mutex<HashMap<(Target, Class), Arc<Slot>>>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

/// What a dial needs to know.
pub(crate) struct Dialer {
    pub(crate) cluster: String,
    /// Learned once, from founding or joining; for a client, see [`Bond`].
    pub(crate) cluster_id: Arc<RwLock<Option<Uuid>>>,
    /// This process, if it is a member.
    pub(crate) me: Option<Peer>,
    pub(crate) formats: Formats,
    pub(crate) security: Security,
    pub(crate) ground: Arc<dyn Ground>,
    /// To which cluster a client belongs.
    pub(crate) bond: Bond,
    /// Where members are, beside what the log says.
    pub(crate) book: Book,
    /// That the last dial which got as far as a handshake found two programs too far apart.
    pub(crate) too_old: Mutex<Option<TooOld>>,
}

#[derive(Default)]
struct Slot(tokio::sync::Mutex<State>);

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    failed: Option<(Instant, LinkError)>,
}

impl Links {
    pub(crate) fn new(dialer: Dialer) -> Self {
        Self { dialer: Arc::new(dialer), slots: Mutex::default() }
    }

    /// Others, as somebody has them who belongs to no cluster, and is no member.
    pub(crate) fn of_a_stranger(&self) -> Self {
        let Dialer { cluster, formats, security, ground, .. } = &*self.dialer;
        Self::new(Dialer {
            cluster: cluster.clone(),
            cluster_id: Arc::default(),
            me: None,
            formats: formats.of_a_stranger(),
            security: security.clone(),
            ground: ground.clone(),
            bond: Bond::default(),
            book: Book::default(),
            too_old: Mutex::default(),
        })
    }

    pub(crate) fn book(&self) -> &Book {
        &self.dialer.book
    }

    /// Whether this client belongs to no cluster yet.
    pub(crate) fn is_new(&self) -> bool {
        self.dialer.cluster_id.read().is_none()
    }

    /// Whether a member of that cluster may be one of this client's.
    pub(crate) fn may_be_of(&self, cluster: Option<Uuid>) -> bool {
        let mine = *self.dialer.cluster_id.read();
        mine.is_none() || cluster.is_none() || mine == cluster
    }

    /// All have been asked; see [`Bond::asked`].
    pub(crate) fn asked(&self, new: bool, said: BTreeSet<Uuid>) -> Result<(), String> {
        self.dialer.bond.asked(&self.dialer.cluster_id, new, said)
    }

    /// Whether the last member that was dialled and answered does not speak with this program.
    pub(crate) fn too_old(&self) -> Option<TooOld> {
        *self.dialer.too_old.lock()
    }

    /// Sends a request and waits for its answer. A dropped future leaves the effect unknown.
    pub(crate) async fn call(
        &self,
        to: &Target,
        class: Class,
        request: &Request,
        limit: Duration,
    ) -> Result<Answer, LinkError> {
        let not_sent = |error: io::Error| LinkError::NotSent(error.to_string());
        let body = wire::encode(request).map_err(not_sent)?;
        if body.len() > wire::MAX_REQUEST {
            return Err(LinkError::NotSent(format!("a request of {} bytes is over the limit", body.len())));
        }
        let began = Instant::now();
        let link = match tokio::time::timeout(limit, self.link(to, class)).await {
            Ok(link) => link?,
            Err(_) => return Err(LinkError::NotSent(format!("{}: not connected within {limit:?}", to.address))),
        };
        let left = limit.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, link.call(&body)).await {
            Ok(answer) => wire::decode(&answer?).map_err(|error| LinkError::Lost(error.to_string())),
            Err(_) => Err(LinkError::Late(limit)),
        }
    }

    /// Subscribes at a member. When this returns the subscription stands there.
    pub(crate) async fn subscribe(
        &self,
        to: &Target,
        group: Group,
        topic: Topic,
        limit: Duration,
    ) -> Result<Hints, LinkError> {
        let body = wire::encode(&Request::Subscribe { group, topic });
        let body = body.map_err(|error| LinkError::NotSent(error.to_string()))?;
        let subscribe = async { self.link(to, Class::Hints).await?.subscribe(&body).await };
        tokio::time::timeout(limit, subscribe).await.unwrap_or(Err(LinkError::Late(limit)))
    }

    /// The link to a member, dialled if there is none. Cancel safe: a dial goes on for whoever asks next.
    async fn link(&self, to: &Target, class: Class) -> Result<Arc<Link>, LinkError> {
        let slot = self.slots.lock().entry((to.clone(), class)).or_default().clone();
        {
            let state = slot.0.lock().await;
            if let Some(link) = state.link.as_ref().filter(|link| link.is_open()) {
                return Ok(link.clone());
            }
            if let Some((at, problem)) = &state.failed
                && at.elapsed() < DIAL_PAUSE
            {
                return Err(problem.clone());
            }
        }
        let (dialer, to) = (self.dialer.clone(), to.clone());
        let dial = tokio::spawn(async move {
            let mut state = slot.0.lock().await;
            if let Some(link) = state.link.as_ref().filter(|link| link.is_open()) {
                return Ok(link.clone());
            }
            let dialled = tokio::time::timeout(DIAL, dialer.dial(&to)).await;
            let dialled = dialled
                .unwrap_or_else(|_| Err(io::Error::other(format!("{}: no handshake within {DIAL:?}", to.address))));
            match dialled {
                Ok(link) => {
                    let link = Arc::new(link);
                    *state = State { link: Some(link.clone()), failed: None };
                    Ok(link)
                }
                Err(error) => {
                    let problem = match TooOld::within(&error) {
                        Some(too_old) => LinkError::TooOld(to.address, too_old),
                        None => LinkError::NotSent(error.to_string()),
                    };
                    *state = State { link: None, failed: Some((Instant::now(), problem.clone())) };
                    Err(problem)
                }
            }
        });
        dial.await.unwrap_or_else(|error| Err(LinkError::NotSent(error.to_string())))
    }
}

impl Dialer {
    /// At each address where the member may be: the first at which it says that it is the one.
    async fn dial(&self, to: &Target) -> io::Result<Link> {
        let addresses = self.book.addresses(to.id, &to.address);
        let tries: Vec<_> = addresses.into_iter().map(|address| self.dial_at(address, to).boxed()).collect();
        first_of(tries).await.unwrap_or_else(|| Err(io::Error::other("it has no address")))
    }

    async fn dial_at(&self, address: String, to: &Target) -> io::Result<Link> {
        let dialled = self.try_at(&address, to).await;
        match dialled.as_ref().map_err(TooOld::within) {
            Ok(_) => *self.too_old.lock() = None,
            Err(Some(too_old)) => *self.too_old.lock() = Some(too_old),
            Err(None) => return dialled.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}"))),
        }
        dialled
    }

    async fn try_at(&self, address: &str, to: &Target) -> io::Result<Link> {
        let stream = self.ground.connect(address).await?;
        let name = to.name.as_deref().unwrap_or(host(address));
        let mut stream = self.security.dialled(stream, name, &*self.ground).await?;
        let cluster_id = *self.cluster_id.read();
        let hello = Hello { cluster: self.cluster.clone(), cluster_id, target: to.id, from: self.me.clone() };
        let speaks = self.formats.speaks();
        wire::greet(&mut stream, speaks, &hello).await?;
        match wire::greeted(&mut stream, speaks).await? {
            Welcome::Ok { id, .. } if to.id.is_some_and(|wanted| wanted != id) => {
                Err(io::Error::other(format!("another member ({id:016x}) listens there")))
            }
            Welcome::Ok { cluster_id: theirs, .. } => {
                let tie = match theirs.filter(|_| self.me.is_none()) {
                    Some(theirs) => {
                        let tie = self.bond.tie(&self.cluster_id, theirs);
                        Some(tie.ok_or_else(|| io::Error::other("the member belongs to another cluster"))?)
                    }
                    None => None,
                };
                Ok(Link::open(stream, tie))
            }
            Welcome::Refused(problem) => Err(io::Error::other(problem)),
        }
    }
}

/// One open connection.
struct Link {
    outbox: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Mutex<Waiting>>,
    next: AtomicU64,
    /// Ends reader and writer when the link is dropped.
    tasks: [tokio::task::AbortHandle; 2],
}

/// Who waits for what; `None` once the link is closed.
type Waiting = Option<HashMap<u64, Waiter>>;

enum Waiter {
    Answer { parts: Vec<u8>, done: oneshot::Sender<Vec<u8>> },
    Hints(mpsc::Sender<Hint>),
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// Forgets a waiter whose caller has gone.
struct Forget<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.link.waiting.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

/// The hints of a subscription. The member is told when nobody reads them any more: where nothing happens it would never
/// find out, and keep it for as long as the link lasts.
pub(crate) struct Hints {
    hints: mpsc::Receiver<Hint>,
    id: u64,
    waiting: Arc<Mutex<Waiting>>,
    outbox: mpsc::WeakSender<Vec<u8>>,
}

impl Stream for Hints {
    type Item = Hint;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Hint>> {
        self.hints.poll_recv(context)
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        let stood = self.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&self.id)).is_some();
        if stood && let (Some(outbox), Ok(end)) = (self.outbox.upgrade(), (Frame::End { id: self.id }).to_bytes()) {
            // Where there is no room, the next hint says it again.
            let _ = outbox.try_send(end);
        }
    }
}

impl Link {
    fn open(stream: Box<dyn Connection>, tie: Option<Tie>) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        let (outbox, frames) = mpsc::channel(OUTBOX);
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let heard = Arc::new(AtomicU64::new(0));
        let born = Instant::now();
        let reader = tokio::spawn({
            let (waiting, heard, outbox) = (waiting.clone(), heard.clone(), outbox.downgrade());
            async move {
                let _tie = tie;
                let ended = read(reading, &waiting, &heard, born, &outbox).await;
                tracing::debug!(target: "divider::raft", ?ended, "a link ended");
                // All who wait learn of it by their dropped senders.
                waiting.lock().take();
            }
        });
        let writer = tokio::spawn({
            let (waiting, reader) = (waiting.clone(), reader.abort_handle());
            async move {
                let _ = write(writing, frames, &heard, born).await;
                waiting.lock().take();
                reader.abort();
            }
        });
        Self { outbox, waiting, next: AtomicU64::new(1), tasks: [reader.abort_handle(), writer.abort_handle()] }
    }

    fn is_open(&self) -> bool {
        self.waiting.lock().is_some() && !self.outbox.is_closed()
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn request(&self, id: u64, body: &[u8], waiter: Waiter) -> Result<(), LinkError> {
        match self.waiting.lock().as_mut() {
            Some(waiting) => _ = waiting.insert(id, waiter),
            None => return Err(LinkError::NotSent("the connection has just ended".into())),
        }
        let frames = wire::parts(body, |last, body| Frame::Request { id, last, body });
        for frame in frames.map_err(|error| LinkError::NotSent(error.to_string()))? {
            if self.outbox.send(frame).await.is_err() {
                return Err(LinkError::Lost("it was closed while a request was sent".into()));
            }
        }
        Ok(())
    }

    async fn call(&self, body: &[u8]) -> Result<Vec<u8>, LinkError> {
        let (done, answer) = oneshot::channel();
        let id = self.next();
        let _forget = Forget { link: self, id };
        self.request(id, body, Waiter::Answer { parts: Vec::new(), done }).await?;
        answer.await.map_err(|_| LinkError::Lost("it ended before the answer".into()))
    }

    async fn subscribe(&self, body: &[u8]) -> Result<Hints, LinkError> {
        let (told, hints) = mpsc::channel(BACKLOG);
        let (id, waiting, outbox) = (self.next(), self.waiting.clone(), self.outbox.downgrade());
        let mut hints = Hints { hints, id, waiting, outbox };
        self.request(id, body, Waiter::Hints(told)).await?;
        // The member says with a first hint that the subscription stands.
        match hints.hints.recv().await {
            Some(_) => Ok(hints),
            None => Err(LinkError::Lost("the subscription was refused".into())),
        }
    }
}

async fn read(
    reading: ReadHalf<Box<dyn Connection>>,
    waiting: &Mutex<Waiting>,
    heard: &AtomicU64,
    born: Instant,
    outbox: &mpsc::WeakSender<Vec<u8>>,
) -> io::Result<()> {
    let mut reading = BufReader::with_capacity(64 << 10, reading);
    let mut buffer = Vec::new();
    loop {
        wire::read_frame(&mut reading, &mut buffer).await?;
        heard.store(millis(born), Ordering::Relaxed);
        let mut unwanted = None;
        {
            let mut waiting = waiting.lock();
            let Some(waiting) = waiting.as_mut() else { return Ok(()) };
            match Frame::from_bytes(&buffer)? {
                Frame::Answer { id, last, body } => match waiting.get_mut(&id) {
                    Some(Waiter::Answer { parts, .. }) => {
                        if parts.len() + body.len() > wire::MAX_ANSWER {
                            return Err(io::Error::other("an answer is over the limit"));
                        }
                        parts.extend_from_slice(body);
                        if last && let Some(Waiter::Answer { parts, done }) = waiting.remove(&id) {
                            // The caller may have given up.
                            let _ = done.send(parts);
                        }
                    }
                    // A subscription that was refused.
                    Some(Waiter::Hints(_)) => _ = waiting.remove(&id),
                    None => {}
                },
                Frame::Hint { id, body } => {
                    let hint: Hint = wire::decode(body)?;
                    let told = match waiting.get(&id) {
                        Some(Waiter::Hints(hints)) => hints.try_send(hint).is_ok(),
                        _ => false,
                    };
                    if !told {
                        // Too slow, or gone: the end of its stream is the gap.
                        waiting.remove(&id);
                        unwanted = Some(id);
                    }
                }
                Frame::End { id } => _ = waiting.remove(&id),
                Frame::Pong => {}
                Frame::Ping | Frame::Request { .. } => return Err(io::Error::other("an unexpected frame")),
            }
        }
        if let (Some(id), Some(outbox)) = (unwanted, outbox.upgrade()) {
            // Where there is no room, the next hint says it again.
            let _ = outbox.try_send(Frame::End { id }.to_bytes()?);
        }
    }
}

async fn write(
    mut writing: WriteHalf<Box<dyn Connection>>,
    mut frames: mpsc::Receiver<Vec<u8>>,
    heard: &AtomicU64,
    born: Instant,
) -> io::Result<()> {
    // The next look at how long there has been silence. Few, for each wakes an idle process: an idle link is looked at when
    // it must give a sign of life, and any other one `PING` after something was sent.
    let look = sleep(QUIET);
    tokio::pin!(look);
    let mut batch = Vec::new();
    let mut sent = 0;
    // When the first of what was sent since the last look was, if nothing has been heard since.
    let mut asked: Option<u64> = None;
    loop {
        batch.clear();
        tokio::select! {
            // However much there is to send, silence is noticed.
            biased;
            () = &mut look => {
                let now = millis(born);
                asked = asked.filter(|asked| heard.load(Ordering::Relaxed) < *asked);
                if asked.is_some_and(|asked| now.saturating_sub(asked) > millis_of(SILENCE)) {
                    return Err(io::Error::other("nothing was heard for too long"));
                }
                let quiet = now.saturating_sub(sent);
                if asked.is_none() && quiet < millis_of(QUIET) {
                    look.as_mut().reset(born + Duration::from_millis(sent) + QUIET);
                    continue;
                }
                batch.extend(Frame::Ping.to_bytes()?);
            }
            frame = frames.recv() => match frame {
                Some(frame) => batch = frame,
                None => return Ok(()),
            },
        }
        // What has gathered goes together.
        while batch.len() < 256 << 10
            && let Ok(frame) = frames.try_recv()
        {
            batch.extend(frame);
        }
        sent = millis(born);
        asked = asked.filter(|asked| heard.load(Ordering::Relaxed) < *asked).or(Some(sent));
        let soon = Instant::now() + PING;
        if look.is_elapsed() || soon < look.deadline() {
            look.as_mut().reset(soon);
        }
        // A peer that takes nothing in is as good as one that says nothing.
        match tokio::time::timeout(SILENCE, async {
            writing.write_all(&batch).await?;
            writing.flush().await
        })
        .await
        {
            Ok(written) => written?,
            Err(_) => return Err(io::Error::other("nothing could be sent for too long")),
        }
    }
}

fn millis(since: Instant) -> u64 {
    millis_of(since.elapsed())
}

fn millis_of(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use divider_core::{Store, StoreError};
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::{RaftStore, format::NEWEST};

    /// Answers each hello as a later program does, which reads nothing as old as what this one reads.
    async fn later_program() -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut said = b"DVDR".to_vec();
                said.extend([7_u16, 9, 8].iter().flat_map(|number| number.to_le_bytes()));
                said.extend(0_u32.to_le_bytes());
                let _ = stream.write_all(&said).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        address
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_that_is_too_old_is_told_what_is_needed() {
        let address = later_program().await;
        let client = RaftStore::builder("/test/").unwrap().client([&address]).plaintext();
        let client = client.configure(|config| config.open_time_limit = Duration::from_millis(500)).build().unwrap();
        let error = client.open().await.unwrap_err();
        // A client reads nothing of what is written, so it need not read more than the other side does.
        let StoreError::TooOld { needs: 7, reads } = error else { panic!("{error:?}") };
        assert_eq!(reads, u16::from(NEWEST));
        // Whoever asks later is told why nobody answers.
        let StoreError::Unavailable { message, source } = client.members().await.unwrap_err() else { panic!() };
        let source = source.unwrap();
        let too_old = source.downcast_ref::<TooOld>().unwrap();
        assert_eq!((too_old.needs, too_old.reads, too_old.here), (7, u16::from(NEWEST), true));
        assert!(message.contains("too old"), "{message}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_error_says_which_host_and_port() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let client = RaftStore::builder("/test/").unwrap().client([&gone]).plaintext();
        let client = client.configure(|config| config.open_time_limit = Duration::from_millis(500)).build().unwrap();
        let error = client.open().await.unwrap_err().to_string();
        assert!(error.contains(&gone) && error.contains("refused"), "{error}");
    }
}
