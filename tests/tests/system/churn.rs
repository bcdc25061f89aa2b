//! Churn: hundreds of random operations with cuts, agent kills and power cuts between them, and in
//! the end the node holds exactly what the API server says, and nothing else.
//!
//! The seed is printed; `HOLDFAST_SEED` gives the same operations again (their timing is the
//! machine's).

mod world;

use std::time::Duration;

use anyhow::{Result, ensure};
use system_tests::cluster::Cluster;
use system_tests::dice::Dice;
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::wait;
use world::{Fault, World};

const OPERATIONS: usize = 300;

/// Operations from one fault to the next; with the faults below all fit into the operations.
const BETWEEN: u64 = 15;

const LIVE_MIN: usize = 20;

/// All starts and stops that the end may still owe, on a busy machine.
const LIMIT: Duration = Duration::from_mins(3);

/// At least 10 cuts and 3 kills, in random order.
fn faults(dice: &mut Dice) -> Vec<Fault> {
    let mut faults = vec![Fault::Stall; 9];
    faults.push(Fault::LongCut);
    faults.extend([Fault::Kill, Fault::Kill, Fault::KillInCut, Fault::KillInCut]);
    faults.extend([Fault::PowerCut, Fault::PowerCutInCut]);
    dice.shuffle(&mut faults);

    faults
}

#[tokio::test]
async fn churn_with_cuts_and_kills_ends_with_exactly_what_the_api_server_says() -> Result<()> {
    let seed = Dice::seed();
    eprintln!("churn: HOLDFAST_SEED={seed}");
    let mut dice = Dice::new(seed);
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let mut faults = faults(&mut dice);
    let mut world = World::new(&cluster, &client, &node, dice).await?;

    let (mut begins, mut ends) = (5, None);
    for turn in 0..OPERATIONS {
        if ends == Some(turn) {
            world.mend().await?;
            ends = None;
        }
        if turn == begins
            && let Some(fault) = faults.pop()
        {
            world.fail(fault).await?;
            let lasts = 1 + world.dice.below(BETWEEN - 2);
            ends = usize::try_from(lasts).ok().map(|lasts| turn + lasts);
            begins = turn + usize::try_from(BETWEEN + world.dice.below(4))?;
        }
        world.operate().await?;
        if ends.is_none() {
            world.pace().await?;
        }
    }
    ensure!(faults.is_empty(), "{} faults did not fit", faults.len());
    world.mend().await?;
    world.complete(LIVE_MIN).await?;
    agree(&world, "what the API server says").await?;
    world.check_content().await?;
    let live = world.check_restarts().await?;
    ensure!(live >= LIVE_MIN, "only {live} pods live");
    eprintln!("churn: {live} pods live; {}", world.told());

    world.clear().await?;
    agree(&world, "nothing").await
}

/// Waits until the node holds what the API server says, and only that.
#[expect(clippy::print_stderr, reason = "what a failed test needs is shown beside its verdict")]
async fn agree(world: &World<'_>, what: &str) -> Result<()> {
    let differences = async || {
        let pods = world.bound().await?;
        let held = Held::by(world.node.site()).await?;

        Ok(held.differences(&pods))
    };

    let told = format!("the node to hold {what}");
    let agreed = wait::until(&told, LIMIT, differences, Vec::is_empty).await;
    if agreed.is_err() {
        eprintln!("churn: the agent said:\n{}", world.node.agent_log().await?);
    }

    agreed.map(drop)
}
