//! When the windows and freezes of a policy let a rollback execute, and how long an approval lasts beside them.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::gate::Hold;
use crate::api::{approval_policy::ApprovalPolicySpec, duration, rollback_request::Priority};

/// Longest that an approval lasts, held or not.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Farthest that an end is looked for; beyond it none is in sight.
const HORIZON: SignedDuration = SignedDuration::from_hours(400 * 24);
/// Most stretches that are looked at for one answer: every minute of the longest approval, twice over.
const MOST_STRETCHES: usize = 30_000;

/// Windows and freezes of a policy, as they bind a request of one priority.
#[derive(Clone, Debug)]
pub struct Calendar {
    windows: Vec<Stretch>,
    freezes: Vec<Stretch>,
}

/// A recurring stretch of time.
#[derive(Clone, Debug)]
struct Stretch {
    cron: Cron,
    lasts: SignedDuration,
    zone: TimeZone,
}

impl Stretch {
    fn new(cron: &str, lasts: &str, zone: &str) -> Result<Self, String> {
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        Ok(Self {
            cron: parser.parse(cron).map_err(|error| format!("cron `{cron}`: {error}"))?,
            lasts: duration::parse(lasts)
                .ok()
                .and_then(|lasts| SignedDuration::try_from(lasts).ok())
                .ok_or_else(|| format!("`{lasts}` is no duration"))?,
            zone: TimeZone::get(zone).map_err(|error| format!("time zone `{zone}`: {error}"))?,
        })
    }

    /// When the stretch that is on at `now` ends; `None` where none is.
    fn ends(&self, now: Timestamp) -> Option<Timestamp> {
        let local = now.to_zoned(self.zone.clone());
        let began = self.cron.find_previous_occurrence(&local, true).ok()?;
        began.timestamp().checked_add(self.lasts).ok().filter(|end| *end > now)
    }

    /// When the next one begins, after `now`.
    fn begins(&self, now: Timestamp) -> Option<Timestamp> {
        let local = now.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&local, false).ok()?;
        Some(next.timestamp())
    }
}

impl Calendar {
    /// Reads a policy's windows, and those freezes that hold a request of this priority.
    ///
    /// # Errors
    /// What cannot be read, for people: a cron expression, a duration, a time zone.
    pub fn new(spec: &ApprovalPolicySpec, priority: Priority) -> Result<Self, String> {
        let windows = spec
            .windows
            .iter()
            .map(|window| Stretch::new(&window.cron, &window.duration, &window.time_zone))
            .collect::<Result<_, _>>()
            .map_err(|problem| format!("windows: {problem}"))?;
        let freezes = spec
            .freezes
            .iter()
            .filter(|freeze| {
                freeze
                    .except
                    .as_ref()
                    .is_none_or(|except| priority < except.min_priority)
            })
            .map(|freeze| Stretch::new(&freeze.cron, &freeze.duration, &freeze.time_zone))
            .collect::<Result<_, _>>()
            .map_err(|problem| format!("freezes: {problem}"))?;
        Ok(Self { windows, freezes })
    }

    /// Whether anything holds at `now`, and until when.
    pub fn hold(&self, now: Timestamp) -> Hold {
        let horizon = now.checked_add(HORIZON).unwrap_or(Timestamp::MAX);
        let mut at = now;
        for _ in 0..MOST_STRETCHES {
            if let Some(end) = self.freezes.iter().filter_map(|freeze| freeze.ends(at)).max() {
                at = end;
            } else if !self.windows.is_empty() && self.windows.iter().all(|window| window.ends(at).is_none()) {
                match self.windows.iter().filter_map(|window| window.begins(at)).min() {
                    Some(start) => at = start,
                    None => return Hold::NoEnd,
                }
            } else if at == now {
                return Hold::None;
            } else {
                return Hold::Until(at);
            }
            if at > horizon {
                break;
            }
        }
        Hold::NoEnd
    }

    /// When an approval given at `from` is over: its time runs only while nothing holds, and is [`LONGEST`] at most in all.
    pub fn usable_until(&self, from: Timestamp, time: SignedDuration) -> Timestamp {
        let last = from.checked_add(LONGEST).unwrap_or(Timestamp::MAX);
        let (mut at, mut left) = (from, time);
        for _ in 0..MOST_STRETCHES {
            match self.hold(at) {
                Hold::None => {}
                Hold::Until(end) => at = end,
                Hold::NoEnd => return last,
            }
            let freeze = self.freezes.iter().filter_map(|freeze| freeze.begins(at));
            let window = self.windows.iter().filter_map(|window| window.ends(at)).max();
            let until = freeze.chain(window).min().unwrap_or(Timestamp::MAX);
            let free = at.duration_until(until);
            if at >= last || free >= left {
                return at.checked_add(left).unwrap_or(last).min(last);
            }
            left -= free;
            at = until;
        }
        // A shorter approval is the safe side.
        at.min(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::approval_policy::{Freeze, FreezeException, Window};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn window(cron: &str, lasts: &str, zone: &str) -> Window {
        Window {
            cron: cron.into(),
            duration: lasts.into(),
            time_zone: zone.into(),
        }
    }

    fn office_hours() -> ApprovalPolicySpec {
        ApprovalPolicySpec {
            windows: vec![window("0 9 * * 1-5", "8h", "Europe/Berlin")],
            ..ApprovalPolicySpec::default()
        }
    }

    fn calendar(spec: &ApprovalPolicySpec) -> Calendar {
        Calendar::new(spec, Priority::Normal).unwrap()
    }

    #[test]
    fn without_windows_and_freezes_nothing_holds_and_the_time_runs() {
        let always = calendar(&ApprovalPolicySpec::default());
        let now = at("2026-03-02T10:00:00Z");
        assert_eq!(always.hold(now), Hold::None);
        assert_eq!(
            always.usable_until(now, SignedDuration::from_hours(1)),
            at("2026-03-02T11:00:00Z")
        );
    }

    #[test]
    fn a_window_is_in_its_own_time_zone_summer_and_winter() {
        let berlin = calendar(&office_hours());
        for (now, expected) in [
            ("2026-01-12T08:30:00Z", Hold::None),
            ("2026-01-12T07:30:00Z", Hold::Until(at("2026-01-12T08:00:00Z"))),
            ("2026-07-13T07:30:00Z", Hold::None),
            ("2026-07-13T15:00:00Z", Hold::Until(at("2026-07-14T07:00:00Z"))),
            // Friday evening waits for Monday, over the change to summer time.
            ("2026-03-27T20:00:00Z", Hold::Until(at("2026-03-30T07:00:00Z"))),
        ] {
            assert_eq!(berlin.hold(at(now)), expected, "{now}");
        }
    }

    #[test]
    fn a_freeze_inside_a_window_moves_the_end_to_the_next_open_moment() {
        let spec = ApprovalPolicySpec {
            freezes: vec![Freeze {
                cron: "0 0 24 12 *".into(),
                duration: "72h".into(),
                time_zone: "UTC".into(),
                except: Some(FreezeException {
                    min_priority: Priority::Urgent,
                }),
            }],
            ..office_hours()
        };
        // Thursday; the freeze ends on Sunday, the window opens on Monday.
        let christmas = at("2026-12-24T09:00:00Z");
        assert_eq!(calendar(&spec).hold(christmas), Hold::Until(at("2026-12-28T08:00:00Z")));
        let urgent = Calendar::new(&spec, Priority::Urgent).unwrap();
        assert_eq!(urgent.hold(christmas), Hold::None);
    }

    #[test]
    fn a_window_that_never_opens_has_no_end_in_sight() {
        let never = ApprovalPolicySpec {
            windows: vec![window("0 0 30 2 *", "1h", "UTC")],
            ..ApprovalPolicySpec::default()
        };
        assert_eq!(calendar(&never).hold(at("2026-01-01T00:00:00Z")), Hold::NoEnd);
    }

    #[test]
    fn the_time_of_an_approval_stands_still_while_something_holds() {
        let berlin = calendar(&office_hours());
        // Half an hour before the window closes on Friday, half an hour after it opens on Monday.
        let friday = at("2026-01-09T15:30:00Z");
        assert_eq!(
            berlin.usable_until(friday, SignedDuration::from_hours(1)),
            at("2026-01-12T08:30:00Z")
        );
        // Held all the time: a week at most.
        let closed = ApprovalPolicySpec {
            windows: vec![window("0 0 1 1 *", "1h", "UTC")],
            ..ApprovalPolicySpec::default()
        };
        let now = at("2026-03-01T00:00:00Z");
        assert_eq!(
            calendar(&closed).usable_until(now, SignedDuration::from_hours(1)),
            now + LONGEST
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (wrong, name) in [
            (window("61 * * * *", "1h", "UTC"), "61"),
            (window("0 9 * * *", "1h", "Mars/Olympus"), "Mars/Olympus"),
            (window("0 9 * * *", "soon", "UTC"), "soon"),
        ] {
            let spec = ApprovalPolicySpec {
                windows: vec![wrong],
                ..ApprovalPolicySpec::default()
            };
            let problem = Calendar::new(&spec, Priority::Normal).unwrap_err();
            assert!(problem.contains(name) && problem.starts_with("windows"), "{problem}");
        }
    }
}
