-- What an operator did with a dead letter. A settled one (replayed or dropped) keeps no body: it holds what people wrote.

ALTER TABLE dead_letters
    ADD COLUMN replays bigint NOT NULL DEFAULT 0 CHECK (replays >= 0),
    ADD COLUMN dropped_at timestamptz,
    ADD COLUMN drop_reason text,
    ADD CONSTRAINT dead_letters_settled_once CHECK (replayed_at IS NULL OR dropped_at IS NULL),
    ADD CONSTRAINT dead_letters_dropped_for_a_reason CHECK ((dropped_at IS NULL) = (drop_reason IS NULL));

-- Each service looks after its own dead letters; chat_service consumes nothing.
REVOKE SELECT, UPDATE ON dead_letters FROM fechatter_chat;
REVOKE UPDATE ON dead_letters FROM fechatter_indexer;
GRANT UPDATE (reason, deliveries, body, replays, replayed_at, dropped_at, drop_reason) ON dead_letters
    TO fechatter_notify, fechatter_indexer;
