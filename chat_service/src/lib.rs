//! chat_service
