//! When a gRPC connection is read from again.

use std::time::{Duration, Instant};

/// How long a connection is left alone that only says what nobody waits for, and often.
pub const READ_PAUSE: Duration = Duration::from_micros(500);

/// Reads in close succession, with nothing in them that somebody waits for, before a connection is left alone for a while.
const CALM_READS: u32 = 8;

/// What a call was, to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The caller waits for the answer, or others for what it asks.
    Prompt,
    /// Nobody waits for the answer, nor for what it asks.
    Quiet,
}

/// Decides whether a connection is read from again at once.
///
/// A driver that puts small objects pins and frees each with a call of its own, thousands in a second, and waits for none of them. Read
/// and answered one by one they cost more than the puts. So once a connection has had [`CALM_READS`] reads, each soon after the one
/// before, in which was nothing but such calls, it is left alone for [`READ_PAUSE`] after each read, as a network card does with its
/// interrupts. A call that somebody waits for ends that; it was late by one pause at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calm {
    reads: u32,
    last: Option<Instant>,
    quiet: bool,
    prompt: bool,
}

impl Calm {
    /// A call came in.
    pub fn saw(&mut self, urgency: Urgency) {
        match urgency {
            Urgency::Quiet => self.quiet = true,
            Urgency::Prompt => self.prompt = true,
        }
    }

    /// What came with a read has been looked at.
    pub fn after_read(&mut self, now: Instant) -> Option<Duration> {
        let (quiet, prompt) = (std::mem::take(&mut self.quiet), std::mem::take(&mut self.prompt));
        let calm = quiet && !prompt;
        let soon = self.last.is_some_and(|last| now.saturating_duration_since(last) < 2 * READ_PAUSE);
        self.last = Some(now);
        self.reads = if calm && soon { (self.reads + 1).min(CALM_READS) } else { 0 };
        (self.reads == CALM_READS).then_some(READ_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_left_alone_only_while_it_says_often_what_nobody_waits_for() {
        let mut calm = Calm::default();
        let mut now = Instant::now();
        let mut read = |calm: &mut Calm, urgencies: &[Urgency], later: Duration| {
            now += later;
            urgencies.iter().for_each(|urgency| calm.saw(*urgency));
            calm.after_read(now)
        };
        let soon = READ_PAUSE / 2;
        let pauses: Vec<_> = (0..20).map(|_| read(&mut calm, &[Urgency::Quiet; 2], soon).is_some()).collect();
        assert_eq!(pauses.iter().position(|paused| *paused), Some(CALM_READS as usize), "{pauses:?}");
        assert!(pauses[CALM_READS as usize..].iter().all(|paused| *paused));
        for urgent in [&[Urgency::Quiet, Urgency::Prompt][..], &[Urgency::Prompt], &[]] {
            assert_eq!(read(&mut calm, urgent, soon), None, "{urgent:?}");
            assert_eq!(read(&mut calm, &[Urgency::Quiet], soon), None, "it begins anew after {urgent:?}");
            for _ in 0..CALM_READS {
                read(&mut calm, &[Urgency::Quiet], soon);
            }
        }
        assert!(read(&mut calm, &[Urgency::Quiet], soon).is_some());
        assert_eq!(read(&mut calm, &[Urgency::Quiet], 2 * READ_PAUSE), None, "seldom enough to be served at once");
    }
}
