-- Least privilege: each service's login role is a member of its group role and gets what is listed here, no more.

GRANT USAGE ON SCHEMA public TO fechatter_chat, fechatter_notify, fechatter_indexer;
-- Services compare the applied migrations with the ones they were built with.
GRANT SELECT ON _sqlx_migrations TO fechatter_chat, fechatter_notify, fechatter_indexer;

GRANT SELECT, INSERT, UPDATE ON workspaces, users, sessions, invitations TO fechatter_chat;
-- A workspace and its owner name each other, so their ids are drawn before either is inserted.
GRANT USAGE ON SEQUENCE workspaces_id_seq, users_id_seq TO fechatter_chat;
GRANT SELECT, INSERT, UPDATE, DELETE ON refresh_tokens, signin_failures TO fechatter_chat;
GRANT SELECT, INSERT, UPDATE ON chats, messages TO fechatter_chat;
GRANT SELECT, INSERT, UPDATE, DELETE ON chat_members TO fechatter_chat;
GRANT SELECT, INSERT ON message_edits, outbox TO fechatter_chat;
GRANT SELECT, UPDATE ON outbox_shards, outbox_progress TO fechatter_chat;
GRANT SELECT, UPDATE ON dead_letters TO fechatter_chat;
GRANT EXECUTE ON FUNCTION outbox_maintain(integer) TO fechatter_chat;

GRANT SELECT (id, workspace_id, fullname, role, deactivated_at) ON users TO fechatter_notify;
GRANT SELECT ON chats, chat_members TO fechatter_notify;
GRANT SELECT, INSERT ON dead_letters TO fechatter_notify;

GRANT SELECT (id, workspace_id, fullname, role, deactivated_at) ON users TO fechatter_indexer;
GRANT SELECT ON chats, chat_members, messages TO fechatter_indexer;
GRANT SELECT, INSERT, UPDATE ON dead_letters TO fechatter_indexer;
