//! Histories made by hand: good ones, and one for each thing that must be found.

use super::*;

#[derive(Default)]
struct Told(FleetHistory);

impl Told {
    fn line(mut self, process: ProcessId, event: Kind, token: u64, at: u64) -> Self {
        let reason = (event == Kind::Stop).then_some(StopReason::Rebalanced);
        let line = Line { key: Some("k".into()), token: Some(token), reason, ..Line::new(at, "n", event) };
        self.0.take_in(process, &line);
        self
    }

    fn lost(mut self, process: ProcessId, token: u64, at: u64) -> Self {
        let reason = Some(StopReason::Lost);
        let line = Line { key: Some("k".into()), token: Some(token), reason, ..Line::new(at, "n", Kind::Stop) };
        self.0.take_in(process, &line);
        self
    }

    #[track_caller]
    fn into_clean(self) -> FleetHistory {
        assert_eq!(self.0.problems(), Vec::<String>::new());
        self.0
    }

    #[track_caller]
    fn has(self, what: &str) {
        let problems = self.0.problems();
        assert!(problems.iter().any(|problem| problem.contains(what)), "{what:?} is not among {problems:?}");
    }
}

/// Process 0 has the key from 10 to 30 under token 1.
fn handed_over() -> Told {
    Told::default()
        .line(0, Kind::Start, 1, 10)
        .line(0, Kind::Tick, 1, 20)
        .line(0, Kind::Stop, 1, 25)
        .line(0, Kind::Tick, 1, 28)
        .line(0, Kind::Confirm, 1, 30)
}

#[test]
fn a_planned_move_is_clean_and_its_gap_is_known() {
    let history = handed_over().line(1, Kind::Start, 2, 35).line(1, Kind::Tick, 2, 40).into_clean();
    assert_eq!(history.gaps(0, 0), [Duration::from_nanos(5)]);
    assert_eq!(history.running(|_| true)["k"], [1]);
    assert_eq!(history.takeovers(0, 27), [("k", Some(Duration::from_nanos(8)))]);
}

#[test]
fn lines_of_two_processes_may_come_in_any_order() {
    Told::default().line(1, Kind::Start, 2, 35).line(0, Kind::Start, 1, 10).line(0, Kind::Tick, 1, 34).into_clean();
}

#[test]
fn a_lost_key_may_be_told_of_the_loss_after_another_has_started_it() {
    let told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Tick, 1, 20).line(1, Kind::Start, 2, 50);
    told.lost(0, 1, 80).line(0, Kind::Confirm, 1, 81).line(0, Kind::Tick, 1, 15).into_clean();
}

#[test]
fn a_tick_under_an_old_token_after_a_newer_start_is_an_overlap() {
    let told = Told::default().line(0, Kind::Start, 1, 10).line(1, Kind::Start, 2, 50).line(0, Kind::Tick, 1, 51);
    told.has("0 used token 1 1ns after 1 had started it under token 2");
}

#[test]
fn an_overlap_is_found_across_an_owner_in_between() {
    let told = Told::default().line(0, Kind::Start, 1, 10).line(1, Kind::Start, 2, 50).line(2, Kind::Start, 3, 60);
    told.line(0, Kind::Tick, 1, 70).has("0 used token 1 10ns after 2 had started it under token 3");
}

#[test]
fn a_token_that_goes_back_in_time_is_found() {
    Told::default()
        .line(0, Kind::Start, 5, 10)
        .line(1, Kind::Start, 4, 20)
        .has("1 used token 4 10ns after 0 had started it under token 5");
    let told = Told::default().line(0, Kind::Start, 5, 10).line(0, Kind::Stop, 5, 11).line(0, Kind::Confirm, 5, 12);
    told.line(0, Kind::Start, 4, 20).has("was started by 0 with token 4 after 5");
}

#[test]
fn a_token_given_twice_is_found() {
    Told::default().line(0, Kind::Start, 1, 10).line(1, Kind::Start, 1, 20).has("token 1 was given twice");
}

#[test]
fn two_starts_in_a_row_are_found() {
    Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Start, 2, 20).has("started twice in a row");
    let told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Stop, 1, 11);
    told.line(0, Kind::Start, 2, 20).has("started twice in a row");
}

#[test]
fn a_start_before_the_confirmation_of_the_stop_is_found() {
    let told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Stop, 1, 20).line(1, Kind::Start, 2, 25);
    told.line(0, Kind::Confirm, 1, 30).has("0 ended it (token 1) 5ns after 1 had started it");
}

#[test]
fn stops_ticks_and_confirmations_without_a_start_are_found() {
    for kind in [Kind::Stop, Kind::Tick, Kind::Confirm] {
        Told::default().line(0, kind, 1, 10).has("never started there");
    }
    Told::default().line(0, Kind::Start, 1, 10).line(1, Kind::Tick, 1, 11).has("never started there");
}

#[test]
fn a_second_stop_and_an_unasked_confirmation_are_found() {
    let told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Stop, 1, 11).line(0, Kind::Stop, 1, 12);
    told.has("asked to stop before");
    Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Confirm, 1, 11).has("nobody had asked");
}

#[test]
fn a_completion_ends_a_key_and_may_be_refused() {
    Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Complete, 1, 11).line(1, Kind::Start, 2, 12).into_clean();
    let told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Complete, 1, 11).line(0, Kind::Stop, 1, 12);
    told.line(0, Kind::Confirm, 1, 13).line(0, Kind::Start, 2, 14).into_clean();
    let told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Complete, 1, 11);
    told.line(0, Kind::Tick, 1, 12).has("had been confirmed before");
    handed_over().line(0, Kind::Confirm, 1, 31).has("had been confirmed before");
}

#[test]
fn a_tick_after_the_end_or_after_the_news_of_the_loss_is_found() {
    handed_over().line(0, Kind::Tick, 1, 31).has("had been confirmed before");
    Told::default().line(0, Kind::Start, 1, 10).lost(0, 1, 20).line(0, Kind::Tick, 1, 21).has("told of the loss");
}

#[test]
fn what_is_folded_still_contradicts_what_comes_later() {
    // Tokens 1 to 3; the first two are folded.
    let folded = || {
        let mut told = handed_over().line(1, Kind::Start, 2, 35).line(1, Kind::Tick, 2, 40).line(1, Kind::Stop, 2, 41);
        told = told.line(1, Kind::Confirm, 2, 42).line(2, Kind::Start, 3, 50);
        told.0.fold(|_| false, 45);
        told
    };
    assert_eq!((folded().0.starts(), folded().into_clean().claims("k").count()), (3, 1));
    folded().line(3, Kind::Start, 2, 60).has("token 2 was given twice");
    folded().line(0, Kind::Tick, 1, 60).has("never started there");
    let mut told = Told::default().line(0, Kind::Start, 2, 10).line(0, Kind::Tick, 2, 99).line(1, Kind::Start, 3, 100);
    told.0.fold(|process| process == 0, 0);
    assert_eq!(told.0.claims("k").count(), 1);
    told.line(2, Kind::Start, 1, 110).has("with token 1 long after 2");
}

#[test]
fn an_overlap_with_what_is_folded_is_found() {
    let mut told = Told::default().line(0, Kind::Start, 1, 10).line(0, Kind::Tick, 1, 70).line(1, Kind::Start, 3, 80);
    told.0.fold(|process| process == 0, 0);
    told.line(2, Kind::Start, 2, 60).has("0 used token 1 10ns after 2 had started it under token 2");
    // What was found before it was folded is not forgotten.
    let mut told = Told::default().line(0, Kind::Start, 1, 10).line(1, Kind::Start, 2, 50).line(0, Kind::Tick, 1, 51);
    told.0.fold(|process| process == 0, 0);
    told.has("0 used token 1 1ns after");
}

#[test]
fn what_may_still_be_spoken_of_is_not_folded() {
    let mut told = handed_over().line(1, Kind::Start, 2, 35).line(1, Kind::Complete, 2, 40).line(2, Kind::Start, 3, 45);
    told.0.fold(|_| false, 100);
    assert_eq!(told.into_clean().claims("k").count(), 2, "a completion may be refused");
}

#[test]
fn quantiles_are_values_that_occurred() {
    let mut values: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
    assert_eq!(quantile(&mut values, 0.5), Duration::from_millis(50));
    assert_eq!(quantile(&mut values, 0.99), Duration::from_millis(99));
    assert_eq!(quantile(&mut values, 1.0), Duration::from_millis(100));
    assert_eq!(quantile(&mut [Duration::from_millis(3)], 0.01), Duration::from_millis(3));
}
