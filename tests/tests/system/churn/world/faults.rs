//! What breaks, and how it is mended.

use anyhow::Result;

use super::World;

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A cut that may end before anybody notices.
    Stall,
    /// A cut until the node controller has noticed.
    LongCut,
    /// The agent is killed.
    Kill,
    /// The agent is killed while the link is cut.
    KillInCut,
    /// The power fails.
    PowerCut,
    /// The power fails while the link is cut.
    PowerCutInCut,
}

impl Fault {
    fn cuts(self) -> bool {
        !matches!(self, Self::Kill | Self::PowerCut)
    }

    fn kills(self) -> bool {
        matches!(self, Self::Kill | Self::KillInCut)
    }

    fn powers_off(self) -> bool {
        matches!(self, Self::PowerCut | Self::PowerCutInCut)
    }
}

impl World<'_> {
    pub(crate) async fn fail(&mut self, fault: Fault) -> Result<()> {
        let site = self.node.site();
        if fault.cuts() {
            self.count("cut");
            site.cut().await?;
        }
        if fault.kills() {
            self.count("agent kill");
            self.node.kill_agent().await?;
        }
        if fault.powers_off() {
            self.count("power cut");
            self.power_cuts += 1;
            site.power_off().await?;
        }
        self.broken = Some(fault);

        Ok(())
    }

    /// Ends what [`World::fail`] began; a power cut and a kill end while the link is still cut.
    pub(crate) async fn mend(&mut self) -> Result<()> {
        let Some(fault) = self.broken.take() else { return Ok(()) };
        if fault == Fault::LongCut {
            self.node.until_unknown(self.client).await?;
        }
        if fault.powers_off() {
            self.node.site().power_on().await?;
        }
        if fault.powers_off() || fault.kills() {
            self.node.start_agent().await?;
        }
        if fault.cuts() {
            self.node.site().restore().await?;
        }

        Ok(())
    }
}
