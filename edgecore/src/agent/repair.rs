//! Ends the agent when its store turns out to be damaged: opening the store repairs it, so the next
//! start of the agent does. Containers go on running meanwhile and are adopted.

use std::time::Duration;

use store::{Store, StoreError};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::tasks::BoxError;

/// How long after the start the whole file is looked through for the first time: when pods run again.
const FIRST_CHECK: Duration = Duration::from_mins(2);
/// How often after that. A check costs 10 ms for each 5 MiB, and damage that only shows when the power
/// is gone costs more.
const CHECK_PERIOD: Duration = Duration::from_hours(24);

/// The store has to be opened anew.
#[derive(Debug, thiserror::Error)]
#[error("the store turned out to be damaged; the next start of the agent repairs it")]
pub(super) struct NeedsRepair(#[source] StoreError);

/// Looks for damage now and then, and ends with [`NeedsRepair`] when that or a write finds some.
pub(super) async fn run(store: Store, stop: CancellationToken) -> Result<(), BoxError> {
    let (tell, mut told) = oneshot::channel();
    store.on_damage(Box::new(move |damage| {
        // Without a receiver the process is about to end.
        drop(tell.send(damage));
    }));
    let mut checks = tokio::time::interval(CHECK_PERIOD);
    checks.reset_after(FIRST_CHECK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            damage = &mut told => match damage {
                Ok(damage) => return Err(NeedsRepair(damage).into()),
                // The store is closed: the process is about to end.
                Err(_closed) => {
                    stop.cancelled().await;
                    return Ok(());
                }
            },
            _ = checks.tick() => store.quick_check(Box::new(|checked| {
                if let Err(error) = checked {
                    let reason = crate::telemetry::chain(&error);
                    tracing::warn!(reason, "a check of the store found a fault");
                }
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use store::{Options, Write};

    use super::*;
    use crate::desired::commit;

    /// More than SQLite keeps in memory.
    fn fill() -> Vec<Write> {
        let setting = |n: u8| Write::Setting { name: format!("s{n}"), value: vec![n; 40_000] };

        (0..40).map(setting).collect()
    }

    /// Flips bits in the middle of the file, and empties the log that would hide it.
    fn damage(dir: &Path) {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::File::options().write(true).open(dir.join("state.db")).unwrap();
        let length = file.metadata().unwrap().len();
        for at in (4096..length).step_by(4096) {
            file.write_all_at(&[0xFF; 64], at).unwrap();
        }
    }

    async fn damaged_while_open(dir: &Path) -> BoxError {
        let (store, _) = Store::open(&Options::in_folder(dir)).unwrap();
        commit(&store, fill()).await.unwrap();
        drop(store);
        let (store, opened) = Store::open(&Options::in_folder(dir)).unwrap();
        assert!(opened.is_intact());
        damage(dir);
        let stop = CancellationToken::new();
        let writes = async {
            while commit(&store, fill()).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = run(store.clone(), stop) => ended.unwrap_err(),
            () = writes => unreachable!(),
        }
    }

    #[test]
    fn damage_found_by_a_write_ends_the_agent_and_is_repaired_at_the_next_start() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = runtime.block_on(damaged_while_open(dir.path()));
        assert!(error.is::<NeedsRepair>(), "{error}");

        let (store, opened) = Store::open(&Options::in_folder(dir.path())).unwrap();
        assert!(matches!(opened.damage, Some(StoreError::Damaged { .. })), "{:?}", opened.damage);
        runtime.block_on(commit(&store, fill())).unwrap();
        drop(store);
        let (_store, opened) = Store::open(&Options::in_folder(dir.path())).unwrap();
        assert!(opened.is_intact() && opened.settings.len() == 40, "{opened:?}");
    }
}
