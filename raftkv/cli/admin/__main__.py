"""``python -m raftkv.cli.admin`` is ``raftkv-admin``."""

from raftkv.cli.admin.main import main

main()
