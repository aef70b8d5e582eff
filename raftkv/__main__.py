"""``python -m raftkv`` is ``raftkv``."""

from raftkv.cli.main import main

main()
