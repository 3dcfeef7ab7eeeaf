-- What the code promises of messages and single chats, the database refuses otherwise; and chats find their deactivated owner.

ALTER TABLE messages
    ADD CONSTRAINT messages_content_length
        CHECK (char_length(content) BETWEEN 1 AND 10000 AND octet_length(content) <= 65536);
ALTER TABLE message_edits
    ADD CONSTRAINT message_edits_content_length
        CHECK (char_length(content) BETWEEN 1 AND 10000 AND octet_length(content) <= 65536);

-- Full width or not, composed or not, ligature or two letters: to a reader these are one name, and so they are here (Unicode NFKC).
DROP INDEX workspaces_name_key;
CREATE UNIQUE INDEX workspaces_name_key ON workspaces (lower(normalize(name, NFKC)));

-- A single chat has the two people of its pair for members, always: nobody else comes, nobody goes.
CREATE FUNCTION single_chat_keeps_its_pair() RETURNS trigger
    LANGUAGE plpgsql AS
$$
DECLARE
    member chat_members := coalesce(NEW, OLD);
BEGIN
    IF EXISTS (SELECT FROM chats AS c
               WHERE c.id = member.chat_id AND c.kind = 'single'
                 AND (TG_OP = 'DELETE' OR member.user_id NOT IN (c.pair_low, c.pair_high))) THEN
        RAISE EXCEPTION 'the members of a single chat are its pair'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'single_chat_keeps_its_pair';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER single_chat_keeps_its_pair
    AFTER INSERT OR DELETE OR UPDATE OF chat_id, user_id ON chat_members
    FOR EACH ROW EXECUTE FUNCTION single_chat_keeps_its_pair();

CREATE FUNCTION single_chat_has_its_pair() RETURNS trigger
    LANGUAGE plpgsql AS
$$
BEGIN
    IF (SELECT count(*) FROM chat_members WHERE chat_id = NEW.id) <> 2 THEN
        RAISE EXCEPTION 'a single chat begins with its two members'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'single_chat_has_its_pair';
    END IF;
    RETURN NULL;
END
$$;
-- At the commit, since the chat is there before its members.
CREATE CONSTRAINT TRIGGER single_chat_has_its_pair
    AFTER INSERT ON chats
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW
    WHEN (NEW.kind = 'single')
EXECUTE FUNCTION single_chat_has_its_pair();

CREATE INDEX chats_owner ON chats (owner_id, id) WHERE deleted_at IS NULL;
CREATE INDEX users_deactivated ON users (id) WHERE deactivated_at IS NOT NULL;
