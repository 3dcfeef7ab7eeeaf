-- What never changes, chat_service cannot change: who wrote a message and where it stands, whose a session is, who is in which
-- workspace. It locks rows as before, which takes the right to update any of their columns.

REVOKE UPDATE ON workspaces, users, sessions, refresh_tokens, invitations, chats, chat_members, messages, outbox_shards, outbox_progress
    FROM fechatter_chat;
GRANT UPDATE (name, owner_id) ON workspaces TO fechatter_chat;
GRANT UPDATE (fullname, password_hash, role, deactivated_at, updated_at) ON users TO fechatter_chat;
GRANT UPDATE (last_used_at, revoked_at) ON sessions TO fechatter_chat;
GRANT UPDATE (used_at) ON refresh_tokens TO fechatter_chat;
GRANT UPDATE (uses, revoked_at) ON invitations TO fechatter_chat;
GRANT UPDATE (name, description, owner_id, member_count, membership_version, last_seq, updated_at, deleted_at) ON chats
    TO fechatter_chat;
GRANT UPDATE (last_read_seq) ON chat_members TO fechatter_chat;
GRANT UPDATE (content, version, edited_at, deleted_at) ON messages TO fechatter_chat;
GRANT UPDATE (last_position) ON outbox_shards TO fechatter_chat;
GRANT UPDATE (published_position, stream_epoch, stream_sequence, updated_at) ON outbox_progress TO fechatter_chat;

-- The one function with its owner's rights finds no table in a caller's temporary schema, which would come first if it were not named.
ALTER FUNCTION outbox_maintain(integer) SET search_path = pg_catalog, public, pg_temp;

-- A sign-in asks from where an account was used before, ended sessions included.
CREATE INDEX sessions_user ON sessions (user_id);
DROP INDEX sessions_user_live;
