-- Workspaces, users, sessions and invitations.
--
-- The group roles are shared by every database of a server, so creating them must bear company.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['fechatter_chat', 'fechatter_notify', 'fechatter_indexer'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

CREATE TABLE workspaces (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL CHECK (char_length(name) BETWEEN 1 AND 64),
    owner_id   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX workspaces_name_key ON workspaces (lower(name));

CREATE TYPE user_role AS ENUM ('member', 'admin', 'owner');

CREATE TABLE users (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id   bigint      NOT NULL REFERENCES workspaces (id),
    fullname       text        NOT NULL CHECK (char_length(fullname) BETWEEN 1 AND 64),
    email          text        NOT NULL CHECK (octet_length(email) <= 254),
    -- PHC string of argon2id; readable by chat_service alone.
    password_hash  text        NOT NULL,
    role           user_role   NOT NULL DEFAULT 'member',
    deactivated_at timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    -- The target of the composite foreign keys that keep tenants apart.
    UNIQUE (workspace_id, id)
);
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
CREATE UNIQUE INDEX users_one_owner ON users (workspace_id) WHERE role = 'owner';

-- A workspace and its owner are made by one statement; each refers to the other.
ALTER TABLE workspaces
    ADD CONSTRAINT workspaces_owner_fkey FOREIGN KEY (id, owner_id) REFERENCES users (workspace_id, id)
        DEFERRABLE INITIALLY DEFERRED;

CREATE TABLE sessions (
    id           uuid PRIMARY KEY,
    workspace_id bigint      NOT NULL,
    user_id      bigint      NOT NULL,
    user_agent   text,
    address      text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_used_at timestamptz NOT NULL DEFAULT now(),
    -- However often it is refreshed, a session ends here.
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz,
    FOREIGN KEY (workspace_id, user_id) REFERENCES users (workspace_id, id)
);
CREATE INDEX sessions_user_live ON sessions (user_id) WHERE revoked_at IS NULL;

CREATE TABLE refresh_tokens (
    -- SHA-256 of the token; the token itself is never stored.
    token_hash bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
    session_id uuid        NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    issued_at  timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    -- Set once, by the refresh that rotated it; a second use betrays a thief and revokes the session.
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);

CREATE TABLE invitations (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id bigint      NOT NULL REFERENCES workspaces (id),
    token_hash   bytea       NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32),
    created_by   bigint      NOT NULL,
    -- When set, only this address may use the invitation.
    email        text,
    max_uses     integer     NOT NULL CHECK (max_uses BETWEEN 1 AND 10000),
    uses         integer     NOT NULL DEFAULT 0,
    expires_at   timestamptz NOT NULL,
    revoked_at   timestamptz,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CHECK (uses BETWEEN 0 AND max_uses),
    FOREIGN KEY (workspace_id, created_by) REFERENCES users (workspace_id, id)
);
CREATE INDEX invitations_workspace ON invitations (workspace_id, id);

-- Failed sign-ins per account and per address, shared by all replicas. Unlogged: losing it forgives, nothing worse.
CREATE UNLOGGED TABLE signin_failures (
    -- `account:<lower-case email>` or `address:<address>`.
    subject        text PRIMARY KEY,
    failures       integer     NOT NULL CHECK (failures > 0),
    last_failed_at timestamptz NOT NULL
);
CREATE INDEX signin_failures_age ON signin_failures (last_failed_at);
