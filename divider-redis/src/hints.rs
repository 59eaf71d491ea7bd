//! Wake-ups over pub/sub.
//!
//! # Why
//! Redis delivers at most once and forgets who does not listen: a subscription is the quick way, never the sure one. So
//! nothing here tries to be gapless. What it does promise is never to go deaf in silence: whatever interrupts it ends the
//! stream, which the node takes for a gap, subscribes again and reads.
//!
//! # How
//! Each subscription has a connection and a task of its own. The task reads at once whatever comes, so that the server
//! does not have to keep it; a reader that falls behind finds a gap instead of what did not fit. It asks the server for
//! a sign of life regularly, since a connection whose other end has vanished would otherwise stay open for ever.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use divider_core::{Hint, HintStream, StoreError, Topic};
use futures_util::{Stream, StreamExt};
use redis::{
    Client, ConnectionInfo, Msg, RedisResult,
    aio::{PubSubSink, PubSubStream},
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, sleep_until, timeout},
};

use crate::{
    RedisConfig, codec,
    connection::{Closed, within},
    error::unavailable,
    keys::Names,
    pace::Pace,
    server::Seen,
    target::Target,
};

/// Hints that wait for a slow reader; with their largest size this is what a subscription can cost in memory.
const WAITING: usize = 256;

pub(crate) async fn subscribe(
    target: &Target,
    config: &RedisConfig,
    names: &Arc<Names>,
    topic: Topic,
    pace: &Mutex<Pace>,
    closed: &Arc<Closed>,
) -> Result<HintStream, StoreError> {
    let channels = match topic {
        Topic::Session(session) => vec![names.session_channel(session), names.leader_channel()],
        Topic::Group => vec![names.group_channel()],
    };
    // Before the connecting: whatever is noticed meanwhile ends this subscription, too.
    let mut server = target.seen();
    server.mark_unchanged();
    let (sink, stream) = in_time(target, config, &channels, pace).await?;
    let (to, from) = mpsc::channel(WAITING);
    let missed = Arc::new(AtomicBool::new(false));
    let pump = Pump {
        sink,
        stream,
        server,
        to,
        missed: missed.clone(),
        names: names.clone(),
        topic,
        closed: closed.clone(),
        interval: config.ping_interval,
    };
    tokio::spawn(pump.run());
    Ok(Box::pin(Subscription { from, missed }))
}

/// Subscribes, at the pace at which a server that refuses may be tried.
async fn in_time(
    target: &Target,
    config: &RedisConfig,
    channels: &[String],
    pace: &Mutex<Pace>,
) -> Result<(PubSubSink, PubSubStream), StoreError> {
    let pace = || pace.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = pace().waiting();
    if let Some((next, last)) = waited {
        let limit = config.connect_timeout;
        timeout(limit, sleep_until(next)).await.map_err(|_| last)?;
    }
    let connected = connect(target, config, channels).await;
    match &connected {
        Ok(_) => pace().well(),
        Err(error) => pace().failed(error),
    }
    connected
}

/// Subscribes on the first server that lets us.
async fn connect(
    target: &Target,
    config: &RedisConfig,
    channels: &[String],
) -> Result<(PubSubSink, PubSubStream), StoreError> {
    let mut failure = None;
    for server in within(config.connect_timeout, target.servers_for_hints()).await?? {
        let at = server.addr().to_string();
        match timeout(config.connect_timeout, listen(server, channels)).await {
            Ok(Ok(subscription)) => return Ok(subscription),
            Ok(Err(error)) => failure = Some(target.error(error)),
            Err(_) => failure = Some(unavailable(&at, format!("no subscription within {:?}", config.connect_timeout))),
        }
        target.try_the_next_first();
    }
    Err(failure.unwrap_or(StoreError::Closed))
}

/// Opens a subscription. Its first sign of life is waited for: one that could not be watched would end at once, and again.
async fn listen(server: ConnectionInfo, channels: &[String]) -> RedisResult<(PubSubSink, PubSubStream)> {
    let (mut sink, stream) = Client::open(server)?.get_async_pubsub().await?.split();
    sink.subscribe(channels).await?;
    ping(&mut sink).await?;
    Ok((sink, stream))
}

/// A refusal comes as a value, not as an error, where any value is asked for; and the answer has several forms.
async fn ping(sink: &mut PubSubSink) -> RedisResult<()> {
    match sink.ping::<redis::Value>().await? {
        redis::Value::ServerError(refusal) => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// The task of one subscription. It ends with the connection, with the stream, or with the store.
struct Pump {
    sink: PubSubSink,
    stream: PubSubStream,
    /// Says that the commands go to another server now: this one may be the old one, which nobody writes to any more.
    server: watch::Receiver<Option<Seen>>,
    /// To the stream that was handed out; full where its reader is slow.
    to: mpsc::Sender<Hint>,
    /// Says that something did not fit.
    missed: Arc<AtomicBool>,
    names: Arc<Names>,
    topic: Topic,
    closed: Arc<Closed>,
    interval: std::time::Duration,
}

impl Pump {
    async fn run(mut self) {
        let mut pings = tokio::time::interval(self.interval);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sink = self.sink.clone();
        // Beside the reading, never before it: the answer comes in the same stream as the messages.
        let alive = async {
            loop {
                pings.tick().await;
                let answer = within(self.interval, ping(&mut sink)).await;
                if !matches!(answer, Ok(Ok(_))) {
                    return;
                }
            }
        };
        tokio::pin!(alive);
        loop {
            let message = tokio::select! {
                message = self.stream.next() => message,
                () = &mut alive => return,
                () = self.to.closed() => return,
                () = self.closed.wait() => return,
                Ok(()) = self.server.changed() => return,
            };
            let Some(message) = message else { return };
            if self.to.try_send(hint(&self.names, self.topic, &message)).is_err() {
                self.missed.store(true, Ordering::Release);
                // The reader may have emptied the queue just now and be asleep.
                _ = self.to.try_send(Hint::Gap);
            }
        }
    }
}

fn hint(names: &Names, topic: Topic, message: &Msg) -> Hint {
    let bytes = message.get_payload_bytes();
    match topic {
        Topic::Group => codec::hint(bytes, codec::batch, Hint::Batch),
        Topic::Session(_) if message.get_channel_name() == names.leader_channel() => Hint::LeaderGone,
        Topic::Session(_) => codec::hint(bytes, codec::message, Hint::Message),
    }
}

/// What the node reads.
struct Subscription {
    from: mpsc::Receiver<Hint>,
    missed: Arc<AtomicBool>,
}

impl Stream for Subscription {
    type Item = Hint;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Hint>> {
        // The gap goes first: what waits behind it may have followed on something that was dropped.
        if self.missed.swap(false, Ordering::AcqRel) {
            return Poll::Ready(Some(Hint::Gap));
        }
        self.from.poll_recv(cx)
    }
}
