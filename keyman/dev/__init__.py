"""`keyman dev`: a real OpenBao, SQLite and both planes on one machine."""
