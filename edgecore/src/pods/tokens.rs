//! Asking the cloud for service account tokens, and again before they expire. An expired token stays
//! in place until a newer one arrives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use podcore::materials::TokenAsk;
use proto::ids::Uid;
use proto::wire::{Report, ReportKey};
use serde::Serialize;

use super::context::Context;

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
    /// Asks for what is due; answers when to look again. `asks` is `None` for a pod that is ending.
    pub fn ask(
        &mut self,
        context: &Arc<Context>,
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
                _due => self.ask_for(context, pod, ask, now),
            };
            wake_at = Some(wake_at.map_or(at, |other: Timestamp| other.min(at)));
        }

        wake_at
    }

    fn ask_for(
        &mut self,
        context: &Arc<Context>,
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
            Ok(json) => context.upstream.report(Report {
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
