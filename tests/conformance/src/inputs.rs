//! Every limit of every input: what is inside works, what is outside is refused with an error that names the limit, and
//! nothing else happens.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use divider_core::{Blob, Error, Group, InvalidInput, Key, NodeId, Work, limits};

use super::{Backend, Dice, Trial, trial::PATIENCE};

/// Adds all keys, and checks that each comes back exactly as it went in, once, and can be spoken of by its name.
async fn come_back<B: Backend>(trial: &Trial<B>, names: Vec<String>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let mut expected = HashMap::new();
    let mut work = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        let payload = i.to_string().into_bytes();
        work.push(Work::new(&name).unwrap().payload(payload.clone()));
        assert!(expected.insert(name, payload).is_none(), "each name is given once");
    }
    let count = expected.len();
    seat.add_work(work).await.unwrap();
    for start in seat.starts(count).await {
        let payload = expected.remove(start.key.as_str()).expect("only what was added, and once");
        assert_eq!(start.payload[..], payload, "{:?} has the payload of another key", start.key);
        let record = seat.record(&start.key).await.unwrap().expect("it is found by its name");
        assert_eq!((&record.view.key, &record.payload[..]), (&start.key, &payload[..]));
        seat.finish(&start).await;
        assert_eq!(seat.record(&start.key).await.unwrap(), None);
    }
    assert_eq!(seat.stats().await.unwrap().registered, 0);
}

pub async fn keys_of_every_length_come_back<B: Backend>(trial: Trial<B>) {
    let lengths = [1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 1023, 1024];
    let mut names: Vec<String> = lengths.iter().map(|length| "k".repeat(*length)).collect();
    names.push("ф".repeat(limits::MAX_KEY_BYTES / 2));
    names.push("🦀".repeat(limits::MAX_KEY_BYTES / 4));
    come_back(&trial, names).await;
}

pub async fn keys_outside_of_the_limits_are_refused_by_name<B: Backend>(_trial: Trial<B>) {
    assert_eq!(Key::new(""), Err(InvalidInput::Empty { what: "key" }));
    for bytes in [1025, 1 << 20] {
        let error = InvalidInput::TooLong { what: "key", bytes, limit: limits::MAX_KEY_BYTES };
        assert_eq!(Key::new("k".repeat(bytes)), Err(error.clone()));
        assert_eq!(Key::from_bytes(&vec![0xff; bytes]), Err(error.clone()));
        assert!(error.to_string().contains("1024"));
    }
    assert_eq!(Key::new("ф".repeat(513)).map(drop).map_err(|e| e.to_string().contains("1026")), Err(true));
    assert_eq!(Key::new("a\0b"), Err(InvalidInput::Nul { what: "key", at: 1 }));
    assert_eq!(Key::new("\0"), Err(InvalidInput::Nul { what: "key", at: 0 }));
    assert_eq!(Key::from_bytes(b"ab\xff"), Err(InvalidInput::NotUtf8 { what: "key", valid_up_to: 2 }));
    // Half of a surrogate pair, an overlong slash, and a cut-off character.
    for bytes in [&b"\xed\xa0\x80"[..], b"\xc0\xaf", b"\xf0\x9f\xa6"] {
        assert_eq!(Key::from_bytes(bytes), Err(InvalidInput::NotUtf8 { what: "key", valid_up_to: 0 }));
    }
    assert!(Group::new("").is_err() && Group::new("g".repeat(limits::MAX_GROUP_BYTES + 1)).is_err());
    assert!(Group::new("g\0").is_err() && Group::new("g".repeat(limits::MAX_GROUP_BYTES)).is_ok());
    assert!(NodeId::new("").is_err() && NodeId::new("n".repeat(limits::MAX_NODE_BYTES + 1)).is_err());
}

pub async fn names_that_mean_something_elsewhere_are_mere_names<B: Backend>(trial: Trial<B>) {
    let names = [
        "*",
        "?",
        "[a-z]",
        "a*",
        "a?",
        "[^a]",
        "\\*",
        "%",
        "_",
        "a%",
        "a_",
        "a%b",
        "{a}",
        "{}",
        "}{",
        "{a",
        "a b",
        " a",
        "a ",
        "\t",
        "\n",
        "\r\n",
        "'",
        "\"",
        "''; DROP TABLE keys; --",
        "$1",
        "${HOME}",
        "%s%n",
        "/",
        "//",
        "../..",
        ".",
        "a:b",
        ":",
        "::",
        ",",
        "a,b",
        ";",
        "#",
        "&",
        "|",
        "<a>",
        "\u{7f}",
        "\u{1}",
        "\u{feff}",
        "\u{200b}",
        "\u{202e}abc",
        "\u{10ffff}",
        "\u{fffd}",
        "null",
        "true",
        "0",
        "-1",
        "1e9",
        "NaN",
        "a/",
        "a//",
        "/a",
        "KEY",
        "key",
        "Key",
        "ß",
        "ss",
        "ı",
        "i",
        "I",
        "İ",
        "nil",
        "(integer) 1",
        "a\u{0301}a",
        "keys",
        "session",
        "group",
        "__proto__",
    ];
    come_back(&trial, names.map(String::from).to_vec()).await;
}

pub async fn twins_that_look_alike_are_two_keys<B: Backend>(trial: Trial<B>) {
    let twins = ["\u{e9}", "e\u{301}", "\u{c5}", "\u{212b}", "A\u{30a}", "ﬁ", "fi", "\u{ac00}", "\u{1100}\u{1161}"];
    come_back(&trial, twins.map(String::from).to_vec()).await;
}

pub async fn random_text_comes_back_and_random_bytes_are_text_or_refused<B: Backend>(trial: Trial<B>) {
    let mut dice = Dice::seeded();
    let seed = dice.0;
    let mut names: HashMap<String, ()> = HashMap::new();
    while names.len() < 60 {
        let length = 1 + dice.index(limits::MAX_KEY_BYTES);
        let mut text = String::new();
        loop {
            // Of every size in UTF-8, and the awkward ones often.
            let top = [0x7f, 0x7ff, 0xffff, 0x10_ffff][dice.index(4)];
            let code = u32::try_from(1 + dice.index(top)).unwrap_or(1);
            let Some(char) = char::from_u32(code) else { continue };
            if text.len() + char.len_utf8() > length {
                break;
            }
            text.push(char);
        }
        if !text.is_empty() {
            names.insert(text, ());
        }
    }
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..dice.index(40)).map(|_| u8::try_from(dice.index(256)).unwrap_or(0)).collect();
        let text = std::str::from_utf8(&bytes).ok().filter(|text| !text.is_empty() && !text.contains('\0'));
        let key = Key::from_bytes(&bytes);
        assert_eq!(key.ok().as_ref().map(Key::as_str), text, "seed {seed}: {bytes:?}");
    }
    come_back(&trial, names.into_keys().collect()).await;
}

pub async fn payload_and_checkpoint_hold_their_limit_and_no_more<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let most: Vec<u8> = (0..limits::MAX_PAYLOAD_BYTES).map(|i| (i * 31 % 256) as u8).collect();
    let over = vec![7; limits::MAX_PAYLOAD_BYTES + 1];
    let too_long = |result: Result<(), Error>, field: &str| match result {
        Err(Error::Invalid(InvalidInput::TooLong { what, bytes: 65_537, limit: 65_536 })) => assert_eq!(what, field),
        other => panic!("should have been refused: {other:?}"),
    };
    // One bad input refuses the whole call.
    let work = vec![Work::new("b").unwrap(), Work::new("c").unwrap().payload(over.clone())];
    too_long(seat.add_work(work).await, "payload");
    assert_eq!(seat.stats().await.unwrap().registered, 0);
    seat.add_work(vec![Work::new("a").unwrap().payload(most.clone())]).await.unwrap();
    let start = seat.start().await;
    assert_eq!(start.payload[..], most[..]);
    seat.checkpoint(&start.key, start.token, Blob::from(most.clone())).await.unwrap();
    too_long(seat.checkpoint(&start.key, start.token, Blob::from(over)).await, "checkpoint");
    seat.send_stop_processing(&start.key, start.token).await.unwrap();
    seat.stop_and_confirm().await;
    let start = seat.start().await;
    assert!(start.payload[..] == most[..] && start.checkpoint[..] == most[..]);
}

pub async fn numbers_outside_of_their_range_are_refused_whole<B: Backend>(trial: Trial<B>) {
    trial.end_hold().await;
    let mut seat = trial.node(|_| {}).await;
    let work = |name: &str| Work::new(name).unwrap();
    let refused = async |work: Vec<Work>| match seat.add_work(work).await {
        Err(Error::Invalid(error)) => error,
        other => panic!("should have been refused: {other:?}"),
    };
    for weight in [0, limits::MAX_WEIGHT + 1, u32::MAX] {
        let error = refused(vec![work("a"), work("b").weight(weight)]).await;
        assert!(matches!(error, InvalidInput::OutOfRange { what: "weight", .. }), "{error}");
    }
    let mut late = work("a");
    late.not_before_ms = limits::MAX_NOT_BEFORE_MS + 1;
    let error = refused(vec![late]).await;
    assert!(matches!(error, InvalidInput::OutOfRange { what: "not_before_ms", .. }), "{error}");
    let error = refused(vec![work("a"), work("b"), work("a").weight(2)]).await;
    assert_eq!(error, InvalidInput::Twice { key: Key::new("a").unwrap() });
    assert_eq!(seat.stats().await.unwrap().registered, 0);
    // The ends of the ranges themselves are fine.
    seat.add_work(Vec::new()).await.unwrap();
    seat.remove_work(Vec::new()).await.unwrap();
    let heavy = work("heavy").weight(limits::MAX_WEIGHT).priority(i32::MAX);
    seat.add_work(vec![heavy, work("light").weight(1).priority(i32::MIN)]).await.unwrap();
    let starts = seat.starts(2).await;
    assert_eq!(starts.iter().map(|start| start.weight).max(), Some(limits::MAX_WEIGHT));
    // A pause as long as anybody likes is cut to what a store can keep.
    seat.give_up(&starts[0].key, starts[0].token, Duration::MAX).await.unwrap();
    seat.stop_and_confirm().await;
    let record = seat.record(&starts[0].key).await.unwrap().unwrap();
    assert!(record.view.retry_at_ms >= limits::MAX_PAUSE_MS, "{}", record.view.retry_at_ms);
}

pub async fn the_longest_names_of_group_and_node_work<B: Backend>(trial: Trial<B>) {
    let fresh = uuid::Uuid::new_v4().simple().to_string();
    let group = Group::new(format!("{fresh}{}", "ж".repeat((limits::MAX_GROUP_BYTES - fresh.len()) / 2))).unwrap();
    assert_eq!(group.as_str().len(), limits::MAX_GROUP_BYTES);
    let trial = trial.of(group);
    trial.end_hold().await;
    let node = NodeId::new("n".repeat(limits::MAX_NODE_BYTES)).unwrap();
    let mut seat = trial.node(|config| config.node = node).await;
    seat.add(&["a"]).await;
    seat.start().await;
}

pub async fn a_hundred_thousand_keys_are_divided<B: Backend>(trial: Trial<B>) {
    const KEYS: usize = 100_000;
    trial.end_hold().await;
    let (first, second) = (trial.node(|_| {}).await, trial.node(|_| {}).await);
    let work = (0..KEYS).map(|i| Work::new(format!("key {i}")).unwrap()).collect();
    first.add_work(work).await.unwrap();
    // How fast that goes is for benchmarks; here it has to go on.
    let (mut held, mut since) = (0, Instant::now());
    while held < KEYS {
        let now = first.assigned().len() + second.assigned().len();
        if now != held {
            (held, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{held} are assigned, and no more for {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((first.assigned().len(), second.assigned().len()), (KEYS / 2, KEYS / 2));
    let stats = first.stats().await.unwrap();
    assert_eq!((stats.registered, stats.assigned, stats.pending), (KEYS as u64, KEYS as u64, 0));
}
