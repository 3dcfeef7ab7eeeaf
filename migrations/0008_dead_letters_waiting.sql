-- Settled letters are kept and only get more: those that wait are counted and listed without reading them.
CREATE INDEX dead_letters_waiting ON dead_letters (consumer, id) WHERE replayed_at IS NULL AND dropped_at IS NULL;
