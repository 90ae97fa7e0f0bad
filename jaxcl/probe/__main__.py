"""The command `python -m jaxcl.probe`."""

from jaxcl.probe.run import main

main()
