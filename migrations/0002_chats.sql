-- Chats, members and messages.

CREATE TYPE chat_kind AS ENUM ('single', 'group', 'private_channel', 'public_channel');

CREATE TABLE chats (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id       bigint      NOT NULL REFERENCES workspaces (id),
    kind               chat_kind   NOT NULL,
    name               text CHECK (char_length(name) BETWEEN 1 AND 80),
    description        text CHECK (char_length(description) <= 1000),
    owner_id           bigint      NOT NULL,
    -- The two people of a single chat, the smaller id first: one chat per pair.
    pair_low           bigint,
    pair_high          bigint,
    -- Kept under the row's lock, with every change of chat_members.
    member_count       bigint      NOT NULL DEFAULT 0 CHECK (member_count >= 0),
    -- Counts changes of the member list; events carry it, so that an older one is known as older.
    membership_version bigint      NOT NULL DEFAULT 0,
    -- The seq of the newest message. The row lock that raises it makes seq order commit order.
    last_seq           bigint      NOT NULL DEFAULT 0 CHECK (last_seq >= 0),
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    deleted_at         timestamptz,
    UNIQUE (workspace_id, id),
    CHECK ((kind = 'single') = (pair_low IS NOT NULL AND pair_high IS NOT NULL)),
    CHECK (pair_low < pair_high),
    CHECK (kind NOT IN ('private_channel', 'public_channel') OR name IS NOT NULL),
    CHECK (kind <> 'single' OR name IS NULL),
    FOREIGN KEY (workspace_id, pair_low) REFERENCES users (workspace_id, id),
    FOREIGN KEY (workspace_id, pair_high) REFERENCES users (workspace_id, id)
) WITH (fillfactor = 50);
-- One living single chat per pair.
CREATE UNIQUE INDEX chats_pair ON chats (pair_low, pair_high) WHERE deleted_at IS NULL;
CREATE INDEX chats_public ON chats (workspace_id, id) WHERE kind = 'public_channel' AND deleted_at IS NULL;

CREATE TABLE chat_members (
    chat_id       bigint      NOT NULL,
    user_id       bigint      NOT NULL,
    workspace_id  bigint      NOT NULL,
    joined_at     timestamptz NOT NULL DEFAULT now(),
    last_read_seq bigint      NOT NULL DEFAULT 0 CHECK (last_read_seq >= 0),
    PRIMARY KEY (chat_id, user_id),
    -- Both sides name the workspace: a chat cannot have a member of another one.
    FOREIGN KEY (workspace_id, chat_id) REFERENCES chats (workspace_id, id),
    FOREIGN KEY (workspace_id, user_id) REFERENCES users (workspace_id, id)
) WITH (fillfactor = 70);
CREATE INDEX chat_members_user ON chat_members (user_id, chat_id);

-- The owner of a chat is one of its members.
ALTER TABLE chats
    ADD CONSTRAINT chats_owner_is_member FOREIGN KEY (id, owner_id) REFERENCES chat_members (chat_id, user_id)
        DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE messages (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id       bigint      NOT NULL,
    chat_id            bigint      NOT NULL,
    seq                bigint      NOT NULL CHECK (seq > 0),
    sender_id          bigint      NOT NULL,
    -- Absent in a tombstone.
    content            text,
    -- 1 at creation, one more at each edit and at deletion.
    version            bigint      NOT NULL DEFAULT 1 CHECK (version > 0),
    idempotency_key    text CHECK (octet_length(idempotency_key) BETWEEN 1 AND 255),
    -- SHA-256 of the content first sent, to tell a retry from another message under the same key.
    idempotency_digest bytea CHECK (octet_length(idempotency_digest) = 32),
    created_at         timestamptz NOT NULL DEFAULT now(),
    edited_at          timestamptz,
    deleted_at         timestamptz,
    UNIQUE (chat_id, seq),
    CHECK ((deleted_at IS NULL) = (content IS NOT NULL)),
    CHECK ((idempotency_key IS NULL) = (idempotency_digest IS NULL)),
    FOREIGN KEY (workspace_id, chat_id) REFERENCES chats (workspace_id, id),
    FOREIGN KEY (workspace_id, sender_id) REFERENCES users (workspace_id, id)
);
-- Scoped to sender and chat: nobody meets another's message by guessing a key.
CREATE UNIQUE INDEX messages_idempotency ON messages (chat_id, sender_id, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
CREATE INDEX messages_chat_created ON messages (chat_id, created_at DESC);

CREATE TABLE message_edits (
    message_id  bigint      NOT NULL REFERENCES messages (id),
    -- The version this content was.
    version     bigint      NOT NULL CHECK (version > 0),
    content     text        NOT NULL,
    written_at  timestamptz NOT NULL,
    PRIMARY KEY (message_id, version)
);
