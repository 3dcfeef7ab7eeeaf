//! service_http
