"""`python -m keyman` is the command `keyman`."""

from keyman.cli import main

main()
