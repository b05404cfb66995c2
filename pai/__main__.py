"""``python -m pai`` is the command ``pai``."""

from pai.cli import main

main()
