-- What a sandbox was given, so that its record alone says how to start it again.
ALTER TABLE sandbox ADD COLUMN template TEXT NOT NULL DEFAULT '';
ALTER TABLE sandbox ADD COLUMN cores INTEGER NOT NULL DEFAULT 1;
ALTER TABLE sandbox ADD COLUMN memory INTEGER NOT NULL DEFAULT 512;
ALTER TABLE sandbox ADD COLUMN disk INTEGER NOT NULL DEFAULT 1024;
ALTER TABLE sandbox ADD COLUMN labels TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(labels));
ALTER TABLE sandbox ADD COLUMN ttl REAL NOT NULL DEFAULT 0;
ALTER TABLE sandbox ADD COLUMN keepalive INTEGER NOT NULL DEFAULT 0 CHECK (keepalive IN (0, 1));
ALTER TABLE sandbox ADD COLUMN idle_stop REAL NOT NULL DEFAULT 0;
-- Somebody has been in it since its last start.
ALTER TABLE sandbox ADD COLUMN used INTEGER NOT NULL DEFAULT 0 CHECK (used IN (0, 1));
-- Somebody needs it after its job: the job's end leaves it as it is.
ALTER TABLE sandbox ADD COLUMN held INTEGER NOT NULL DEFAULT 0 CHECK (held IN (0, 1));

UPDATE sandbox SET used = 1 WHERE state IN ('RUNNING', 'COMPLETED');
-- Those that live now have the rest in the input of the operation that made them.
UPDATE sandbox SET (template, cores, memory, disk, ttl) = (
    SELECT json_extract(input, '$.plan.template'), json_extract(input, '$.plan.cores'),
        json_extract(input, '$.plan.memory'), json_extract(input, '$.plan.disk'),
        json_extract(input, '$.plan.ttl') + 0.0
    FROM operation
    WHERE operation.vmid = sandbox.vmid AND operation.job = sandbox.job
        AND json_type(input, '$.plan') = 'object'
    ORDER BY operation.created DESC LIMIT 1)
WHERE EXISTS (
    SELECT 1 FROM operation
    WHERE operation.vmid = sandbox.vmid AND operation.job = sandbox.job
        AND json_type(input, '$.plan') = 'object');

-- The same request twice is the same operation.
ALTER TABLE operation ADD COLUMN request_key TEXT;
ALTER TABLE operation ADD COLUMN request_hash TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX operation_by_request ON operation (request_key) WHERE request_key IS NOT NULL;
CREATE INDEX operation_by_subject ON operation (subject) WHERE state IN ('doing', 'undoing');
CREATE INDEX step_doing ON step (name, started) WHERE state = 'doing';
