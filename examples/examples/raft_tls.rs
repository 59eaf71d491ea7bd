//! cargo run --release -p divider-examples --example raft_tls
//!
//! A Raft cluster of three whose members, and whose clients, show each other certificates of the same authority. Here the
//! authority is made at the start; in production its key lies somewhere safe, and each machine has its own certificate
//! and key, read with `Tls::from_pem`.

#![allow(clippy::print_stdout, reason = "it shows something")]

use divider::raft::{RaftBuilder, RaftStore, Tls};
use divider::{Divider, Group, Node, Work};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

/// What `main` returns: a message for a person.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

const GROUP: &str = "/raft-tls/";
const NAMES: [&str; 3] = ["anna", "bert", "carl"];

/// What stands for your certificate authority.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Self, AnyError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// A certificate for a member or a client: it carries the member's name, by which the others know it, and the host of
    /// the addresses at which it is looked for as a seed.
    fn issue(&self, name: &str) -> Result<Tls, AnyError> {
        let mut params = CertificateParams::new([name.to_owned(), "localhost".to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Tls::from_pem(self.0.pem().as_bytes(), certificate.pem().as_bytes(), key.serialize_pem().as_bytes())?)
    }
}

/// Addresses on this machine at which nobody listens, in place of those of three machines.
fn free_addresses() -> std::io::Result<[String; 3]> {
    let bound = [0; 3].map(|port| std::net::TcpListener::bind(("127.0.0.1", port)));
    let mut addresses = [const { String::new() }; 3];
    for (address, bound) in addresses.iter_mut().zip(bound) {
        *address = format!("localhost:{}", bound?.local_addr()?.port());
    }
    Ok(addresses)
}

async fn start(store: RaftBuilder) -> Result<Node, AnyError> {
    let node = Node::builder(store.build()?).build()?;
    node.start().await?;
    Ok(node)
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    println!("A Raft cluster with certificates");
    let disk = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let seeds = free_addresses()?;

    println!("\nthree members, each with a certificate in its own name");
    let member = |at: usize| {
        let builder = RaftStore::builder(disk.path().join(NAMES[at]), Group::new(GROUP)?).name(NAMES[at])?;
        let builder = builder.listen(&seeds[at]).seeds(&seeds).tls(authority.issue(NAMES[at])?);
        // What is listened at is an address; what the others look for is a host in a certificate.
        Ok::<_, AnyError>(builder.configure(|config| {
            config.advertise = Some(seeds[at].clone());
            // Whoever else has a certificate of the authority is a client.
            config.members = NAMES.map(str::to_owned).into();
        }))
    };
    let (anna, _bert, _carl) = tokio::try_join!(start(member(0)?), start(member(1)?), start(member(2)?))?;
    anna.add_work(vec![Work::new("tenant-1")?]).await?;

    println!("\na client with a certificate of the same authority");
    let client = |tls| Ok::<_, AnyError>(RaftStore::client(&seeds, Group::new(GROUP)?).tls(tls));
    let node = start(client(authority.issue("dora")?)?).await?;
    println!("    it has joined the group: {} key is declared", node.stats().await?.registered);

    println!("\na client with a certificate of another authority");
    let stranger = client(Authority::new()?.issue("dora")?)?;
    match start(stranger.configure(|config| config.open_time_limit = std::time::Duration::from_secs(2))).await {
        Ok(_) => return Err("it was let in".into()),
        Err(error) => println!("    it is kept out: {error}"),
    }
    Ok(())
}
