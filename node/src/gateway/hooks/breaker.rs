//! The circuit breaker of a backend: after several consecutive failures its requests fail at
//! once, until a pause has passed and one trial request has succeeded.
//!
//! ```text
//!            failures in a row            pause is over            trial starts
//!  CLOSED ───────────────────► OPEN ──────────────────► HALF OPEN ─────────────► TRYING
//!     ▲                          ▲  ◄─────── failure, longer pause ──────────────┤
//!     └──────────────────────────┴─────────────── success ───────────────────────┘
//! ```
//!
//! It reads no clock: the caller waits for the pause and reports its end.

use std::time::Duration;

use parking_lot::Mutex;

/// The longest pause. Each failed trial doubles the pause up to it.
const MAX_PAUSE: Duration = Duration::from_secs(30);

pub(super) struct Breaker {
    /// How many consecutive failures open it.
    threshold: u32,
    first_pause: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { pause: Duration },
    HalfOpen { pause: Duration },
    Trying { pause: Duration },
}

/// The change that a result has caused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// It has opened. [`Breaker::pause_over`] must be called after the pause.
    Opened(Duration),
    Closed,
}

impl Breaker {
    pub(super) fn new(threshold: u32, first_pause: Duration) -> Self {
        Self {
            threshold,
            first_pause,
            state: Mutex::new(State::Closed { failures: 0 }),
        }
    }

    /// Whether a request would fail at once.
    pub(super) fn is_open(&self) -> bool {
        !matches!(
            *self.state.lock(),
            State::Closed { .. } | State::HalfOpen { .. }
        )
    }

    /// Lets a request pass. Returns `None` if it must fail at once.
    pub(super) fn pass(&self) -> Option<Passed<'_>> {
        let mut state = self.state.lock();
        match *state {
            State::Closed { .. } => {}
            State::HalfOpen { pause } => *state = State::Trying { pause },
            State::Open { .. } | State::Trying { .. } => return None,
        }
        Some(Passed {
            breaker: self,
            is_reported: false,
        })
    }

    /// The pause has passed: the next request is a trial.
    pub(super) fn pause_over(&self) {
        let mut state = self.state.lock();
        if let State::Open { pause } = *state {
            *state = State::HalfOpen { pause };
        }
    }

    fn succeeded(&self) -> Change {
        let mut state = self.state.lock();
        // A request that passed before it opened shows nothing new.
        if matches!(*state, State::Open { .. } | State::HalfOpen { .. }) {
            return Change::Nothing;
        }
        let was_trying = matches!(*state, State::Trying { .. });
        *state = State::Closed { failures: 0 };
        if was_trying {
            Change::Closed
        } else {
            Change::Nothing
        }
    }

    fn failed(&self) -> Change {
        let mut state = self.state.lock();
        let pause = match *state {
            State::Closed { failures } if failures + 1 < self.threshold => {
                *state = State::Closed {
                    failures: failures + 1,
                };
                return Change::Nothing;
            }
            State::Closed { .. } => self.first_pause,
            State::Trying { pause } => pause.saturating_mul(2).min(MAX_PAUSE),
            State::Open { .. } | State::HalfOpen { .. } => return Change::Nothing,
        };
        *state = State::Open { pause };
        Change::Opened(pause)
    }

    /// A trial ended without a result, for example because its client has disconnected.
    fn abandoned(&self) {
        let mut state = self.state.lock();
        if let State::Trying { pause } = *state {
            *state = State::HalfOpen { pause };
        }
    }
}

/// A request that was let through. Dropped without a result, it counts as neither.
pub(super) struct Passed<'a> {
    breaker: &'a Breaker,
    is_reported: bool,
}

impl Passed<'_> {
    pub(super) fn report(mut self, is_success: bool) -> Change {
        self.is_reported = true;
        if is_success {
            self.breaker.succeeded()
        } else {
            self.breaker.failed()
        }
    }
}

impl Drop for Passed<'_> {
    fn drop(&mut self) {
        if !self.is_reported {
            self.breaker.abandoned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    fn report(breaker: &Breaker, is_success: bool) -> Change {
        breaker.pass().expect("it is not open").report(is_success)
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_starts_the_count_again() {
        let breaker = Breaker::new(3, PAUSE);
        for is_success in [false, false, true, false, false] {
            assert_eq!(report(&breaker, is_success), Change::Nothing);
        }
        assert_eq!(report(&breaker, false), Change::Opened(PAUSE));
        assert!(breaker.is_open());
        assert!(breaker.pass().is_none());
    }

    #[test]
    fn one_trial_closes_it_or_doubles_the_pause() {
        let breaker = Breaker::new(1, PAUSE);
        assert_eq!(report(&breaker, false), Change::Opened(PAUSE));
        breaker.pause_over();
        assert!(!breaker.is_open());
        let trial = breaker.pass().expect("a trial");
        assert!(breaker.pass().is_none(), "one at a time");
        assert_eq!(trial.report(false), Change::Opened(2 * PAUSE));
        breaker.pause_over();
        assert_eq!(report(&breaker, true), Change::Closed);
        assert_eq!(report(&breaker, true), Change::Nothing);
    }

    #[test]
    fn the_pause_grows_up_to_a_bound() {
        let breaker = Breaker::new(1, PAUSE);
        report(&breaker, false);
        for _ in 0..10 {
            breaker.pause_over();
            report(&breaker, false);
        }
        breaker.pause_over();
        assert_eq!(report(&breaker, false), Change::Opened(MAX_PAUSE));
    }

    #[test]
    fn a_trial_without_a_result_makes_room_for_the_next() {
        let breaker = Breaker::new(1, PAUSE);
        report(&breaker, false);
        breaker.pause_over();
        drop(breaker.pass());
        assert_eq!(report(&breaker, true), Change::Closed);
    }

    #[test]
    fn a_late_result_of_an_earlier_request_changes_nothing() {
        let breaker = Breaker::new(1, PAUSE);
        let [early, late] = [breaker.pass(), breaker.pass()].map(|passed| passed.expect("closed"));
        report(&breaker, false);
        assert_eq!(early.report(true), Change::Nothing);
        assert_eq!(late.report(false), Change::Nothing);
        assert!(breaker.is_open());
    }
}
