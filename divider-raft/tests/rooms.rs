//! The files of this crate depend on one another in one direction, and so do its rooms: nothing that is in a cycle with
//! something else can be understood, or changed, by itself.

// The helpers of a test may fail as it does.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A module of the crate: `["net", "wire"]`; the root is empty.
type Module = Vec<String>;
type Graph<N> = BTreeMap<N, BTreeSet<N>>;

/// The rooms, the lowest first: none uses what is above it.
const ROOMS: [&str; 5] = ["protocol", "net", "consensus", "cluster", "store"];

fn files(directory: &Path, module: &Module, found: &mut Vec<(Module, String)>) {
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // What is there for tests alone may look at everything.
        if ["tests", "fuzzing"].contains(&&*name) {
            continue;
        }
        let module: Module = module.iter().cloned().chain((name != "lib").then_some(name)).collect();
        match path.is_dir() {
            true => files(&path, &module, found),
            false => found.push((module, fs::read_to_string(&path).unwrap())),
        }
    }
}

/// The program itself: no comments, and no tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).map(|line| line.split(" //").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// All paths that a tree such as `a::{b, c::D}` stands for, and what follows on it.
fn paths<'a>(mut text: &'a str, prefix: &Module, found: &mut Vec<Module>) -> &'a str {
    let mut path = prefix.clone();
    loop {
        text = text.trim_start();
        if let Some(mut rest) = text.strip_prefix('{') {
            while !rest.trim_start().starts_with('}') {
                rest = paths(rest, &path, found);
                rest = rest.trim_start().trim_start_matches(',');
            }
            return &rest.trim_start()[1..];
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        match &text[..end] {
            "super" => _ = path.pop(),
            "self" | "crate" => {}
            segment => path.push(segment.to_owned()),
        }
        let rest = &text[end..];
        let Some(more) = rest.strip_prefix("::") else {
            found.push(path);
            let renamed =
                rest.trim_start().strip_prefix("as ").map(|name| name.trim_start_matches(char::is_alphanumeric));
            // A `*` names all that is there.
            return renamed.unwrap_or(rest).trim_start_matches('*');
        };
        text = more;
    }
}

fn graph(source: &Path) -> Graph<Module> {
    let mut all = Vec::new();
    files(source, &Module::new(), &mut all);
    let modules: BTreeSet<Module> = all.iter().map(|(module, _)| module.clone()).collect();
    let mut graph = Graph::new();
    for (module, text) in all {
        let text = code(&text);
        let mut named = Vec::new();
        for (at, start) in text.match_indices("crate::").chain(text.match_indices("super::")) {
            // The second `super` of a path was read with the first one.
            if !text[..at].ends_with("::") {
                let base = if start == "super::" { module.clone() } else { Module::new() };
                paths(&text[at..], &base, &mut named);
            }
        }
        // What a file declares it passes on.
        let declares = |child: &&Module| child.len() == module.len() + 1 && child.starts_with(&module);
        let mut uses: BTreeSet<Module> = modules.iter().filter(declares).cloned().collect();
        for path in named {
            let file = (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|path| modules.contains(path));
            uses.extend(file.filter(|file| *file != module));
        }
        graph.insert(module, uses);
    }
    graph
}

/// The sets of those that can all be reached from one another.
fn cycles<N: Ord + Clone>(graph: &Graph<N>) -> BTreeSet<BTreeSet<N>> {
    let reached = |from: &N| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(uses) = next.pop().and_then(|at| graph.get(at)) {
            next.extend(uses.iter().filter(|used| seen.insert((*used).clone())));
        }
        seen
    };
    let all: BTreeMap<&N, BTreeSet<N>> = graph.keys().map(|node| (node, reached(node))).collect();
    let cycle = |node: &N| all[node].iter().filter(|other| all[other].contains(node)).cloned().collect::<BTreeSet<_>>();
    graph.keys().map(cycle).filter(|cycle| !cycle.is_empty()).collect()
}

fn room(module: &Module) -> Option<String> {
    module.first().cloned()
}

#[test]
fn no_file_and_no_room_depends_on_what_depends_on_it() {
    let graph = graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let written = |cycle: &BTreeSet<Module>| cycle.iter().map(|module| module.join("/")).collect::<Vec<_>>().join(" ");
    let found: Vec<String> = cycles(&graph).iter().map(written).collect();
    assert!(found.is_empty(), "{} cycles of files:\n{}", found.len(), found.join("\n"));
    let mut rooms: Graph<Option<String>> = Graph::new();
    for (module, uses) in &graph {
        let others = uses.iter().map(room).filter(|other| *other != room(module));
        rooms.entry(room(module)).or_default().extend(others);
    }
    assert_eq!(cycles(&rooms), BTreeSet::new(), "cycles of rooms");
    let height = |room: &Option<String>| ROOMS.iter().position(|known| room.as_deref() == Some(*known));
    for (room, uses) in rooms.iter().filter(|(room, _)| height(room).is_some()) {
        let above: Vec<_> = uses.iter().filter(|used| height(used) > height(room)).collect();
        assert!(above.is_empty(), "{room:?} is below {above:?}");
    }
}
