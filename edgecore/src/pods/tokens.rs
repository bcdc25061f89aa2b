//! Asking the cloud for service account tokens, and again before they expire. An expired token stays
//! in place until a newer one arrives. When that is, is by the cloud's clock, not by this machine's.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use podcore::materials::TokenAsk;
use proto::ids::Uid;
use proto::wire::{Report, ReportKey};
use serde::Serialize;

use crate::link::Upstream;

/// Before a token that did not come is asked for again: doubled each time. The link itself repeats
/// what the cloud has not answered.
const ASK_AGAIN: Duration = Duration::from_mins(1);
const ASK_AGAIN_MAX: Duration = Duration::from_hours(1);

/// What the cloud is asked, as JSON. The pod says for which service account.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wanted<'a> {
    audience: &'a str,
    expiration_seconds: i64,
    service_account: &'a str,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    again_at: Timestamp,
    wait: Duration,
}

/// The tokens of one pod that were asked for.
#[derive(Debug, Default)]
pub struct Tokens {
    by_source: BTreeMap<String, Asked>,
}

impl Tokens {
    /// Asks for what is due by the cloud's clock, where it is `now`; answers when to look again. `asks` is `None`
    /// for a pod that is ending.
    pub fn ask(
        &mut self,
        upstream: &Upstream,
        pod: &Uid,
        asks: Option<&Vec<(TokenAsk, Option<Timestamp>)>>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut wake_at = None;
        for (ask, due) in asks.into_iter().flatten() {
            let at = match due {
                Some(due) if now < *due => {
                    self.by_source.remove(&ask.source);
                    *due
                }
                _due => self.ask_for(upstream, pod, ask, now),
            };
            wake_at = Some(wake_at.map_or(at, |other: Timestamp| other.min(at)));
        }

        wake_at
    }

    fn ask_for(
        &mut self,
        upstream: &Upstream,
        pod: &Uid,
        ask: &TokenAsk,
        now: Timestamp,
    ) -> Timestamp {
        let before = self.by_source.get(&ask.source);
        // Further away than the wait means that the clock was set back.
        let holds = |asked: &&Asked| now < asked.again_at && asked.again_at <= now + asked.wait;
        if let Some(asked) = before.filter(holds) {
            return asked.again_at;
        }
        let wait = before.map_or(ASK_AGAIN, |asked| (asked.wait * 2).min(ASK_AGAIN_MAX));
        let wanted = Wanted {
            audience: &ask.audience,
            expiration_seconds: ask.expiration_seconds,
            service_account: &ask.service_account,
        };
        match serde_json::to_vec(&wanted) {
            Ok(json) => upstream.report(Report {
                key: ReportKey::TokenWanted { pod: pod.clone(), source: ask.source.clone() },
                bytes: json.into(),
                done: false,
            }),
            Err(error) => tracing::error!(%error, "a token request cannot be written as JSON"),
        }
        let again_at = now + wait;
        self.by_source.insert(ask.source.clone(), Asked { again_at, wait });

        again_at
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use jiff::SignedDuration;

    use super::*;

    const YEARS: SignedDuration = SignedDuration::from_hours(20 * 365 * 24);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_token_is_asked_for_when_it_is_due_and_not_at_every_look() {
        let (upstream, pod) = (Upstream::default(), Uid::new("pod").unwrap());
        let ask = TokenAsk {
            source: "s".to_owned(),
            audience: String::new(),
            expiration_seconds: 3600,
            service_account: "default".to_owned(),
        };
        let mut tokens = Tokens::default();
        let mut check = |due: Option<Timestamp>, now, asked: bool, again: Timestamp| {
            let asks = vec![(ask.clone(), due)];
            assert_eq!(tokens.ask(&upstream, &pod, Some(&asks), now), Some(again), "{now}");
            assert_eq!(upstream.take().now_or_never().is_some(), asked, "{now}");
        };
        check(None, at(0), true, at(60));
        check(None, at(59), false, at(60));
        check(None, at(60), true, at(180));
        check(Some(at(3000)), at(61), false, at(3000));
        check(Some(at(3000)), at(3000), true, at(3060));
        // A time that turns out to be wrong holds nothing up, and floods nobody.
        check(Some(at(3000)), at(3000) + YEARS, true, at(3120) + YEARS);
        check(Some(at(3000)), at(3001) + YEARS, false, at(3120) + YEARS);
        check(Some(at(3000)), at(3000), true, at(3240));
        check(Some(at(3000)), at(3001), false, at(3240));
    }
}
