//! How the processes make their instruments, so that none lacks its unit, its description or fitting bounds.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};

/// The instruments of one meter. Make them after telemetry is up: before, they measure nothing.
#[derive(Debug, Clone)]
pub struct Instruments(Meter);

impl Instruments {
    /// Instruments of the meter `name`, which is the crate's.
    pub fn of(name: &'static str) -> Self {
        Self(opentelemetry::global::meter(name))
    }

    /// Something that only grows; `unit` is a UCUM annotation such as `{event}`.
    pub fn counter(&self, name: &'static str, unit: &'static str, description: &'static str) -> Counter<u64> {
        self.0
            .u64_counter(name)
            .with_unit(unit)
            .with_description(description)
            .build()
    }

    /// Lets a counter exist before there is anything to count, so that a rate sees its first event and an absence is not
    /// taken for a zero: with each of `values` of the label `key`, or without a label when there are none.
    pub fn from_zero(counter: &Counter<u64>, key: &'static str, values: &[&'static str]) {
        if values.is_empty() {
            counter.add(0, &[]);
        }
        for value in values {
            counter.add(0, &[opentelemetry::KeyValue::new(key, *value)]);
        }
    }

    /// A number that is set; `unit` as of [`Self::counter`], or `By`.
    pub fn gauge(&self, name: &'static str, unit: &'static str, description: &'static str) -> Gauge<u64> {
        self.0
            .u64_gauge(name)
            .with_unit(unit)
            .with_description(description)
            .build()
    }

    /// Durations in seconds, with these upper bounds of the buckets; see [`crate::buckets`].
    pub fn seconds(&self, name: &'static str, description: &'static str, bounds: &[f64]) -> Histogram<f64> {
        self.0
            .f64_histogram(name)
            .with_unit("s")
            .with_description(description)
            .with_boundaries(bounds.to_vec())
            .build()
    }

    /// The meter, for instruments of other kinds.
    pub const fn meter(&self) -> &Meter {
        &self.0
    }
}
