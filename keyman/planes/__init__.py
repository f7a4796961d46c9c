"""The processes that keyman runs as. A plane never imports another plane."""
