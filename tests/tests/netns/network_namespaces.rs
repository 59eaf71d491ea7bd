//! The network fixture: what is cut does not arrive, what is healed does, and nothing of it stays behind.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use divider_tests::netns::Netns;

const PORT: u16 = 7400;
const PATIENCE: Duration = Duration::from_millis(300);

/// One socket in each place.
struct Bed {
    network: Netns,
    sockets: Vec<UdpSocket>,
}

impl Bed {
    fn new() -> Self {
        let network = Netns::new(3);
        let bind = |at| {
            let socket = network.within(at, || UdpSocket::bind((network.address(at), PORT))).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        };
        let sockets = (0..=network.hub()).map(bind).collect();
        Self { network, sockets }
    }

    fn arrives(&self, from: usize, to: usize) -> bool {
        let mut bytes = [0; 8];
        self.sockets[from].send_to(b"datagram", (self.network.address(to), PORT)).unwrap();
        match self.sockets[to].recv_from(&mut bytes) {
            Ok((_, sender)) => sender.ip() == self.network.address(from),
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Asserts that everything arrives but what is listed.
    fn only_lost(&self, lost: &[(usize, usize)]) {
        let places = 0..=self.network.hub();
        for (from, to) in places.clone().flat_map(|from| places.clone().map(move |to| (from, to))) {
            assert_eq!(self.arrives(from, to), !lost.contains(&(from, to)), "from {from} to {to}");
        }
    }
}

#[test]
fn a_cut_loses_what_it_names_in_silence_and_a_heal_brings_everything_back() {
    let bed = Bed::new();
    bed.only_lost(&[]);
    bed.network.cut(0, 1);
    bed.only_lost(&[(0, 1), (1, 0)]);
    bed.network.heal();
    bed.only_lost(&[]);
    bed.network.cut_one_way(2, 0);
    bed.only_lost(&[(2, 0)]);
    bed.network.heal();
    bed.network.isolate(1);
    bed.only_lost(&[(0, 1), (1, 0), (2, 1), (1, 2), (3, 1), (1, 3)]);
    bed.network.heal();
    bed.only_lost(&[]);
}

#[test]
fn a_connection_across_a_cut_hangs_and_is_not_refused() {
    let network = Netns::new(2);
    let address = SocketAddr::from((network.address(1), PORT));
    let listener = network.within(1, || TcpListener::bind(address)).unwrap();
    let connect = || network.within(0, || TcpStream::connect_timeout(&address, PATIENCE));
    connect().unwrap();
    network.cut_one_way(1, 0);
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::TimedOut);
    network.heal();
    connect().unwrap();
    drop(listener);
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused, "nobody listens, and nothing is cut");
}

#[test]
fn a_command_runs_in_its_place_under_its_own_process_id() {
    let network = Netns::new(1);
    let mut command = network.command(0);
    let child = command.args(["sh", "-c", "echo $$; ip -4 -o addr show dev net"]).stdout(std::process::Stdio::piped());
    let child = child.spawn().unwrap();
    let id = child.id();
    let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(said.lines().next(), Some(&*id.to_string()), "{said}");
    assert!(said.contains(&network.address(0).to_string()), "{said}");
}

/// Run by the next test, in a process that is killed in the middle of it.
#[test]
#[ignore = "it never ends by itself"]
fn holds_a_network_until_it_is_killed() {
    let _network = Netns::new(1);
    println!("made");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_process_leaves_no_namespace_behind() {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "network_namespaces::holds_a_network_until_it_is_killed", "--ignored", "--nocapture"]);
    let mut holder = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mine = format!("divider-{}-", holder.id());
    let left = || {
        let output = std::process::Command::new("ip").args(["netns", "list"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.starts_with(&mine)).count()
    };
    let out = std::io::BufReader::new(holder.stdout.take().unwrap());
    assert!(std::io::BufRead::lines(out).any(|line| line.unwrap().contains("made")));
    assert_eq!(left(), 2);
    holder.kill().unwrap();
    holder.wait().unwrap();
    let began = Instant::now();
    while left() > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "{} namespaces are left", left());
        std::thread::sleep(Duration::from_millis(20));
    }
}
