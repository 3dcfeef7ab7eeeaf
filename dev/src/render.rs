//! `cargo dev chart`: what is generated from the chart.

use std::path::Path;

use anyhow::bail;
use dev::{chart, install};

use crate::lines::say;

/// Renews the chart's README and the renders that are kept.
pub(crate) fn run() -> anyhow::Result<()> {
    install::everything(&say)?;
    chart::install(&say)?;
    // Nothing of ours is run.
    let status = chart::program("renew.py", Path::new(""))?.status()?;
    if !status.success() {
        bail!("the chart does not render; why is said above");
    }
    Ok(())
}
