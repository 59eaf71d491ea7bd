//! What the examples print for people: times, bars, and colour where there is a terminal.

#![allow(clippy::print_stdout, unreachable_pub, reason = "it is what this module is for, in several crates")]

use std::{io::IsTerminal, time::Instant};

/// Prints with the time since it was made. Plain where the output is no terminal, or `NO_COLOR` is set.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    began: Instant,
    rich: bool,
}

impl Show {
    /// Begins, with a headline.
    pub fn new(headline: &str) -> Self {
        let rich = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let show = Self { began: Instant::now(), rich };
        println!("\n{}", show.paint("1", headline));
        show
    }

    /// Says what happens now.
    pub fn step(&self, what: &str) {
        let time = format!("{:6.2} s", self.began.elapsed().as_secs_f64());
        println!("\n{}  {}", self.paint("2", &time), self.paint("1", what));
    }

    /// Says something more about it.
    pub fn note(&self, what: &str) {
        println!("          {what}");
    }

    /// A name, a number and a bar as long as the number, of at most `most`.
    pub fn bar(&self, name: &str, number: usize, most: usize, remark: &str) {
        const WIDTH: usize = 40;
        let length = (number * WIDTH).checked_div(most.max(1)).unwrap_or(0).min(WIDTH);
        let bar = if self.rich { "█" } else { "#" }.repeat(length);
        let pad = " ".repeat(WIDTH - length);
        println!("          {name:<8}{number:>5}  {}{pad}  {}", self.paint("36", &bar), self.paint("2", remark));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.rich && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
