-- A volume that outlives sandboxes.  `number` names its volume, `volid` is the hypervisor's name.
CREATE TABLE workspace (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: operations name it
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('CREATING', 'DETACHED', 'ATTACHED', 'DELETED')),
    number INTEGER NOT NULL,
    volid TEXT NOT NULL DEFAULT '',
    storage TEXT NOT NULL DEFAULT '',
    size INTEGER NOT NULL CHECK (size > 0),
    -- A guest has mounted it: it is never given a file system again.
    formatted INTEGER NOT NULL DEFAULT 0 CHECK (formatted IN (0, 1)),
    origin TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    changed REAL NOT NULL,
    -- The lease: the sandbox's record that has it, and what tells this holding from any other.
    holder INTEGER NOT NULL DEFAULT 0,
    vmid INTEGER NOT NULL DEFAULT 0,
    nonce TEXT NOT NULL DEFAULT '',
    lease_until REAL NOT NULL DEFAULT 0,
    CHECK ((state = 'ATTACHED') = (nonce != ''))
) STRICT;
CREATE UNIQUE INDEX workspace_name ON workspace (name) WHERE state != 'DELETED';
CREATE UNIQUE INDEX workspace_number ON workspace (number) WHERE state != 'DELETED';
-- A sandbox has one at most.
CREATE UNIQUE INDEX workspace_holder ON workspace (holder) WHERE holder != 0;

-- A workspace bound to a profile, so that work can be stopped and resumed.
CREATE TABLE session (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: operations name it
    name TEXT NOT NULL UNIQUE,
    workspace INTEGER NOT NULL UNIQUE REFERENCES workspace (id),
    profile TEXT NOT NULL,
    origin TEXT NOT NULL DEFAULT '',
    repo TEXT NOT NULL DEFAULT '',
    branch TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    changed REAL NOT NULL
) STRICT;
-- A session for each branch of another session, or of a repository.
CREATE UNIQUE INDEX session_branch ON session (origin, repo, branch) WHERE branch != '';
