//! notify_service
