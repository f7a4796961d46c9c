"""The trail: who did what and when, in entries that cannot be bent unnoticed."""
