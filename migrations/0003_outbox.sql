-- The transactional outbox and what consumers could not process.
--
-- Order: a transaction that appends events first raises `last_position` of the event's shard. The row lock lasts until
-- its commit, so positions of one shard become visible in order and without a gap; a rolled-back transaction gives its
-- position back. A reader that asks for `position > p` can therefore never skip a row that commits late.

CREATE TABLE outbox_shards (
    shard         smallint PRIMARY KEY CHECK (shard BETWEEN 0 AND 15),
    last_position bigint NOT NULL DEFAULT 0 CHECK (last_position >= 0)
) WITH (fillfactor = 10);
INSERT INTO outbox_shards (shard) SELECT generate_series(0, 15);

-- How far each shard has been published; apart from outbox_shards, so that the relay never waits for a sender.
CREATE TABLE outbox_progress (
    shard              smallint PRIMARY KEY REFERENCES outbox_shards (shard),
    published_position bigint      NOT NULL DEFAULT 0,
    -- The stream's history this progress was made in, and the last sequence it acknowledged there.
    stream_epoch       uuid,
    stream_sequence    bigint      NOT NULL DEFAULT 0,
    updated_at         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 10);
INSERT INTO outbox_progress (shard) SELECT shard FROM outbox_shards;

CREATE TABLE outbox (
    shard        smallint    NOT NULL,
    position     bigint      NOT NULL CHECK (position > 0),
    event_id     uuid        NOT NULL,
    event_type   text        NOT NULL,
    workspace_id bigint      NOT NULL,
    -- The chat, or the user for user.* and session.*.
    scope_id     bigint      NOT NULL,
    data         json        NOT NULL,
    -- W3C trace context of the request that caused it.
    traceparent  text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (shard, position, created_at)
) PARTITION BY RANGE (created_at);

-- Nothing is refused for want of a partition.
CREATE TABLE outbox_default PARTITION OF outbox DEFAULT;

-- Makes the partitions of today and the next days, and drops those whose events are all published and older than
-- `keep_days`. Owned by the migration role, so that chat_service needs no right to create or drop tables.
CREATE FUNCTION outbox_maintain(keep_days integer) RETURNS integer
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, public
AS $$
DECLARE
    day        date;
    part       record;
    unfinished boolean;
    dropped    integer := 0;
BEGIN
    IF keep_days < 1 THEN
        RAISE EXCEPTION 'keep_days must be at least 1';
    END IF;
    -- One caller at a time; the others have nothing to do.
    IF NOT pg_try_advisory_xact_lock(hashtext('fechatter.outbox_maintain')) THEN
        RETURN 0;
    END IF;
    FOR day IN SELECT d::date FROM generate_series(current_date, current_date + 3, interval '1 day') AS d LOOP
        IF to_regclass(format('public.outbox_%s', to_char(day, 'YYYYMMDD'))) IS NULL
           AND NOT EXISTS (SELECT 1 FROM public.outbox_default AS o WHERE o.created_at >= day AND o.created_at < day + 1)
        THEN
            EXECUTE format('CREATE TABLE public.%I PARTITION OF public.outbox FOR VALUES FROM (%L) TO (%L)',
                           'outbox_' || to_char(day, 'YYYYMMDD'), day, day + 1);
        END IF;
    END LOOP;
    FOR part IN
        SELECT c.relname
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.outbox'::regclass
          AND c.relname ~ '^outbox_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < current_date - keep_days
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT 1 FROM public.%I AS o JOIN public.outbox_progress AS p USING (shard)
                                       WHERE o.position > p.published_position)', part.relname) INTO unfinished;
        IF NOT unfinished THEN
            EXECUTE format('DROP TABLE public.%I', part.relname);
            dropped := dropped + 1;
        END IF;
    END LOOP;
    RETURN dropped;
END
$$;
REVOKE ALL ON FUNCTION outbox_maintain(integer) FROM PUBLIC;
SELECT outbox_maintain(7);

-- Events that a consumer gave up on, whole, for an operator to look at and replay.
CREATE TABLE dead_letters (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer        text        NOT NULL,
    stream_epoch    uuid,
    stream_sequence bigint      NOT NULL,
    subject         text        NOT NULL,
    reason          text        NOT NULL,
    deliveries      bigint      NOT NULL,
    body            bytea       NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    replayed_at     timestamptz,
    UNIQUE (consumer, stream_epoch, stream_sequence)
);
