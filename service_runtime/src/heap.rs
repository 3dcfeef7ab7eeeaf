//! The allocator of all processes, and who holds its memory.

use mimalloc::MiMalloc;
use rustfs_mimalloc_profiling::{Error, MimallocConfig, Profiler, SamplingAllocator};

/// Bytes between two samples, on average.
const SAMPLE_BYTES: u64 = 64 * 1_024;

/// `mimalloc`, watched while a heap profile is taken.
pub type Allocator = SamplingAllocator<MiMalloc>;

/// For the `#[global_allocator]` of a process.
pub const fn allocator() -> Allocator {
    SamplingAllocator::with_allocator(MiMalloc)
}

/// A heap profile under way; it ends when this is dropped.
pub(crate) struct Recording(Profiler);

impl Recording {
    /// Watches allocations from now on.
    pub(crate) fn start() -> Result<Self, Error> {
        let config = MimallocConfig {
            sample_interval_bytes: SAMPLE_BYTES,
            live_heap_tracking: true,
            ..MimallocConfig::default()
        };
        Profiler::start(config).map(Self)
    }

    /// What was allocated since, and what of it is held still, in the format of pprof. Looks symbols up, which takes a while.
    pub(crate) fn report(mut self) -> Result<Vec<u8>, Error> {
        let report = self.0.report();
        self.0.stop();
        report
    }
}
