//! The hooks of a container: after its start, and before its stop, whose grace counts for both
//! (kubelet: `killContainer`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use podcore::plan::Outcome;

use super::{Done, Job, probe};
use crate::clock;
use crate::events::EventType::Warning;
use crate::handlers::{self, Answer, Delivered};

/// The API sets no limit to the hook after a start; a container that waits for longer is as well
/// stopped.
const POST_START_MAX: Duration = Duration::from_hours(1);

impl Job {
    pub(super) async fn post_start(self, container: String, id: String, attempt: u32) -> Done {
        let found = self.container(&container);
        let hook = found.and_then(|of| Some((of, of.lifecycle.as_ref()?.post_start.as_ref()?)));
        let failure = match hook {
            Some((of, hook)) => self.run_hook(of, &id, hook, POST_START_MAX).await.err(),
            None => None,
        };
        if failure.is_some() {
            // Without the output, which may be secret.
            self.tell(Warning, "FailedPostStartHook", "PostStartHook failed", Some(&container));
        }

        Done::noted(Outcome::Hooked { container, attempt, failure })
    }

    pub(super) async fn pre_stop(&self, container: &str, id: String, grace_s: i64) -> Done {
        let found = self.container(container);
        let hook = found.and_then(|of| Some((of, of.lifecycle.as_ref()?.pre_stop.as_ref()?)));
        let began = clock::instant();
        let limit = Duration::from_secs(u64::try_from(grace_s).unwrap_or_default());
        let run = async {
            match hook {
                Some((of, hook)) => self.run_hook(of, &id, hook, limit).await,
                None => Ok(()),
            }
        };
        let failure = match tokio::time::timeout(limit, run).await {
            Ok(ran) => ran.err(),
            Err(_late) => Some(format!("not within the grace of {grace_s} s")),
        };
        if let Some(failure) = failure {
            tracing::info!(container, failure, "the hook before the stop failed");
            self.tell(Warning, "FailedPreStopHook", "PreStopHook failed", Some(container));
        }
        let took_s = i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX);

        Done::noted(Outcome::PreStopped { id, took_s })
    }

    async fn run_hook(
        &self,
        container: &Container,
        id: &str,
        hook: &LifecycleHandler,
        limit: Duration,
    ) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            let question = probe::command(container, id, exec);
            return match handlers::ask(&self.context.runtime, &question, limit).await {
                Answer::Success | Answer::Warning(_) => Ok(()),
                Answer::Failure(text) | Answer::Unknown(text) => Err(text),
            };
        }
        if let Some(get) = &hook.http_get {
            let get = self.get(container, get, handlers::LIFECYCLE)?;
            if handlers::deliver(&get, limit).await? == Delivered::WithoutTls {
                let message = format!(
                    "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
                    get.url().authority()
                );
                self.tell(Warning, "LifecycleHTTPFallback", &message, None);
            }
            return Ok(());
        }
        if let Some(sleep) = &hook.sleep {
            let asked = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or_default());
            tokio::time::sleep(asked.min(limit)).await;
        }

        Ok(())
    }
}
