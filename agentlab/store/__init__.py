"""The database: SQL and only SQL.  Functions take the transaction first and never open one."""
