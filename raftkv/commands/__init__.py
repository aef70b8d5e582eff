"""What can be asked of a group: one frozen type per command, one module per family of commands.

A command's type says everything about it: its number in the log (``tag``), what it is about (a slot or a group),
whether it changes anything, its bounds and size, how requests of clients become one, what it does to a state machine,
and what it answers. :mod:`raftkv.commands.registry` collects the types; front ends, router, log and counters ask it.
Pure: a command knows no loop, clock, file or network.
"""

from raftkv.commands import registry as registry  # Types get their numbers and names before anybody uses them.
