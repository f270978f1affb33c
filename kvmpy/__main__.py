"""``python -m kvmpy`` is ``kvmpy``."""

from kvmpy.cli import main

main()
