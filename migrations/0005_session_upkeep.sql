-- Sessions that ended long ago are forgotten, and their refresh tokens with them.

CREATE INDEX sessions_expiry ON sessions (expires_at);
GRANT DELETE ON sessions TO fechatter_chat;
