//! Histogram bounds in seconds. The SDK's defaults are meant for milliseconds.

/// HTTP conventions (`http.server.request.duration`), which messaging asks for too.
pub const HTTP_DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// From a message's making to a screen or into the index.
pub const DELIVERY_BUCKETS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 30.0, 300.0,
];
/// Life of a stream.
pub const STREAM_LIFETIME_BUCKETS: [f64; 8] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0];
/// Database conventions (`db.client.operation.duration`), and one bound more where most of our statements are.
pub const DATABASE_DURATION_BUCKETS: [f64; 10] = [0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];
