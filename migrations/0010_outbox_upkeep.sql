-- The upkeep of the outbox, in two points better than that of 0003:
-- A day is one of UTC, whatever time zone the session or the server is set to: days of two zones would overlap.
-- Rows that found no partition of their day (nobody had made it, for days) stayed for ever, and kept the partition of their day from
-- being made. Once the day is over they are given one, and leave with it like all others.

CREATE OR REPLACE FUNCTION outbox_maintain(keep_days integer) RETURNS integer
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp
    SET timezone = 'UTC'
AS $$
DECLARE
    day        date;
    part       record;
    name       text;
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
    -- Not of today: senders write it.
    FOR day IN SELECT DISTINCT o.created_at::date FROM public.outbox_default AS o WHERE o.created_at < current_date LOOP
        name := 'outbox_' || to_char(day, 'YYYYMMDD');
        EXECUTE format('CREATE TABLE public.%I (LIKE public.outbox INCLUDING ALL)', name);
        EXECUTE format('WITH moved AS (DELETE FROM public.outbox_default WHERE created_at >= %L AND created_at < %L RETURNING *)
                        INSERT INTO public.%I SELECT * FROM moved', day, day + 1, name);
        EXECUTE format('ALTER TABLE public.outbox ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', name, day, day + 1);
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
