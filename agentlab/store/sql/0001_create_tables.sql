CREATE TABLE setting (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE job (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN (
        'QUEUED', 'PROVISIONING', 'RUNNING', 'COMPLETED', 'FAILED', 'TIMEOUT', 'CANCELLED')),
    spec TEXT NOT NULL CHECK (json_valid(spec)),
    vmid INTEGER NOT NULL DEFAULT 0,
    operation TEXT NOT NULL,
    created REAL NOT NULL,
    changed REAL NOT NULL,
    deadline REAL NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    report TEXT CHECK (report IS NULL OR json_valid(report)),
    request_key TEXT UNIQUE,
    request_hash TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX job_by_state ON job (state, created);
CREATE INDEX job_by_time ON job (created);

CREATE TABLE sandbox (
    id INTEGER PRIMARY KEY,
    vmid INTEGER NOT NULL,
    name TEXT NOT NULL,
    profile TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN (
        'REQUESTED', 'PROVISIONING', 'BOOTING', 'READY', 'RUNNING', 'SUSPENDED',
        'COMPLETED', 'FAILED', 'TIMEOUT', 'STOPPED', 'DESTROYED')),
    address TEXT NOT NULL,
    mac TEXT NOT NULL,
    tap TEXT NOT NULL,
    network TEXT NOT NULL,
    fenced INTEGER NOT NULL DEFAULT 0 CHECK (fenced IN (0, 1)),
    job TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    changed REAL NOT NULL,
    lease_until REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
-- What a live sandbox holds, it holds alone.
CREATE UNIQUE INDEX sandbox_vmid ON sandbox (vmid) WHERE state != 'DESTROYED';
CREATE UNIQUE INDEX sandbox_name ON sandbox (name) WHERE state != 'DESTROYED';
CREATE UNIQUE INDEX sandbox_address ON sandbox (address) WHERE state != 'DESTROYED';
CREATE UNIQUE INDEX sandbox_mac ON sandbox (mac) WHERE state != 'DESTROYED';
CREATE INDEX sandbox_by_vmid ON sandbox (vmid, id);

CREATE TABLE token (
    fingerprint TEXT PRIMARY KEY,
    job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    address TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    session TEXT UNIQUE
) STRICT;
CREATE INDEX token_by_job ON token (job);

CREATE TABLE operation (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    input TEXT NOT NULL CHECK (json_valid(input)),
    job TEXT NOT NULL DEFAULT '',
    vmid INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL CHECK (state IN ('doing', 'undoing', 'done', 'failed', 'cancelled')),
    cancel INTEGER NOT NULL DEFAULT 0 CHECK (cancel IN (0, 1)),
    waits_for TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    hint TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    changed REAL NOT NULL
) STRICT;
CREATE INDEX operation_unfinished ON operation (created) WHERE state IN ('doing', 'undoing');
CREATE INDEX operation_by_time ON operation (changed);

-- One operation per subject: a row here is the lock.
CREATE TABLE subject (
    name TEXT PRIMARY KEY,
    operation TEXT NOT NULL REFERENCES operation (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX subject_by_operation ON subject (operation);

CREATE TABLE step (
    operation TEXT NOT NULL REFERENCES operation (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('doing', 'done', 'undoing', 'undone')),
    output TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(output)),
    attempts INTEGER NOT NULL DEFAULT 1,
    started REAL NOT NULL,
    ended REAL,
    PRIMARY KEY (operation, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    job TEXT NOT NULL DEFAULT '',
    vmid INTEGER NOT NULL DEFAULT 0,
    operation TEXT NOT NULL DEFAULT '',
    facts TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(facts))
) STRICT;
CREATE INDEX event_by_job ON event (job, seq) WHERE job != '';
CREATE INDEX event_by_vmid ON event (vmid, seq) WHERE vmid != 0;
CREATE INDEX event_by_operation ON event (operation, seq) WHERE operation != '';

CREATE TABLE artifact (
    job TEXT NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    size INTEGER NOT NULL CHECK (size >= 0),
    sha256 TEXT NOT NULL,
    created REAL NOT NULL,
    PRIMARY KEY (job, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE bundle (
    sha256 TEXT PRIMARY KEY,
    size INTEGER NOT NULL CHECK (size >= 0),
    created REAL NOT NULL
) STRICT, WITHOUT ROWID;
