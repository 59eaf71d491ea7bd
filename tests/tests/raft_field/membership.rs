//! Members that are replaced, move, are removed, or lose their disks for a while: nobody has to help.

use std::time::{Duration, Instant};

use divider_core::{Group, Store};
use divider_raft::{Condition, RaftConfig, RaftStore};
use divider_support::ops::add;
use divider_tests::raft::{Cluster, free_addresses};
use futures_util::future::join_all;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);

/// Waits for a condition.
async fn wait(what: &str, mut holds: impl AsyncFnMut() -> Result<(), String>) {
    let began = Instant::now();
    loop {
        match holds().await {
            Ok(()) => return,
            Err(problem) => assert!(began.elapsed() < SOON, "{what}: {problem}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A voter that is called nothing, as a container is that gets an empty disk with each start.
fn unnamed(address: &str, seeds: &[String], directory: &TempDir, configure: fn(&mut RaftConfig)) -> RaftStore {
    let builder = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).listen(address).seeds(seeds);
    builder.plaintext().configure(configure).build().unwrap()
}

fn named(name: &str, address: &str, seeds: &[String], directory: &TempDir) -> RaftStore {
    let builder = RaftStore::builder(directory.path(), Group::new("/test/").unwrap()).name(name).unwrap();
    builder.listen(address).seeds(seeds).plaintext().build().unwrap()
}

async fn open_all(stores: &[RaftStore]) {
    join_all(stores.iter().map(|store| store.open())).await.into_iter().for_each(Result::unwrap);
}

/// Three unnamed voters.
async fn three(configure: fn(&mut RaftConfig)) -> (Vec<String>, Vec<TempDir>, Vec<RaftStore>) {
    let seeds = free_addresses(3);
    let directories: Vec<_> = seeds.iter().map(|_| TempDir::new().unwrap()).collect();
    let build = |at: usize| unnamed(&seeds[at], &seeds, &directories[at], configure);
    let stores: Vec<_> = (0..3).map(build).collect();
    open_all(&stores).await;
    wait_for_voters(&stores[0], 3).await;
    (seeds, directories, stores)
}

async fn wait_for_voters(store: &RaftStore, count: usize) {
    wait("voters", async || {
        let members = store.members().await.map_err(|error| error.to_string())?;
        let votes = members.iter().filter(|(_, votes)| *votes).count();
        if votes == count { Ok(()) } else { Err(format!("{members:?}")) }
    })
    .await;
}

async fn works(store: &RaftStore, key: &str) {
    wait(key, async || store.apply(&[add(key)]).await.map(drop).map_err(|error| error.to_string())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_unnamed_voters_that_are_replaced_one_by_one_keep_the_quorum() {
    let (seeds, mut directories, mut stores) = three(|_| {}).await;
    for round in 0..2 {
        for at in 0..3 {
            stores[at].close().await;
            directories[at] = TempDir::new().unwrap();
            stores[at] = unnamed(&seeds[at], &seeds, &directories[at], |_| {});
            stores[at].open().await.unwrap_or_else(|error| panic!("round {round}, voter {at}: {error}"));
        }
    }
    works(&stores[0], "after").await;
    wait_for_voters(&stores[0], 3).await;
    assert_eq!(stores[0].members().await.unwrap().len(), 3, "nobody is counted who has left");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_voters_lose_their_votes_to_those_who_come_in_their_places() {
    let fast = |config: &mut RaftConfig| config.replace_dead_after = Some(Duration::from_millis(800));
    let (seeds, mut directories, mut stores) = three(fast).await;
    for at in 0..3 {
        let dead = stores[at].me().unwrap().id;
        // Without a word, as after kill -9.
        let directory = TempDir::new().unwrap();
        let new = unnamed(&seeds[at], &seeds, &directory, fast);
        drop(std::mem::replace(&mut stores[at], new));
        directories[at] = directory;
        stores[at].open().await.unwrap();
        let store = &stores[at];
        wait("the dead one is replaced", async || {
            let members = store.members().await.map_err(|error| error.to_string())?;
            let votes: Vec<_> = members.iter().filter(|(_, votes)| *votes).map(|(peer, _)| peer.id).collect();
            let replaced = votes.len() == 3 && !votes.contains(&dead) && votes.contains(&store.me().unwrap().id);
            if replaced { Ok(()) } else { Err(format!("{members:?}")) }
        })
        .await;
    }
    works(&stores[2], "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unnamed_voter_that_starts_again_from_its_disk_joins_again() {
    let (seeds, directories, mut stores) = three(|_| {}).await;
    works(&stores[0], "before").await;
    let id = stores[2].me().unwrap().id;
    stores[2].close().await;
    assert_eq!(stores[0].members().await.unwrap().len(), 2);
    stores[2] = unnamed(&seeds[2], &seeds, &directories[2], |_| {});
    stores[2].open().await.unwrap();
    assert_eq!(stores[2].me().unwrap().id, id);
    wait_for_voters(&stores[0], 3).await;
    assert_eq!(stores[2].stats().await.unwrap().registered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_unnamed_voters_that_end_together_come_back_together() {
    let (seeds, directories, stores) = three(|_| {}).await;
    works(&stores[0], "before").await;
    join_all(stores.iter().map(|store| store.close())).await;
    drop(stores);
    let stores: Vec<_> = (0..3).map(|at| unnamed(&seeds[at], &seeds, &directories[at], |_| {})).collect();
    open_all(&stores).await;
    wait_for_voters(&stores[0], 3).await;
    for store in &stores {
        assert_eq!(store.stats().await.unwrap().registered, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_with_more_seeds_than_there_are_members_opens() {
    let cluster = Cluster::start(3).await;
    let mut seeds: Vec<String> = (0..3).map(|at| cluster.address(at).to_owned()).collect();
    seeds.extend(free_addresses(2));
    let directory = TempDir::new().unwrap();
    let late = named("late", &free_addresses(1)[0], &seeds, &directory);
    late.open().await.unwrap();
    let members = late.members().await.unwrap();
    let votes = members.iter().filter(|(_, votes)| *votes).count();
    assert_eq!((members.len(), votes), (4, 3), "a fourth voter would help nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn voters_that_all_come_back_under_other_addresses_find_each_other() {
    for moved in [2, 3] {
        let old = free_addresses(3);
        let directories: Vec<_> = old.iter().map(|_| TempDir::new().unwrap()).collect();
        let build = |at: usize, seeds: &[String]| named(&format!("node-{at}"), &seeds[at], seeds, &directories[at]);
        let mut stores: Vec<_> = (0..3).map(|at| build(at, &old)).collect();
        open_all(&stores).await;
        wait_for_voters(&stores[0], 3).await;
        works(&stores[0], "before").await;
        let mut new = old.clone();
        new[..moved].clone_from_slice(&free_addresses(moved));
        for store in &stores[..moved] {
            store.close().await;
        }
        stores.drain(..moved);
        let came: Vec<_> = (0..moved).map(|at| build(at, &new)).collect();
        open_all(&came).await;
        works(&came[0], "after").await;
        wait("the membership says where they are", async || {
            let members = came[0].members().await.map_err(|error| error.to_string())?;
            let found = members.iter().filter(|(peer, votes)| *votes && new.contains(&peer.address)).count();
            if found == 3 { Ok(()) } else { Err(format!("{members:?}")) }
        })
        .await;
        assert_eq!(came[1].stats().await.unwrap().registered, 2);
    }
}

/// The seeds of those who move may lead to one only that has stayed.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_have_moved_find_each_other_through_one_that_has_stayed() {
    let old = free_addresses(3);
    let directories: Vec<_> = old.iter().map(|_| TempDir::new().unwrap()).collect();
    let stores: Vec<_> = (0..3).map(|at| named(&format!("node-{at}"), &old[at], &old, &directories[at])).collect();
    open_all(&stores).await;
    wait_for_voters(&stores[0], 3).await;
    stores[0].close().await;
    stores[1].close().await;
    let new = free_addresses(2);
    let came: Vec<_> = (0..2).map(|at| named(&format!("node-{at}"), &new[at], &old, &directories[at])).collect();
    open_all(&came).await;
    works(&came[0], "after").await;
    works(&stores[2], "there too").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_removed_says_so_and_goes_on_as_a_client() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (store, removed) = (cluster.store(leader), cluster.store((leader + 1) % 3));
    let id = removed.me().unwrap().id;
    assert_eq!(removed.condition(), Condition::Member);
    store.remove_member(id).await.unwrap();
    wait("it notices", async || match removed.condition() {
        Condition::Removed => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    works(removed, "from a client").await;
    assert_eq!(store.stats().await.unwrap().registered, 1);
    assert_eq!(removed.owner_of(&divider_core::Key::new("from a client").unwrap()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_that_the_dns_knows_apart_found_no_two_clusters() {
    let addresses = free_addresses(3);
    let directories: Vec<_> = addresses.iter().map(|_| TempDir::new().unwrap()).collect();
    let build = |at: usize, known: &[String]| {
        let builder = RaftStore::builder(directories[at].path(), Group::new("/test/").unwrap())
            .name(format!("node-{at}"))
            .unwrap();
        let known = known.to_vec();
        let configured = builder.listen(&addresses[at]).plaintext().configure(|config| {
            config.seed_names = known;
            config.voters_to_found = Some(3);
            config.open_time_limit = Duration::from_millis(1500);
        });
        configured.build().unwrap()
    };
    // Each is told of nobody but itself.
    let apart: Vec<_> = (0..3).map(|at| build(at, &addresses[at..=at])).collect();
    for opened in join_all(apart.iter().map(|store| store.open())).await {
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("voters_to_found"), "{error}");
    }
    join_all(apart.iter().map(|store| store.close())).await;
    drop(apart);
    let together: Vec<_> = (0..3).map(|at| build(at, &addresses)).collect();
    wait("they found one", async || {
        let opened = join_all(together.iter().map(|store| store.open())).await;
        opened.into_iter().collect::<Result<Vec<_>, _>>().map(drop).map_err(|error| error.to_string())
    })
    .await;
    wait_for_voters(&together[0], 3).await;
}
