//! What the environment says about exporting; the names are OpenTelemetry's.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

/// One process's telemetry settings.
#[derive(Debug)]
pub(crate) struct Settings {
    pub traces: bool,
    pub metrics: bool,
    pub logs: bool,
    /// Share of new traces that are recorded, 0 to 1.
    pub ratio: f64,
    pub resource: Resource,
}

#[expect(clippy::disallowed_methods, reason = "the SDK's own variables, read once at start")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn is_exported(signal: &str) -> bool {
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let none = variable(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|value| value == "none");
    let endpoint =
        variable("OTEL_EXPORTER_OTLP_ENDPOINT").or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")));
    endpoint.is_some() && !disabled && !none
}

impl Settings {
    pub(crate) fn from_environment(service: &'static str) -> Self {
        let sampler = variable("OTEL_TRACES_SAMPLER").unwrap_or_default();
        let ratio = match sampler.as_str() {
            "always_off" | "parentbased_always_off" => 0.0,
            "traceidratio" | "parentbased_traceidratio" => variable("OTEL_TRACES_SAMPLER_ARG")
                .and_then(|value| value.parse::<f64>().ok())
                .map_or(1.0, |ratio| ratio.clamp(0.0, 1.0)),
            _ => 1.0,
        };
        let instance = variable("OTEL_SERVICE_INSTANCE_ID").unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}.{}", host.trim(), std::process::id())
        });
        // What comes later goes over what came before: OTEL_RESOURCE_ATTRIBUTES over ours, OTEL_SERVICE_NAME over both.
        let resource = Resource::builder_empty()
            .with_detector(Box::new(opentelemetry_sdk::resource::TelemetryResourceDetector))
            .with_attributes([
                KeyValue::new("service.name", service),
                KeyValue::new("service.namespace", "fechatter"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance),
            ])
            .with_detector(Box::new(opentelemetry_sdk::resource::EnvResourceDetector::new()))
            .with_attributes(variable("OTEL_SERVICE_NAME").map(|name| KeyValue::new("service.name", name)))
            .build();
        Self {
            traces: is_exported("TRACES"),
            metrics: is_exported("METRICS"),
            logs: is_exported("LOGS"),
            ratio,
            resource,
        }
    }
}
