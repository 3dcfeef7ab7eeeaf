//! Records of the `log` crate that nobody wants end where they begin: they cost a comparison, not a walk through the filters.

use log::LevelFilter;
use observability::{LogConfig, log_filter};

#[test]
fn the_filter_bounds_what_libraries_log() {
    let telemetry = observability::init("test", &LogConfig::default()).unwrap();
    assert_eq!(log::max_level(), LevelFilter::Info, "from the start on");
    log_filter::set("info,pingora=debug").unwrap();
    assert_eq!(log::max_level(), LevelFilter::Debug);
    log_filter::set("warn").unwrap();
    assert_eq!(log::max_level(), LevelFilter::Warn);
    telemetry.shutdown();
}
