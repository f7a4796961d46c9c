"""The database: engine, transactions, faults, column types, pages and statements."""
