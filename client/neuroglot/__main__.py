"""`python -m neuroglot` is `neuroglot`."""

from neuroglot.cli import main

main(prog_name="neuroglot")
